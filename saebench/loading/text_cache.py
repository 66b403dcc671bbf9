"""A cache of tokenized hub text, keyed by everything that determines it, so that later runs work offline."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any, TypeVar

import numpy as np
import tokenizers
import torch
from torch import Tensor

from saebench.cache import cache_folder, load_from_cache, save_in_cache
from saebench.labels import Labels
from saebench.task import Task

T = TypeVar("T")

# Increment when the code yields other documents or contexts, so that old entries are not used.
CACHE_VERSION = "1"
_LABELS = ("label", "test", "group")


def cached(kind: type[T], task: Task, tokenizer: Any, bos: int | None, make: Callable[[], T], *further: str | int) -> T:
    """The cached contexts of a task under a tokenizer; if there are none, cache and return those of `make`.

    Args:
        kind: the dataclass of contexts, with fields of numpy arrays, `Labels` and JSON values.
        bos: the id that contexts begin with.
        further: more parts of the key, besides task and tokenizer.
    """
    key = _key(task, tokenizer, bos, further)
    if key is None:
        return make()
    path = cache_folder() / "text" / f"{key}.safetensors"
    tensors = load_from_cache(path)
    if tensors is not None:
        return _restored(kind, tensors)
    made = make()
    save_in_cache(path, _tensors(made))
    return made


def _key(task: Task, tokenizer: Any, bos: int | None, further: tuple[str | int, ...]) -> str | None:
    """The cache key; None for a tokenizer whose state cannot be hashed."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    body = [
        CACHE_VERSION, tokenizers.__version__, backend.to_str(), tokenizer.all_special_ids, bos,
        asdict(task.corpus), asdict(task.contexts), asdict(task.labels) if task.labels else None,
        *further,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(body, default=dict).encode()).hexdigest()[:32]


def _tensors(made: Any) -> dict[str, Tensor]:
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {}
    for name in (f.name for f in fields(made)):
        value = getattr(made, name)
        if isinstance(value, np.ndarray):
            arrays[name] = value
        elif isinstance(value, Labels):
            arrays |= {f"{name}.{part}": getattr(value, part) for part in _LABELS}
            about[f"{name}.classes"] = value.classes
        else:
            about[name] = dict(value) if hasattr(value, "items") else value
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def _restored(kind: type[T], tensors: dict[str, Tensor]) -> T:
    values: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    values |= json.loads(values.pop("about").tobytes())
    if isinstance(values["documents"], list):
        values["documents"] = tuple(values["documents"])
    if "labels.classes" in values:
        parts = {part: values.pop(f"labels.{part}") for part in _LABELS}
        values["labels"] = Labels(tuple(values.pop("labels.classes")), **parts)
    return kind(**values)
