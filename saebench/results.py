"""Records: the scores of one SAE on one task, with their provenance, on disk.

A record is one JSON file with the units of each metric (parquet) beside it. Its fingerprint hashes everything that could
change a number and nothing else, so an existing record with the same fingerprint *is* the result.
"""

import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from saebench.disk import remove_abandoned
from saebench.disk import require_writable as require_writable
from saebench.disk import write_atomically as write_atomically
from saebench.disk import writing as writing
from saebench.errors import MissingScore, SaebenchError, one_line
from saebench.notebook import scores_html
from saebench.reading import (
    RECORD_BYTES,
    TABLE_BYTES,
    UNIT_CELLS,
    parquet_frame,
    read_bytes,
    read_json,
    require_numbers,
)
from saebench.record_schema import Group as Group
from saebench.record_schema import problem
from saebench.text import clean

SCHEMA = 1


class RecordError(SaebenchError):
    """A file that is not a valid record of this schema."""


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Hash of everything that could change a number."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@dataclass(repr=False)
class Record:
    """The measurement of one SAE on one task.

    Attributes:
        fingerprint: see `fingerprint`.
        partial: whether made with --limit; excluded from leaderboards.
        sae: name, path, format, architecture, sha256, d_in, d_sae, declared_l0, facts, warnings.
        model: id, sha256, revision.
        hook, hook_out: hook points that the SAE reads and writes.
        task: name, version, sha256.
        corpus: fingerprint, contexts, length, documents, tokens (scored, outliers, special).
        settings: dtypes, seed, limit, max_norm, judge, settings of metrics: the rest of the identity.
        calibration: median_norm, threshold.
        metrics: name -> {version, units: {file, sha256} or None}; files: {suffix: {file, sha256}} of further files
            beside the record; paired: False if each SAE has units of its own.
        scores: long form: metric, version, key, at, value, low, high, n, unit, direction, no_interval, and the declaration
            (num, den, offset, scale) for paired comparisons.
        errors: {metric: message} of failed metrics, which have no scores.
        runs: provenance and timings of each run that added to this record.
        path: the file that was read or written; not stored.
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
    def group(self) -> Group:
        """The parts of the measurement that must be equal for numbers to be comparable."""
        return Group(
            str(self.model["sha256"]),
            self.hook_out,
            self.task_label,
            str(self.task["sha256"]),
            str(self.corpus["fingerprint"]),
            f"{self.settings['model_dtype']}/{self.settings['sae_dtype']}",
            str(self.settings["max_norm"]),
            str(self.settings.get("bos", "as the task")),
            str(self.settings["seed"]),
            json.dumps(self.settings.get("judge"), sort_keys=True),
            json.dumps(self.settings.get("metrics"), sort_keys=True),
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that could change a number, hashed as the fingerprint."""
        return {
            "sae": self.sae["sha256"], "model": self.model["sha256"], "hook": self.hook, "hook_out": self.hook_out,
            "task": self.task, "corpus": self.corpus["fingerprint"], "settings": self.settings,
        }  # fmt: skip

    def score(self, key: str, metric: str | None = None) -> dict[str, Any]:
        """The score with this key that is no point of a curve.

        Raises:
            MissingScore: no such score; names the nearest.
        """
        known = [row for row in self.scores if row["at"] is None and metric in (None, row["metric"])]
        for row in known:
            if row["key"] == key:
                return row
        raise MissingScore(key, [str(row["key"]) for row in known])

    def __repr__(self) -> str:
        scores = {row["key"]: row["value"] for row in self.scores if row["at"] is None}
        shown = ", ".join(f"{clean(key)}={value:.4g}" for key, value in list(scores.items())[:4])
        more = f", … {len(scores)} scores" if len(scores) > 4 else ""
        partial = ", partial" if self.partial else ""
        return f"Record({clean(self.sae['name'])} on {clean(self.task_label)}{partial}: {shown}{more})"

    def units(self, metric: str) -> pd.DataFrame | None:
        """The units of a metric, from the file beside the record; None if the metric has none.

        Raises:
            RecordError: the file is missing or has another hash than the record states.
        """
        entry = self.metrics.get(metric, {}).get("units")
        if entry is None or self.path is None:
            return None
        try:
            frame = parquet_frame(self.beside(entry, "units"), UNIT_CELLS)
            require_numbers(frame, {row[c] for row in self.scores if row["metric"] == metric for c in ("num", "den")})
        except ValueError as error:
            raise RecordError(f"{self.path}: its units of {clean(metric)}: {one_line(error)}") from error
        return frame

    def files(self, metric: str) -> dict[str, bytes]:
        """Further files of a metric beside the record, by suffix.

        Raises:
            RecordError: a file is missing or has another hash than the record states.
        """
        entries = self.metrics.get(metric, {}).get("files", {})
        return {suffix: self.beside(entry, "file") for suffix, entry in entries.items()}

    def beside(self, entry: Mapping[str, str], kind: str) -> bytes:
        """A file beside the record, checked against its hash.

        Args:
            entry: file and sha256, from `metrics`.
            kind: kind of file, for errors ("units").

        Raises:
            RecordError: the file is missing or has another hash than the record states.
        """
        assert self.path is not None
        path = self.path.parent / Path(entry["file"]).name
        try:
            data = read_bytes(path, TABLE_BYTES)
        except (OSError, ValueError) as error:
            raise RecordError(f"{self.path}: its {kind} {path.name} cannot be read: {one_line(error)}") from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise RecordError(
                f"{path}: sha256 differs from that of the {kind} in {self.path.name}: run again with --force"
            )
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

    def dump(self) -> bytes:
        """The content of the record's file.

        Raises:
            RecordError: `read_record` would not accept it.
        """
        body = self.to_json()
        if found := problem(body):
            raise RecordError(found)
        data = (json.dumps(body, indent=1, allow_nan=False) + "\n").encode()
        if len(data) > RECORD_BYTES:
            raise RecordError(f"a record of {len(data):,} bytes; at most {RECORD_BYTES:,} are read")
        return data

    def write(
        self, path: Path, units: Mapping[str, pd.DataFrame], files: Mapping[str, Mapping[str, bytes]] | None = None
    ) -> None:
        """Write units and files first, then the record, so that an existing record is complete.

        Args:
            units: new units, by metric.
            files: further files, by metric and suffix.

        Raises:
            RecordError: the record violates its schema.
            SaebenchError: a file cannot be written.
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
        try:
            data = self.dump()
        except RecordError as error:
            raise RecordError(f"{path}: not written: {error}") from error
        write_atomically(path, data)
        self.path = path


def add_to_record(
    results: Path,
    found: Record,
    metrics: Collection[str],
    units: Mapping[str, pd.DataFrame],
    files: Mapping[str, Mapping[str, bytes]] | None = None,
) -> Record:
    """Add the metrics of a run to the record on disk; metrics that other runs have added meanwhile are kept.

    Args:
        results: the results folder.
        found: a record with those metrics, whose last run is this one.
        metrics: names of the metrics of this run, failed ones included.
        units: their units, by metric.
        files: their further files, by metric and suffix.

    Returns:
        The record on disk.

    Raises:
        RecordError: a file with the record's name is no record.
        SaebenchError: the record cannot be written.
    """
    with writing(results):
        path = record_path(results, found)
        record = _merged(read_record(path), found, metrics) if path.exists() else found
        record.write(path, units, files)
        remove_abandoned(path.parent)
    return record


def _merged(there: Record, found: Record, metrics: Collection[str]) -> Record:
    """`there` with these metrics and the last run of `found`."""
    return replace(
        with_metrics(there, found, metrics),
        corpus=there.corpus | found.corpus,
        calibration=found.calibration or there.calibration,
        runs=[*there.runs, found.runs[-1]],
    )


def with_metrics(record: Record, other: Record, metrics: Collection[str]) -> Record:
    """`record` with these metrics, their scores and errors from `other`; units' files are referenced, not moved."""

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


