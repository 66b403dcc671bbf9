"""Check records and copy them into results/. Every value that can be recomputed is recomputed, not trusted."""

import math
import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from saebench.board.leaderboard import conflict
from saebench.catalog import load_task
from saebench.errors import SaebenchError, one_line
from saebench.registry import registry
from saebench.results import (
    Record,
    RecordError,
    fingerprint,
    load_records,
    record_path,
    slug,
    write_atomically,
    writing,
)
from saebench.stats import Ratio, ratio_interval
from saebench.text import clean

# Tolerance for sums of float64 in another order, on another machine.
_CLOSE = 1e-9


def submit(paths: Iterable[Path], results: Path) -> list[tuple[Path, str]]:
    """Check records and copy them, with their units, into `results`: all of them, or none.

    Returns:
        (path in `results`, "added", "replaced" or "already there") for each record.

    Raises:
        RecordError: a file is no record, fails a check, or contradicts a record in `results`.
    """
    records = load_records(paths)
    if not records:
        raise RecordError("no record found: name record files (TASK@VERSION.json), or a folder of them")
    for record in records:
        if found := problems(record):
            raise RecordError(f"{record.path}: cannot be submitted: {'; '.join(found)}")
    there = {r.fingerprint: r for r in load_records([results], skip_damaged=True)} if results.exists() else {}
    states = []
    for record in records:
        states.append(_state(record, there.get(record.fingerprint)))
        there.setdefault(record.fingerprint, record)
    with writing(results):
        return [(_place(record, results, state), state) for record, state in zip(records, states, strict=True)]


def problems(record: Record) -> list[str]:
    """Reasons why a record may not go into results/, a few words each; empty if it may."""
    return [p for check in (_whole, _task, _code, _identity, _units) for p in check(record)]


def _whole(record: Record) -> Iterator[str]:
    if record.partial or record.settings["limit"] is not None:
        yield "the record is partial (made with --limit)"
    for metric, message in record.errors.items():
        yield f"metric {clean(metric)} failed: {clean(message)}"
    for metric in sorted(set(record.metrics) - {row["metric"] for row in record.scores} - set(record.errors)):
        yield f"metric {clean(metric)} has no score"
    for metric in sorted({row["metric"] for row in record.scores} - set(record.metrics)):
        yield f"scores of {clean(metric)}, which is not among its metrics"
    for kind, name in (("SAE", record.sae["name"]), ("model", record.model["id"]), ("hook point", record.hook)):
        if not isinstance(name, str) or clean(name, 200) != name:
            yield f"the {kind}'s name is not one plain line of at most 200 characters"


def _task(record: Record) -> Iterator[str]:
    try:
        task = load_task(record.task_label.removesuffix(".toml"))
    except SaebenchError as error:
        yield one_line(error)
        return
    if task.builder is None and record.task["sha256"] != task.sha256():
        yield f"task {task.label} differs from the installed one (another sha256)"
    if missing := sorted(set(task.metrics) - set(record.metrics)):
        yield f"{', '.join(missing)} of {task.label} was not measured: run it without --metric"


def _code(record: Record) -> Iterator[str]:
    runs = [run.get("provenance") if isinstance(run, dict) else None for run in record.runs]
    if not runs:
        yield "provenance is missing"
    for run in runs:
        commit = run.get("commit") if isinstance(run, dict) else None
        if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{40}", commit):
            yield "provenance names no commit: run saebench from a checkout"
        elif not isinstance(run, dict) or run.get("dirty") is not False:
            yield f"made with uncommitted changes on top of {commit[:12]}: commit them and run again"


def _identity(record: Record) -> Iterator[str]:
    if record.fingerprint != fingerprint(record.identity):
        yield "fingerprint and identity disagree"


def _units(record: Record) -> Iterator[str]:
    for metric in record.metrics:
        rows = [row for row in record.scores if row["metric"] == metric and row["num"] is not None]
        try:
            units = record.units(metric)
        except (RecordError, ValueError, OSError) as error:  # pyarrow's errors are ValueErrors or OSErrors
            yield one_line(error)
            continue
        try:
            record.files(metric)
        except RecordError as error:
            yield one_line(error)
        if units is None:
            if rows:
                yield f"{clean(metric)} has scores over units, but no units"
            continue
        installed = registry().metrics.get(metric)
        if installed is not None and installed.version != record.metrics[metric]["version"]:
            yield (
                f"{clean(metric)} is version {record.metrics[metric]['version']}, and {installed.version} is installed: "
                "measure it again"
            )
            continue
        for row in rows:
            try:
                found = ratio_interval(units, _declared(row))
            except (SaebenchError, KeyError, TypeError, ValueError, AttributeError) as error:
                yield f"{clean(row['key'])} cannot be computed from its units: {one_line(error)}"
                continue
            for name in ("value", "low", "high"):
                if not _same(row[name], getattr(found, name)):
                    yield f"{clean(row['key'])}: {name} is {row[name]}, its units give {getattr(found, name)}"


def _declared(row: dict[str, Any]) -> Ratio:
    """The ratio that a record declares for a score.

    Raises:
        SaebenchError: limits other than those of a share, a difference of shares, or a difference of such differences (±2),
            which could cut off an interval.
    """
    within = row.get("within")
    if within is not None:
        natural = [row["offset"] + row["scale"] * end for end in (-2, -1, 0, 1, 2)]
        if not all(any(math.isclose(end, x) for x in natural) for end in within):
            raise SaebenchError(
                f"declared limits {within[0]} and {within[1]} are not those of a share or a difference of shares"
            )
        within = (within[0], within[1])
    return Ratio(row["num"], row["den"], row["offset"], row["scale"], within=within, kind=row.get("kind", "ratio"))


def _same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=_CLOSE, abs_tol=1e-12)


def _state(record: Record, other: Record | None) -> str:
    """Whether a record is new ("added"), extends the existing one ("replaced"), or equals it ("already there").

    Raises:
        RecordError: it contradicts the existing record, or lacks a metric of it.
    """
    if other is None:
        return "added"
    if found := conflict(other, record):
        raise RecordError(f"{record.path}: contradicts {other.path}, which has the same fingerprint: {found}")
    if lost := sorted(set(other.metrics) - set(record.metrics)):
        raise RecordError(f"{record.path}: {other.path} exists and has more metrics ({', '.join(lost)})")
    changed = {m: e["version"] for m, e in record.metrics.items()} != {
        m: e["version"] for m, e in other.metrics.items()
    }
    return "replaced" if changed else "already there"


def _place(record: Record, results: Path, state: str) -> Path:
    """Copy a record and its units, byte for byte, to its path in `results`."""
    path = record_path(results, record)
    if state == "already there" or record.path is None:
        return path
    copy = replace(record, metrics=deepcopy(record.metrics))
    for metric, entry in copy.metrics.items():
        if entry["units"] is not None:
            data = record.beside(entry["units"], "units")
            entry["units"]["file"] = f"{path.stem}.{slug(metric)}.parquet"
            write_atomically(path.with_name(entry["units"]["file"]), data)
    copy.write(path, {}, {metric: record.files(metric) for metric in copy.metrics if record.files(metric)})
    return path
