"""Saved states of passes: the metrics' sums and the position in the text, from which a killed run continues.

One sealed file holds the state of the whole pass and is replaced by one rename, so it is always the state after some batch. Its
name identifies the measurement and the SAEs of the pass; a later run continues from the file that has most of its SAEs.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from saebench import __version__
from saebench.cache import seal, unseal
from saebench.results import write_atomically

# The array that holds the plain values, as JSON.
_PLAIN = "plain"


class StateFolder:
    """Saved states of one results folder.

    A state is the result of `Pass.snapshot`: `done`, `tally`, and for each lane's key its metrics' states and errors. A lane's
    key begins with its record's fingerprint and a colon.
    """

    def __init__(self, results: Path) -> None:
        self.folder = results / ".state"
        self._settled: set[str] = set()

    def save(self, group: str, state: Mapping[str, Any]) -> None:
        """Replace the state of the pass with these lanes."""
        arrays: dict[str, np.ndarray] = {}
        plain = json.dumps(_split(state, arrays)).encode()
        arrays[_PLAIN] = np.frombuffer(plain, np.uint8)
        data = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
        write_atomically(self._path(group, state["lanes"]), seal(data))

    def find(self, group: str, lanes: set[str]) -> dict[str, Any] | None:
        """The saved state of this group that shares most lanes with `lanes`; None if none shares any."""
        best: dict[str, Any] | None = None
        for path in sorted(self.folder.glob(f"{group}-*.state")):
            state = _read(path)
            if state and len(lanes & set(state["lanes"])) > len(lanes & set(best["lanes"] if best else ())):
                best = state
        return best

    def settle(self, fingerprint: str) -> None:
        """Mark a record as complete, so that `drop` may delete its states."""
        self._settled.add(fingerprint)

    def drop(self, group: str) -> None:
        """Delete the group's states whose every lane belongs to a settled record."""
        for path in self.folder.glob(f"{group}-*.state"):
            state = _read(path)
            if state is None or {lane.partition(":")[0] for lane in state["lanes"]} <= self._settled:
                path.unlink(missing_ok=True)
        for path in self.folder.glob(f".{group}-*"):  # left by killed writes
            path.unlink(missing_ok=True)
        self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        with suppress(OSError):  # not empty, or removed by another process
            self.folder.rmdir()

    def units(self, fingerprint: str, metric: str) -> Path:
        """The folder of a metric's finished units (`Lens.units`) for one record; `metric` is name@version."""
        return self.folder / f"units-{fingerprint[:24]}-{metric}-{__version__}"

    def drop_units(self, fingerprint: str, metric: str) -> None:
        """Delete the finished units of a metric whose scores are recorded."""
        rmtree(self.units(fingerprint, metric), ignore_errors=True)
        self._remove_if_empty()

    def _path(self, group: str, lanes: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256("|".join(sorted(lanes)).encode()).hexdigest()[:16]
        return self.folder / f"{group}-{digest}.state"


def _split(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """`value` with each array moved into `arrays` and a reference in its place."""
    if isinstance(value, np.ndarray):
        name = str(len(arrays))
        arrays[name] = value
        return {"__array__": name}
    if isinstance(value, Mapping):
        return {str(k): _split(v, arrays) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_split(v, arrays) for v in value]
    return value


def _join(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"__array__"}:
            return arrays[value["__array__"]]
        return {k: _join(v, arrays) for k, v in value.items()}
    return [_join(v, arrays) for v in value] if isinstance(value, list) else value


def _read(path: Path) -> dict[str, Any] | None:
    """A saved state; None where it is damaged or of another form, so that the pass starts over."""
    try:
        data = unseal(path.read_bytes())
        if data is None:
            return None
        arrays = load(data)
        state = _join(json.loads(bytes(arrays.pop(_PLAIN))), arrays)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None
    fits = isinstance(state, dict) and all(isinstance(state.get(key), dict) for key in ("lanes", "errors"))
    return state if fits else None