def read_record(path: Path) -> Record:
    """Read and validate one record.

    Raises:
        RecordError: no regular JSON file, another schema, or a value of a wrong type or out of bounds.
    """
    try:
        body = read_json(path, RECORD_BYTES)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: not a readable record ({one_line(error)}): move it out of the results") from error
    if not isinstance(body, dict) or "fingerprint" not in body or "schema" not in body:
        raise RecordError(f"{path}: JSON, but not a saebench record: move it out of the results")
    if body["schema"] != SCHEMA:
        raise RecordError(
            f"{path}: written with schema {clean(repr(body['schema']))}, this saebench reads {SCHEMA}: "
            "read it with the saebench that wrote it, or move it away and run again"
        )
    if found := problem(body):
        raise RecordError(f"{path}: {found}")
    return Record(**body, path=path)


def load_records(path: str | Path | Iterable[str | Path] = "results", *, skip_damaged: bool = False) -> list[Record]:
    """Load every record below a folder, in a stable order.

    Args:
        path: a results folder or a record file, or several of them.
        skip_damaged: warn of a damaged record instead of raising, unless every record is damaged.

    Raises:
        RecordError: no such folder, or an invalid record in it.
    """
    found, damaged = [], []
    for root in map(Path, [path] if isinstance(path, str | Path) else path):
        if not root.exists():
            raise RecordError(f"no such file or folder: {root}")
        for file in _record_files(root) if root.is_dir() else [root]:
            try:
                found.append(read_record(file))
            except RecordError as error:
                if not skip_damaged:
                    raise
                damaged.append(error)
    if damaged and not found:
        raise damaged[0]
    for reason in damaged:
        warnings.warn(f"left out: {one_line(reason, 1000)}", stacklevel=2)
    return found


def _record_files(root: Path) -> list[Path]:
    """Visible files below a folder with names of records, sorted by path."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        named = [name for name in files if name.endswith(".json") and "@" in name and not name.startswith(".")]
        found += [Path(folder, name) for name in named]
    return sorted(found)


def slug(name: str) -> str:
    """A name as one safe path component: letters, digits, '.', '_', '-'; never empty, never '..'."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80]
    return cleaned or "unnamed"


def record_path(results: Path, record: Record) -> Path:
    """Path of the record: the file with its fingerprint if there is one, else a free name.

    A run with default settings is `<task>@<version>.json`; a variant has its fingerprint in the name.
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
    except RecordError:  # foreign or older files are never overwritten
        same = False
    return plain if same else variant
