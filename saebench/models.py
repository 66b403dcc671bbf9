"""Find and load a language model: a hub id, a local folder, a GGUF file, or an alias of a plugin."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from saebench.cache import cache_folder
from saebench.errors import SaebenchError, UsageError, is_out_of_memory, one_line
from saebench.loading.hf import Address, fetch_files, is_url, listing
from saebench.registry import registry

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model with its tokenizer and identity.

    Attributes:
        id: the requested alias or hub id; for a local folder or file its name.
        sha256: hash of the weight files and the config.
        revision: the hub commit; None for a local model.
    """

    model: Any
    tokenizer: Any
    id: str
    sha256: str
    revision: str | None = None


def fetched_folder() -> Path:
    """The folder of labelled sets made from packages (`python -m saebench.tasks.fetch`)."""
    return cache_folder() / "labelled"


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: str) -> str:
    return "float32" if device.startswith("cpu") else "bfloat16"


def load_model(spec: str, *, revision: str | None = None, dtype: str = "float32", device: str = "cpu") -> LoadedModel:
    """Load a model by alias, GGUF file, local folder or hub id.

    Args:
        spec: for example `smollm2-135m-instruct`, `meta-llama/Llama-3.2-1B`, `./my-model`, `model.gguf`.
        revision: hub commit or branch; for hub ids only.
        dtype: one of `DTYPES`.
        device: a torch device.

    Raises:
        UsageError: no such model.
        SaebenchError: the model cannot be loaded (truncated, gated, no network, no memory).
    """
    path, revision = _locate(spec, revision)
    try:
        if path.suffix == ".gguf":
            folder, sha = _dequantised(path), _hash_files([path])
        else:
            folder, sha = path, _hash_files(_weight_files(path))
        model, tokenizer = _from_folder(folder, dtype)
        model = model.to(device).eval().requires_grad_(False)
    except SaebenchError:
        raise
    except Exception as error:  # transformers raises almost any type on a damaged file
        if is_out_of_memory(error):
            raise SaebenchError(
                f"model '{spec}' does not fit into the memory of {device}: try --dtype bfloat16"
            ) from error
        raise SaebenchError(f"model '{spec}' at {path} cannot be loaded: {one_line(error)}") from error
    return LoadedModel(model, tokenizer, model_title(spec), sha, revision)


def model_title(spec: str) -> str:
    """A model's name in records: for a local folder its name, for a GGUF file its name without the suffix."""
    path = Path(os.path.expanduser(spec))
    if not path.exists():
        return spec if spec in registry().models else _hub_title(spec)
    name = path.resolve().name
    return name.removesuffix(".gguf") if path.is_file() else name


def _hub_title(spec: str) -> str:
    """OWNER/NAME of the repository, however its address is written."""
    return Address.parse(spec, bare=True).repo if _is_hub_id(spec) else spec


def model_sha256(spec: str) -> str:
    """The hash of a model's weight files, equal to `load_model(...).sha256`, without loading them.

    Raises:
        UsageError: no such model.
        SaebenchError: the model cannot be downloaded.
    """
    path, _ = _locate(spec, None)
    return _hash_files([path] if path.suffix == ".gguf" else _weight_files(path))


def longest_context(config: Any) -> int | None:
    """The number of positions of a model with this config; None without a limit."""
    config = config.get_text_config()
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return None if found is None else int(found)


def require_length(config: Any, length: int, name: str) -> None:
    """Check that contexts of `length` tokens fit into a model.

    Raises:
        UsageError: the model has fewer positions.
    """
    positions = longest_context(config)
    if positions is not None and length > positions:
        raise UsageError(
            f"contexts of {length} tokens are longer than the {positions} positions of {name}: choose a task or --tokens "
            "with shorter contexts"
        )


def require_tokens(loaded: LoadedModel, token_ids: np.ndarray) -> None:
    """Check that a model has a position and an embedding for each token of contexts [N, T].

    Raises:
        UsageError: contexts are longer than the position table, or an id lies beyond the embedding.
    """
    if loaded.model is None:  # without a language model, token ids are row numbers
        return
    require_length(loaded.model.config, token_ids.shape[1], loaded.id)
    rows = int(loaded.model.get_input_embeddings().weight.shape[0])
    highest = int(token_ids.max())
    if highest >= rows:
        raise UsageError(
            f"token id {highest} of the text is beyond the {rows} rows of the embedding of {loaded.id}: its tokenizer belongs to "
            "another model"
        )


def load_config(spec: str, revision: str | None = None) -> Any:
    """The model's config without its weights, for a dry run."""
    import transformers

    path, _ = _locate(spec, revision, weights=False)
    folder = _dequantised(path) if path.suffix == ".gguf" else path
    return transformers.AutoConfig.from_pretrained(folder)


def load_tokenizer(spec: str, revision: str | None = None) -> Any:
    """The model's tokenizer without its weights, for a dry run; None if it has none."""
    import transformers

    path, _ = _locate(spec, revision, weights=False)
    folder = _dequantised(path) if path.suffix == ".gguf" else path
    return transformers.AutoTokenizer.from_pretrained(folder) if _has_tokenizer(folder) else None


