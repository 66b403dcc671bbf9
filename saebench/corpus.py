"""Documents -> packed contexts of token ids, with a fingerprint.

A context never crosses a document, and nothing is padded: a document's tail that is shorter than T is dropped and counted.
Labelled documents are the exception: each is one context, cut at T, padded on the right, where a causal model cannot see it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import tokenizers
import torch
from torch import Tensor

from saebench import ranks
from saebench.cache import cache_folder, load_from_cache, save_in_cache
from saebench.errors import SaebenchError, UsageError, one_line
from saebench.labels import LabelledTexts, Labels, labelled_texts, read_table, require_sides
from saebench.loading.hub import hub_documents, hub_table
from saebench.models import fetched_folder
from saebench.task import LabelSpec, Task

# Raised when documents or contexts come out differently, so that no cached text outlives its code.
CACHE_VERSION = "1"


@dataclass(frozen=True)
class Contexts:
    """N contexts of T token ids.

    Attributes:
        token_ids: [N, T] int64
        document_id: [N] int64, indices into `documents`: the clusters of every interval; groups of labelled documents
        special: [N, T] bool, BOS and other special tokens, and padding
        documents: names
        dropped_tokens: tokens of tails shorter than a context
        available: how many contexts the documents would have given
        lengths: [N] int64, tokens of each context that are not padding; None where nothing is padded
        labels: of labelled documents
        left_out: rows of a labelled corpus that are no context, by reason, and how many were cut
    """

    token_ids: np.ndarray
    document_id: np.ndarray
    special: np.ndarray
    documents: tuple[str, ...]
    dropped_tokens: int = 0
    available: int = 0
    lengths: np.ndarray | None = None
    labels: Labels | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def length(self) -> int:
        return int(self.token_ids.shape[1])

    @property
    def tokens(self) -> int:
        """How many tokens there are, padding not counted."""
        return int(self.token_ids.size if self.lengths is None else self.lengths.sum())

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything here as tensors, for the cache."""
        about = {
            "documents": self.documents, "dropped_tokens": self.dropped_tokens, "available": self.available,
            "left_out": dict(self.left_out), "classes": self.labels.classes if self.labels else None,
        }  # fmt: skip
        arrays = {"token_ids": self.token_ids, "document_id": self.document_id, "special": self.special}
        if self.lengths is not None:
            arrays["lengths"] = self.lengths
        if self.labels is not None:
            arrays |= {f"labels.{name}": getattr(self.labels, name) for name in ("label", "test", "group")}
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor] | None) -> "Contexts | None":
        """The contexts that `to_tensors` gave; None for None."""
        if tensors is None:
            return None
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        about = json.loads(arrays.pop("about").tobytes())
        classes, documents = about.pop("classes"), tuple(about.pop("documents"))
        own = {name.removeprefix("labels."): arrays.pop(name) for name in list(arrays) if name.startswith("labels.")}
        labels = Labels(tuple(classes), **own) if classes else None
        return cls(**arrays, **about, documents=documents, labels=labels)

    def head(self, n: int | None) -> "Contexts":
        """The first n contexts (all of them for None)."""
        return self if n is None or n >= len(self) else self.take(np.arange(n))

    def take(self, rows: np.ndarray) -> "Contexts":
        """The contexts of these numbers."""
        return replace(
            self,
            token_ids=self.token_ids[rows],
            document_id=self.document_id[rows],
            special=self.special[rows],
            lengths=None if self.lengths is None else self.lengths[rows],
            labels=None if self.labels is None else self.labels.take(rows),
        )

    def by_length(self, rows: np.ndarray) -> np.ndarray:
        """These contexts' numbers, the short ones first, so that a batch holds little padding."""
        return rows if self.lengths is None else rows[np.argsort(self.lengths[rows], kind="stable")]

    def width(self, rows: np.ndarray) -> int:
        """How many columns of `token_ids` these contexts need."""
        return self.length if self.lengths is None else int(self.lengths[rows].max())

    def fingerprint(self) -> str:
        """Hash of what a model and a metric see: ids, which are special, and which document each came from."""
        digest = hashlib.sha256(repr(self.token_ids.shape).encode())
        for array in (self.token_ids, self.document_id, self.special):
            digest.update(np.ascontiguousarray(array).tobytes())
        if self.labels is not None:
            digest.update(self.labels.digest())
        return digest.hexdigest()


