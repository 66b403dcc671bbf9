"""The files of a training run: its identity, its log, and one checkpoint to resume from.

DIR/run.json                 the request, counts of the text, and provenance
DIR/log.jsonl                one line per SAE every so many steps
DIR/checkpoint.safetensors   every SAE's weights, optimizer and counters, and the place in the text; gone at the end
DIR/<name>/                  the finished SAE
DIR/curves.png               the log as a picture
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saebench.errors import SaebenchError, UsageError, one_line
from saebench.results import write_atomically


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training run."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def kept(self) -> str:
        """The checkpoint that a failed run can resume from, in words."""
        return f"the checkpoint before it is kept in {self.path}" if self.checkpoint.exists() else "no checkpoint yet"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    def begin(self, identity: Mapping[str, Any], about: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        """Make the folder this run's own, or find that it already is.

        Args:
            identity: everything that could change an SAE.
            about: provenance: code, libraries, machine.
            text: counts of the text that is trained on, and of the text left out.

        Raises:
            UsageError: it holds another run, or something else.
        """
        identity = json.loads(json.dumps(identity))
        known = self._about()
        if known is None:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise UsageError(
                    f"--out {self.path} holds files of something other than a training run: name another folder"
                )
            body = {"identity": identity, "text": text, "provenance": about, "finished": False}
            write_atomically(self.path / "run.json", json.dumps(body, indent=1).encode())
            return
        if different := _difference(known["identity"], identity):
            raise UsageError(
                f"--out {self.path} holds another run ({different}): name another folder, or delete this one"
            )

    @property
    def identity(self) -> dict[str, Any] | None:
        """The identity of the run that the folder holds; None where it holds none."""
        known = self._about()
        return known["identity"] if known is not None and isinstance(known["identity"], dict) else None

    @property
    def finished(self) -> bool:
        known = self._about()
        return known is not None and bool(known["finished"])

    def finish(self) -> None:
        """Mark the run finished and delete its checkpoint."""
        known = self._about()
        assert known is not None
        write_atomically(self.path / "run.json", json.dumps(known | {"finished": True}, indent=1).encode())
        self.checkpoint.unlink(missing_ok=True)

    def _about(self) -> dict[str, Any] | None:
        try:
            known: dict[str, Any] = json.loads((self.path / "run.json").read_text())
            return known if {"identity", "finished"} <= known.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    # --- the checkpoint -----------------------------------------------------------------------------------------------

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint: tensors and plain values in nested mappings. The old one stands until the new one is whole.

        Raises:
            SaebenchError: it cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        plain = json.dumps(_split(state, tensors))
        temporary = self.path / ".checkpoint.new"
        try:
            save_file(tensors, temporary, {"state": plain})
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # on the disk before it takes the old one's place, also where the power fails
            temporary.replace(self.checkpoint)
        except (OSError, SafetensorError) as error:  # a full disk is either
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            size = sum(t.nbytes for t in tensors.values()) / 2**30
            raise SaebenchError(
                f"{self.checkpoint} could not be written: {one_line(error)} ({self.kept}): "
                f"free {size:.1f} GiB and run the same command again"
            ) from error

    def load(self) -> dict[str, Any] | None:
        """The checkpoint; None where there is none.

        Raises:
            SaebenchError: it is damaged.
        """
        if not self.checkpoint.exists():
            return None
        try:
            with safe_open(str(self.checkpoint), framework="pt") as file:
                names = list(file.keys())
                tensors = {name: file.get_tensor(name) for name in names}
                state: dict[str, Any] = _join(json.loads(file.metadata()["state"]), tensors)
                return state
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise SaebenchError(
                f"{self.checkpoint} is damaged ({one_line(error)}): delete it to begin again"
            ) from error

    def require_space(self, nbytes: int) -> None:
        """Raise SaebenchError now rather than after an hour, where two checkpoints and the SAEs would not fit."""
        free = shutil.disk_usage(self.path).free
        if free < nbytes:
            raise SaebenchError(
                f"{self.path} has {free / 2**30:.1f} GiB free and this run needs {nbytes / 2**30:.1f} GiB "
                "(two checkpoints and the SAEs): free some space or name another --out"
            )

    # --- the log ------------------------------------------------------------------------------------------------------

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Add lines to the log.

        Raises:
            SaebenchError: it cannot be written.
        """
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            raise SaebenchError(
                f"{self.log} could not be written: {one_line(error)} ({self.kept}): "
                "free some space and run the same command again"
            ) from error

    def read_log(self) -> list[dict[str, Any]]:
        """The log's lines; a last one that was cut short is left out."""
        if not self.log.exists():
            return []
        lines = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
        return lines

    def rewind(self, step: int) -> None:
        """Drop log lines after a step: those steps run, and are logged, again."""
        kept = [line for line in self.read_log() if line["step"] <= step]
        write_atomically(self.log, "".join(json.dumps(line) + "\n" for line in kept).encode())


def _difference(old: Any, new: Any, where: str = "") -> str | None:
    """The first place where two plain values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            inside = f"{where}.{key}" if where else key
            if key not in old or key not in new:
                return f"{inside} is only in {'this' if key in new else 'that'} one"
            if found := _difference(old[key], new[key], inside):
                return found
        return None
    return None if old == new else f"{where} is {old} there and {new} here"


def _split(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` with each tensor moved into `tensors` and a reference in its place."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # Two names for one memory is an error to safetensors, and a view would bring its whole base along.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"__tensor__": name}
    if isinstance(value, Mapping):
        # As pairs: an optimizer's state has numbers for keys, which JSON would turn into text.
        return {"__items__": [[k, _split(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_split(v, tensors) for v in value]
    return value


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        return {k: _join(v, tensors) for k, v in value["__items__"]}
    return [_join(v, tensors) for v in value] if isinstance(value, list) else value