def _locate(spec: str, revision: str | None, weights: bool = True) -> tuple[Path, str | None]:
    """(folder or GGUF file, hub revision)"""
    aliases = registry().models
    if spec in aliases:
        return aliases[spec].locate(), None
    path = Path(os.path.expanduser(spec))
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path, None
    if path.exists() or path.suffix == ".gguf" or not _is_hub_id(spec):
        raise UsageError(_nowhere(spec))
    return _from_hub(spec, revision, weights)


def _is_hub_id(spec: str) -> bool:
    """Whether `spec` is OWNER/NAME, the bare NAME of one of the hub's first models (gpt2), or an address of a repository."""
    try:
        address = Address.parse(spec, bare=True)
    except UsageError:
        return False
    return not address.path or spec.startswith("hf:") or is_url(spec)


def _nowhere(spec: str, hub: str = "or a hub id like meta-llama/Llama-3.2-1B") -> str:
    """The error for an unknown model: the kinds of names, and the hub's response."""
    aliases = ", ".join(sorted(registry().models)) or "none installed"
    return f"no model '{spec}': not an alias ({aliases}), a model folder, a .gguf file, {hub}"


def _from_hub(spec: str, revision: str | None, weights: bool) -> tuple[Path, str]:
    address = Address.parse(spec, bare=True)
    if address.path:
        raise UsageError(f"model '{spec}' is a path inside a repository: name the repository, {address.repo}")
    if revision and address.revision and revision != address.revision:
        raise UsageError(f"model '{spec}' names revision {address.revision}, --revision {revision}: give one")
    address = replace(address, revision=revision or address.revision)
    try:
        found = listing(address, f"model '{spec}'")
        names = [n for n in found.sizes if "/" not in n and n.endswith((".json", ".model", ".txt", ".jinja"))]
        if "config.json" not in names:
            raise UsageError(f"model '{spec}': {address.repo} holds no config.json: is it a language model?")
        if weights:
            names += _weight_names(set(found.sizes), found.text, f"model '{spec}'")
        return fetch_files(found, names, f"model '{spec}'"), found.commit
    except SaebenchError as error:
        if "/" in spec:
            raise
        raise UsageError(
            _nowhere(spec, f"and no hub model ({one_line(error, 600)})")
        ) from error  # may be a misspelt alias


def _weight_names(names: Collection[str], read: Callable[[str], str], where: str) -> list[str]:
    """The weights files that transformers loads from a model's folder, by its order of preference.

    Other files may duplicate the weights (Mistral's `consolidated.safetensors`, Llama's `original/`).

    Args:
        names: the files in the folder.
        read: returns the text of an index file.
        where: the model, as named in errors.

    Raises:
        UsageError: no weights, or an index that cannot be read or lists a missing file.
    """
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if whole in names:
            return [whole]
        index = f"{whole}.index.json"
        if index in names:
            try:
                shards = sorted(set(json.loads(read(index))["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UsageError(f"{where}: {index} cannot be read: {one_line(error)}") from error
            missing = [shard for shard in shards if shard not in names]
            if missing or not shards:
                raise UsageError(
                    f"{where}: {index} lists {', '.join(map(str, missing[:3])) or 'no file'}, which is missing"
                )
            return shards
    raise UsageError(f"{where} has no weights: expected model.safetensors or pytorch_model.bin, whole or with an index")


def _weight_files(folder: Path) -> list[Path]:
    config = folder / "config.json"
    if not config.is_file():
        raise UsageError(f"{folder} is not a model folder: config.json is missing")
    present = {path.name for path in folder.iterdir()}
    names = _weight_names(present, lambda index: (folder / index).read_text("utf-8"), str(folder))
    return [config, *(folder / name for name in names)]


def _hash_files(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _from_folder(folder: Path, dtype: str) -> tuple[Any, Any]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
    # A run on token ids needs no tokenizer.
    return model, transformers.AutoTokenizer.from_pretrained(folder) if _has_tokenizer(folder) else None


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def _dequantised(gguf: Path) -> Path:
    """A cached safetensors copy of a GGUF model, keyed by the file's hash; the conversion takes 20 s."""
    import transformers

    key = f"{gguf.name.removesuffix('.gguf')}-{_hash_files([gguf])[:16]}-transformers-{transformers.__version__}"
    target = cache_folder() / "models" / key
    if target.is_dir():
        return target
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain float32 by now, but the quantiser's leftovers forbid saving them.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".new-"))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.rename(target)
    except (OSError, SafetensorError) as error:  # a full disk raises either
        shutil.rmtree(temporary, ignore_errors=True)
        if not target.is_dir():  # unless another process was faster
            raise SaebenchError(
                f"no room for the dequantised model in {target.parent} (540 MB for SmolLM2): {one_line(error)}; "
                "free some space or set SAEBENCH_CACHE to another folder"
            ) from error
    return target