def special_ids(tokenizer: Any) -> np.ndarray:
    """Ids of every special token of a tokenizer (Llama 3's reserved ones are in its added tokens only)."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return np.array(sorted(added | set(tokenizer.all_special_ids)), dtype=np.int64)


def task_contexts(task: Task, tokenizer: Any) -> Contexts:
    """The contexts of a task under a tokenizer.

    Raises:
        SaebenchError: the corpus is missing, changed, or too small.
    """
    if tokenizer is None:
        raise UsageError(f"task {task.label} is text, and the model folder has no tokenizer: pass --tokens FILE.npy")
    spec = task.contexts
    bos = tokenizer.bos_token_id if spec.bos else None
    if spec.bos and bos is None:
        raise SaebenchError(
            f"task {task.label} begins contexts with BOS and this model's tokenizer has none: use a task with bos = false"
        )
    if task.corpus.hub is None or Path(task.corpus.hub).is_dir():
        return _made_contexts(task, tokenizer, bos)
    return ranks.decide(lambda: _hub_contexts(task, tokenizer, bos))


def _hub_contexts(task: Task, tokenizer: Any, bos: int | None) -> Contexts:
    """The contexts of a hub corpus, read once and cached: a pinned commit under one tokenizer gives them again."""
    key = _cache_key(task, tokenizer, bos)
    path = cache_folder() / "text" / f"{key}.safetensors"
    cached = Contexts.from_tensors(load_from_cache(path)) if key else None
    if cached is None:
        cached = _made_contexts(task, tokenizer, bos)
        if key:
            save_in_cache(path, cached.to_tensors())
    return cached


def _cache_key(task: Task, tokenizer: Any, bos: int | None) -> str | None:
    """Hash of everything that decides the contexts; None for a tokenizer whose state cannot be hashed."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    body = [
        CACHE_VERSION, tokenizers.__version__, backend.to_str(), bos, special_ids(tokenizer).tolist(),
        asdict(task.corpus), asdict(task.contexts), asdict(task.labels) if task.labels else None,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()[:32]


def _made_contexts(task: Task, tokenizer: Any, bos: int | None) -> Contexts:
    spec = task.contexts
    if task.labels:
        return _labelled_contexts(task, tokenizer, bos)
    names, pieces, dropped = [], [], 0
    for name, text in documents(task):
        # Some tokenizers add BOS by themselves: never twice.
        ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, dtype=np.int64)
        cut, tail = pack(ids, spec.length, bos)
        names.append(name)
        pieces.append(cut)
        dropped += tail
    chosen = _spread([len(p) for p in pieces], spec.count)
    if len(chosen) < spec.count:
        raise SaebenchError(
            f"task {task.label} needs {spec.count} contexts and its documents give {len(chosen)}: use a larger corpus"
        )
    token_ids = np.stack([pieces[d][i] for d, i in chosen])
    return Contexts(
        token_ids,
        np.array([d for d, _ in chosen], dtype=np.int64),
        np.isin(token_ids, special_ids(tokenizer)),
        tuple(names),
        dropped,
        sum(map(len, pieces)),
    )


def _labelled_contexts(task: Task, tokenizer: Any, bos: int | None) -> Contexts:
    """One context a document: its first T tokens, padded on the right to the longest."""
    assert task.labels is not None
    table = _labelled_table(task, task.labels)
    start = [] if bos is None else [bos]
    pieces: list[list[int]] = []
    kept: list[int] = []
    cut = cut_tokens = 0
    for i, text in enumerate(table.texts):
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        room = task.contexts.length - len(start)
        if not ids:
            continue
        cut += len(ids) > room
        cut_tokens += max(0, len(ids) - room)
        pieces.append([*start, *ids[:room]])
        kept.append(i)
        if len(kept) == task.contexts.count:
            break
    if not kept:
        raise SaebenchError(f"task {task.label}: no document gives a token")
    empty = kept[-1] + 1 - len(kept)
    unused = len(table.texts) - kept[-1] - 1
    lengths = np.array([len(p) for p in pieces], dtype=np.int64)
    token_ids = np.zeros((len(pieces), int(lengths.max())), dtype=np.int64)
    for row, piece in zip(token_ids, pieces, strict=True):
        row[: len(piece)] = piece
    padding = np.arange(token_ids.shape[1]) >= lengths[:, None]
    labels = table.labels.take(np.array(kept))
    require_sides(labels)
    names, document_id = np.unique([table.groups[i] for i in kept], return_inverse=True)
    return Contexts(
        token_ids,
        document_id.astype(np.int64),
        np.isin(token_ids, special_ids(tokenizer)) | padding,
        tuple(names.tolist()),
        cut_tokens,
        len(table.texts) - empty,
        lengths,
        labels,
        table.dropped | {"without tokens": empty, "beyond the task's count": unused, "cut": cut},
    )


