"""Records: what one run of one SAE on one task found, what made it, and where it lies on disk.

A record is one JSON file with the units of each metric (parquet) beside it. Its fingerprint hashes what could change a
number and nothing else, so an existing record with the same fingerprint *is* the result.
"""

import errno
import hashlib
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from saebench.errors import SaebenchError, one_line, unknown
from saebench.notebook import scores_html
from saebench.text import clean

SCHEMA = 1
# Seconds to wait for another process to write its record: it takes a few milliseconds, on a slow network disk seconds.
_PATIENCE = 600


class RecordError(SaebenchError):
    """A file that is not a valid record of this schema."""


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Hash of everything that could change a number."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@dataclass
class Record:
    """One SAE on one task.

    Attributes:
        fingerprint: see `fingerprint`.
        partial: made with --limit; no leaderboard takes it.
        sae: name, path, format, architecture, sha256, d_in, d_sae, declared_l0, facts, warnings.
        model: id, sha256, revision.
        hook, hook_out: where the SAE reads, and writes.
        task: name, version, sha256.
        corpus: fingerprint, contexts, length, documents, tokens (scored, outliers, special).
        settings: dtypes, seed, limit, max_norm: the rest of the identity.
        calibration: median_norm, threshold.
        metrics: name -> {version, units: {file, sha256} or None}; files: {suffix: {file, sha256}} for what else lies beside the
            record; paired: False where units of two SAEs have nothing to do with each other.
        scores: long form: metric, version, key, at, value, low, high, n, unit, direction, no_interval, and the declaration
            (num, den, offset, scale) that paired comparisons are made from.
        errors: {metric: message} for what failed; nothing else is ever recorded for it.
        runs: provenance and timings of each run that added to this record.
        path: where it was read from or written to; not stored.
    """

    fingerprint: str
    partial: bool
    sae: dict[str, Any]
    model: dict[str, Any]
    hook: str
    hook_out: str
    task: dict[str, Any]
    corpus: dict[str, Any]
    settings: dict[str, Any]
    calibration: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    schema: int = SCHEMA
    path: Path | None = None

    @property
    def task_label(self) -> str:
        return f"{self.task['name']}@{self.task['version']}"

    @property
    def group(self) -> tuple[str, ...]:
        """What must be equal for two records' numbers to be comparable."""
        dtypes = f"{self.settings['model_dtype']}/{self.settings['sae_dtype']}"
        return (
            str(self.model["sha256"]),
            self.hook_out,
            self.task_label,
            str(self.task["sha256"]),
            str(self.corpus["fingerprint"]),
            dtypes,
            str(self.settings["max_norm"]),
            json.dumps(self.settings.get("judge"), sort_keys=True),
            str(self.settings["seed"]),
            json.dumps(self.settings.get("metrics"), sort_keys=True),
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that could change a number: what the fingerprint hashes."""
        return {
            "sae": self.sae["sha256"], "model": self.model["sha256"], "hook": self.hook, "hook_out": self.hook_out,
            "task": self.task, "corpus": self.corpus["fingerprint"], "settings": self.settings,
        }  # fmt: skip

    def score(self, key: str, metric: str | None = None) -> dict[str, Any]:
        """The score of that key that is not a point of a curve.

        Raises:
            KeyError: there is none.
        """
        for row in self.scores:
            if row["key"] == key and row["at"] is None and metric in (None, row["metric"]):
                return row
        raise KeyError(key)

    def units(self, metric: str) -> pd.DataFrame | None:
        """The units of a metric, from the file beside the record; None if the metric has none.

        Raises:
            RecordError: the file is missing or is not the one the record was made with.
        """
        entry = self.metrics.get(metric, {}).get("units")
        if entry is None or self.path is None:
            return None
        return pd.read_parquet(io.BytesIO(self._beside(entry, "units")))

    def files(self, metric: str) -> dict[str, bytes]:
        """What else a metric left beside the record, by suffix.

        Raises:
            RecordError: a file is missing or is not the one the record was made with.
        """
        entries = self.metrics.get(metric, {}).get("files", {})
        return {suffix: self._beside(entry, "file") for suffix, entry in entries.items()}

    def _beside(self, entry: Mapping[str, str], what: str) -> bytes:
        assert self.path is not None
        path = self.path.parent / Path(entry["file"]).name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RecordError(f"{self.path}: its {what} {path.name} cannot be read: {one_line(error)}") from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise RecordError(f"{path}: not the {what} that {self.path.name} was made with; run it again with --force")
        return data

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        about = f"{clean(self.hook)} of {clean(self.model['id'])} · {clean(self.task_label)}"
        if self.partial:
            about += f" · partial: the first {clean(self.settings['limit'], 12)} contexts"
        return scores_html(self.sae["name"], about, self.scores, self.errors)

    def to_json(self) -> dict[str, Any]:
        body = asdict(self)
        del body["path"]
        return body

    def write(
        self, path: Path, units: Mapping[str, pd.DataFrame], files: Mapping[str, Mapping[str, bytes]] | None = None
    ) -> None:
        """Write units and files first, then the record: a record that exists is whole.

        Args:
            units: by metric; those already written are left alone.
            files: by metric and suffix.
        """
        for metric, frame in units.items():
            buffer = io.BytesIO()
            frame.to_parquet(buffer, index=False)
            name = f"{path.stem}.{metric}.parquet"
            self.metrics[metric]["units"] = {
                "file": name,
                "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
            }
            write_atomically(path.with_name(name), buffer.getvalue())
        for metric, own in (files or {}).items():
            entries = self.metrics[metric]["files"] = {}
            for suffix, data in own.items():
                name = f"{path.stem}.{metric}.{suffix}"
                entries[suffix] = {"file": name, "sha256": hashlib.sha256(data).hexdigest()}
                write_atomically(path.with_name(name), data)
        _validate(self, path)  # what could not be read back is not written
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        write_atomically(path, (text + "\n").encode())
        self.path = path


@contextmanager
def writing(results: Path) -> Iterator[None]:
    """Alone in writing records below `results`: other processes, here or on a host that shares the folder, wait.

    Raises:
        SaebenchError: the folder cannot be written, or somebody holds it for ten minutes.
    """
    lock = FileLock(results / ".lock", timeout=_PATIENCE)
    try:
        results.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise SaebenchError(
            f"{results} is locked by another process: let it end, or remove {results / '.lock'} if there is none"
        ) from error
    except OSError as error:
        raise SaebenchError(f"{results} could not be written: {one_line(error)}; name another --results") from error
    try:
        yield
    finally:
        lock.release()


def add_to_record(
    results: Path,
    found: Record,
    metrics: Collection[str],
    units: Mapping[str, pd.DataFrame],
    files: Mapping[str, Mapping[str, bytes]] | None = None,
) -> Record:
    """Write what a run found; what other runs have written into the same record since this one began stays there.

    Args:
        results: the results folder.
        found: a record that holds those metrics, and the run that made them as its last.
        metrics: what that run measured, failures too.
        units: their units, by metric.
        files: what else they keep, by metric and suffix.

    Returns:
        The record as it now is on disk.

    Raises:
        RecordError: there is a file in its place that is no record.
        SaebenchError: it cannot be written.
    """
    with writing(results):
        path = record_path(results, found)
        record = _merged(read_record(path), found, metrics) if path.exists() else found
        record.write(path, units, files)
    return record


def _merged(there: Record, found: Record, metrics: Collection[str]) -> Record:
    """`there` with these metrics, and the last run, of `found`."""
    return replace(
        with_metrics(there, found, metrics),
        corpus=there.corpus | found.corpus,
        calibration=found.calibration or there.calibration,
        runs=[*there.runs, found.runs[-1]],
    )


def with_metrics(record: Record, other: Record, metrics: Collection[str]) -> Record:
    """`record` with these metrics as `other` has them: their scores and errors too. The units' files are named, not moved."""

    def mine(error: str) -> bool:
        return error.partition(".")[0] in metrics

    return replace(
        record,
        metrics={k: v for k, v in record.metrics.items() if k not in metrics}
        | {k: v for k, v in other.metrics.items() if k in metrics},
        scores=[row for row in record.scores if row["metric"] not in metrics]
        + [row for row in other.scores if row["metric"] in metrics],
        errors={k: v for k, v in record.errors.items() if not mine(k)}
        | {k: v for k, v in other.errors.items() if mine(k)},
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the target, then rename: whoever reads sees the old file or the new one.

    What is there and no plain file (a device, a pipe) is written to as it is.

    Raises:
        SaebenchError: it cannot be written (full disk, no permission).
    """
    temporary = None
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space and run the same command again" if full else "see that its folder may be written to"
        raise SaebenchError(
            f"{path} could not be written: {one_line(error)}; what was finished before is kept: {remedy}"
        ) from error


def require_writable(folder: Path) -> None:
    """Make a results folder and write into it, so that it is known before anything is computed that this can be done.

    Raises:
        SaebenchError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix="."):
            pass
    except OSError as error:
        raise SaebenchError(f"--results {folder} cannot be written: {one_line(error)}; name another folder") from error


def read_record(path: Path) -> Record:
    """One record from disk, validated.

    Raises:
        RecordError: not JSON, not a record, another schema, or numbers that are not numbers.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not a readable record ({one_line(error)}): move it out of the results") from error
    if not isinstance(body, dict) or "fingerprint" not in body or "schema" not in body:
        raise RecordError(f"{path}: JSON, but not a saebench record: move it out of the results")
    if body["schema"] != SCHEMA:
        raise RecordError(
            f"{path}: written with schema {body['schema']!r}, this saebench reads {SCHEMA}: "
            "read it with the saebench that wrote it, or move it away and run again"
        )
    names = {f.name for f in fields(Record)} - {"path"}
    if set(body) != names:
        raise RecordError(f"{path}: keys missing or unknown: {', '.join(sorted(map(str, set(body) ^ names)))}")
    record = Record(**body, path=path)
    _validate(record, path)
    return record


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


_TYPES: dict[str, type] = {
    "fingerprint": str, "partial": bool, "sae": dict, "model": dict, "hook": str, "hook_out": str, "task": dict,
    "corpus": dict, "settings": dict, "calibration": dict, "metrics": dict, "scores": list, "errors": dict, "runs": list,
}  # fmt: skip
_NEEDED = {
    "sae": ("name", "sha256"), "model": ("id", "sha256"), "task": ("name", "version", "sha256"),
    "corpus": ("fingerprint",), "settings": ("model_dtype", "sae_dtype", "max_norm", "seed", "limit"),
}  # fmt: skip
_SCORE_KEYS = {"metric", "version", "key", "at", "value", "low", "high", "n", "unit", "direction", "no_interval",
               "num", "den", "offset", "scale"}  # fmt: skip
# Records of before it was declared lack it.
_NEWER = {"within"}


def _validate(record: Record, path: Path) -> None:
    for name, kind in _TYPES.items():
        if not isinstance(getattr(record, name), kind):
            raise RecordError(f"{path}: '{name}' should be {kind.__name__}")
    for name, keys in _NEEDED.items():
        for key in keys:
            if key not in getattr(record, name):
                raise RecordError(f"{path}: '{name}' lacks '{key}'")
    for name, entry in record.metrics.items():
        if not _is_entry(entry):
            raise RecordError(f"{path}: metric {name[:80]!r} should have a version, and units or none")
    for i, row in enumerate(record.scores):
        if not isinstance(row, dict) or set(row) - _NEWER != _SCORE_KEYS:
            raise RecordError(f"{path}: score {i} does not have the keys of a score")
        if not isinstance(row["metric"], str) or not isinstance(row["key"], str) or type(row["version"]) is not int:
            raise RecordError(f"{path}: score {i}: metric and key must be text, version a whole number")
        for name in ("value", "low", "high", "at"):
            value = row[name]
            if value is None and name != "value":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise RecordError(f"{path}: score {i} ({row['key']}): {name} is not a finite number")
        if not _is_range(row.get("within")):
            raise RecordError(f"{path}: score {i} ({row['key']}): within is not two numbers, the least first")


def _is_range(ends: Any) -> bool:
    if ends is None:
        return True
    numbers = isinstance(ends, list) and len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    return numbers and all(map(math.isfinite, ends)) and ends[0] <= ends[1]


def _is_entry(entry: Any) -> bool:
    """Whether it is what a record says of a metric: {version, units: None or {file, sha256}, and perhaps files, paired}."""
    if not isinstance(entry, dict) or type(entry.get("version")) is not int or "units" not in entry:
        return False
    files = entry.get("files", {})
    if type(entry.get("paired", True)) is not bool or not isinstance(files, dict):
        return False
    beside = [*files.values(), *([] if entry["units"] is None else [entry["units"]])]
    return all(isinstance(e, dict) and all(isinstance(e.get(k), str) for k in ("file", "sha256")) for e in beside)


def load_records(path: str | Path | Iterable[str | Path] = "results") -> list[Record]:
    """Every record below a folder, in a stable order.

    Args:
        path: a results folder or a record file, or several of them.

    Raises:
        RecordError: no such folder, or a file in it that is not a valid record.
    """
    found = []
    for root in map(Path, [path] if isinstance(path, str | Path) else path):
        if not root.exists():
            raise RecordError(f"no such file or folder: {root}")
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*@*.json") if not _hidden(p, root))
        found += [read_record(file) for file in files]
    return found


def find_records(names: Iterable[str], results: Path, task: str | None = None) -> list[Record]:
    """One record for each name: a record file, or an SAE's name (or name-sha8) among the records of a folder.

    All of them on one task: the one named, or the only one that every SAE was measured on.

    Raises:
        UsageError: none of them is of that task; names those there are.
        RecordError: no such record, or several; names them.
    """
    several: list[list[Record]] = []
    everything: list[Record] | None = None
    for name in names:
        if name.endswith(".json"):
            several.append(load_records([name]))
            continue
        if everything is None:
            everything = load_records([results])
        found = [r for r in everything if name in (r.sae["name"], f"{r.sae['name']}-{r.sae['sha256'][:8]}")]
        if not found:
            known = sorted({str(r.sae["name"]) for r in everything})
            raise unknown("SAE", name, known)
        several.append(found)
    if task:
        tasks = {label for found in several for r in found for label in (str(r.task["name"]), r.task_label)}
        if task not in tasks:
            raise unknown("task", task, tasks)
        several = [[r for r in found if task in (r.task["name"], r.task_label)] for found in several]
    groups = [{(r.group, r.partial): r for r in found} for found in several]
    if any(len(group) < len(found) for group, found in zip(groups, several, strict=True)):
        alike = next(found for group, found in zip(groups, several, strict=True) if len(group) < len(found))
        paths = ", ".join(str(r.path) for r in alike)
        raise RecordError(
            f"'{alike[0].sae['name']}' is the name of several SAEs or runs: name one of the files {paths}"
        )
    shared = set(groups[0]).intersection(*groups[1:]) if groups else set()
    if len(shared) == 1:
        [one] = shared
        return [group[one] for group in groups]
    if len(several) > 0 and all(len(found) == 1 for found in several):
        return [found[0] for found in several]  # compare says in what they differ
    labels = sorted({r.path.as_posix() if r.path else "?" for found in several for r in found})
    problem = "share several measurements" if shared else "share no measurement"
    raise RecordError(f"these SAEs {problem}: name the record files, or a --task; found {', '.join(labels)}")


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def slug(name: str) -> str:
    """A name as one safe path component: letters, digits, '.', '_', '-'; never empty, never '..'."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80]
    return cleaned or "unnamed"


def record_path(results: Path, record: Record) -> Path:
    """Where this record lies or should lie: its own file if one of its fingerprint exists, else a free name.

    A run with every setting at its default takes `<task>@<version>.json`; any variant carries its fingerprint.
    """
    folder = (
        results
        / slug(str(record.model["id"]))
        / slug(record.hook)
        / f"{slug(str(record.sae['name']))}-{str(record.sae['sha256'])[:8]}"
    )
    stem = f"{slug(str(record.task['name']))}@{record.task['version']}"
    variant = folder / f"{stem}-{record.fingerprint[:8]}.json"
    plain = folder / f"{stem}.json"
    if variant.exists() or record.partial or record.settings["seed"] != 0:
        return variant
    if not plain.exists():
        return plain
    try:
        same = read_record(plain).fingerprint == record.fingerprint
    except RecordError:  # foreign or older: never overwritten
        same = False
    return plain if same else variant
