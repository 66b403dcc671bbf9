"""Activations on disk, for several runs over one text: one safetensors shard per chunk, made when first asked for.

A shard is in place only when it is whole (written beside, then renamed) and carries the hash of its rows; one that is damaged is
made again. In the first epoch a run with a cache gets the very rows it would get without; later epochs read the same chunks in
another order instead of drawing new ones.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch import distributed as dist

from saebench.errors import SaebenchError, one_line
from saebench.streams import numpy_generator
from saebench.training.activations import Activations

# Raised when the computation changes, so that no cache outlives its code.
CACHE_VERSION = "2"


@dataclass
class CachedActivations:
    """Chunks that are kept in a folder.

    Attributes:
        source: computes missing chunks.
        folder: this model's, place's and text's own; see `cache_key`.
    """

    source: Activations
    folder: Path

    @property
    def per_epoch(self) -> int:
        return self.source.per_epoch

    def chunk(self, number: int) -> Tensor:
        """[n, d_in] rows of the chunk of that number, from the disk where it is whole; see `Chunks.chunk`."""
        epoch, i = divmod(number, self.per_epoch)
        first = i if epoch == 0 else self._order(epoch)[i]
        path = self.folder / f"{first:06d}.safetensors"
        device = self.source.subject.device
        rows = read_shard(path)
        if not _everywhere(rows is not None):
            rows = self.source.chunk(first)
            if not dist.is_initialized() or dist.get_rank() == 0:
                write_shard(path, rows)
        assert rows is not None
        return rows.to(device)

    def _order(self, epoch: int) -> list[int]:
        """The order in which a later epoch reads the kept chunks."""
        stream = numpy_generator(f"train/chunks/{epoch}", self.source.seed)
        return [int(i) for i in stream.permutation(self.per_epoch)]


def _everywhere(found: bool) -> bool:
    """Whether every process has the shard: making it takes all of them."""
    if not dist.is_initialized():
        return found
    answers: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(answers, found)
    return all(answers)


def cache_key(source: Activations) -> str:
    """The name of the folder of a source's shards: everything that changes a row or the chunk it is in."""
    parts = (
        CACHE_VERSION, source.subject.loaded.sha256, source.subject.dtype, str(source.hook), source.text.fingerprint(),
        source.calibration.threshold, source.contexts, source.batch, source.seed,
    )  # fmt: skip
    return hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).hexdigest()[:24]


def write_shard(path: Path, rows: Tensor) -> None:
    """Write rows [n, d] with their hash; whole or not at all.

    Raises:
        SaebenchError: it cannot be written (full disk, no permission).
    """
    rows = rows.cpu().contiguous()
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"rows": rows}, temporary, {"sha256": _digest(rows)})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:  # a full disk is either
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise SaebenchError(
            f"{path} could not be written: {one_line(error)}; free some space ({rows.nbytes / 2**20:.0f} MiB a shard), "
            "name another --cache, or leave it out"
        ) from error


def read_shard(path: Path) -> Tensor | None:
    """Rows [n, d]; None where there is no shard, or a damaged one."""
    try:
        with safe_open(str(path), framework="pt") as file:
            rows: Tensor = file.get_tensor("rows")
            return rows if _digest(rows) == (file.metadata() or {}).get("sha256") else None
    except (OSError, SafetensorError, KeyError):
        return None


def _digest(rows: Tensor) -> str:
    return hashlib.sha256(rows.contiguous().view(torch.uint8).numpy().data).hexdigest()