def _labelled_table(task: Task, labels: LabelSpec) -> LabelledTexts:
    """The labelled texts of a task, from its file or from the hub."""
    if task.corpus.hub:
        frame, columns = hub_table(task.corpus, labels)
        return labelled_texts(frame, columns, task.corpus.hub)
    path = (fetched_folder() if task.corpus.fetched else task.folder) / str(task.corpus.file)
    _verify(task, path)
    return labelled_texts(_filtered(read_table(path), task, path), labels, str(path))


def open_tokens(path: Path) -> np.ndarray:
    """The whole numbers [N, T] of a .npy file, left on the disk.

    Raises:
        UsageError: not such a file.
    """
    try:
        ids = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UsageError(f"{path}: not readable as .npy: {one_line(error)}") from error
    if (
        not isinstance(ids, np.ndarray)
        or ids.ndim != 2
        or ids.dtype.kind not in "iu"
        or min(ids.shape) < 1
        or ids.shape[1] < 2
    ):
        raise UsageError(f"{path}: expected whole numbers [contexts, tokens], at least 1 × 2")
    return ids


def token_contexts(path: Path, vocabulary: int, specials: Iterable[int]) -> Contexts:
    """Contexts from a .npy file of token ids [N, T], as they are; each row counts as a document of its own.

    Raises:
        UsageError: not such a file, or ids outside the vocabulary.
    """
    ids = open_tokens(path)
    ids = ids.astype(np.int64)
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise UsageError(
            f"{path}: token ids run from {ids.min()} to {ids.max()}, the model knows 0 to {vocabulary - 1}"
        )
    rows = np.arange(len(ids), dtype=np.int64)
    special = np.isin(ids, np.array(sorted(specials), dtype=np.int64))
    return Contexts(ids, rows, special, tuple(f"row {i}" for i in rows), 0, len(ids))


def pack(ids: np.ndarray, length: int, bos: int | None) -> tuple[np.ndarray, int]:
    """Whole contexts [n, length] of one document, and how many tokens its tail has."""
    body = length - (bos is not None)
    n = len(ids) // body
    cut = ids[: n * body].reshape(n, body)
    if bos is not None:
        cut = np.concatenate([np.full((n, 1), bos, dtype=np.int64), cut], axis=1)
    return cut, len(ids) - n * body


def _spread(sizes: list[int], count: int) -> list[tuple[int, int]]:
    """(document, context) pairs: as even a share of `count` for each document as it can fill, evenly spaced within it.

    They come in rounds over the documents, so that the first n of them (`--limit n`) are spread as well.
    """
    quota = [0] * len(sizes)
    left = min(count, sum(sizes))
    while left:
        open_documents = [d for d, size in enumerate(sizes) if quota[d] < size]
        share = max(1, left // len(open_documents))
        for d in open_documents:
            take = min(share, sizes[d] - quota[d], left)
            quota[d] += take
            left -= take
    chosen = [[int((i + 0.5) * size / q) for i in range(q)] for size, q in zip(sizes, quota, strict=True)]
    rounds = range(max(quota, default=0))
    return [(d, picks[r]) for r in rounds for d, picks in enumerate(chosen) if r < len(picks)]


def documents(task: Task) -> Iterator[tuple[str, str]]:
    """(name, text) of each document of a task's corpus, in a fixed order."""
    spec = task.corpus
    if spec.hub:
        yield from hub_documents(spec)
        return
    path = task.folder / str(spec.file)
    _verify(task, path)
    for row in _filtered(pd.read_parquet(path), task, path, ("document", "text")).itertuples():
        yield str(row.document), str(row.text)


def _verify(task: Task, path: Path) -> None:
    """Raise SaebenchError unless the file is the one that the task names."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        remedy = f": make it with `{_remake(task)}`" if task.corpus.fetched else ""
        raise SaebenchError(f"task {task.label}: its text {path} cannot be read: {one_line(error)}{remedy}") from error
    if digest != task.corpus.sha256:
        raise SaebenchError(
            f"task {task.label}: {path} is not the text it names (sha256 {digest[:12]}…, expected "
            f"{str(task.corpus.sha256)[:12]}…): rebuild it with `{_remake(task)}`"
        )


def _remake(task: Task) -> str:
    """The command that makes a task's text again."""
    return f"python -m saebench.tasks.fetch {Path(str(task.corpus.file)).stem}" if task.corpus.fetched else "make data"


def _filtered(frame: pd.DataFrame, task: Task, path: Path, needed: tuple[str, ...] = ()) -> pd.DataFrame:
    """The rows that the task asks for; raises SaebenchError where a column is missing."""
    where = task.corpus.where or {}
    missing = [name for name in (*needed, *where) if name not in frame]
    if missing:
        raise SaebenchError(
            f"task {task.label}: {path} has no column {', '.join(missing)}: it has {', '.join(map(str, frame.columns))}"
        )
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame
