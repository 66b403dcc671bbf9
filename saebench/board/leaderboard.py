"""From records to boards: comparable records side by side, with ranks. Independent of output and of any metric.

A board holds the records of one group (`Record.group`): one language model, hook point, task, corpus and precision. Other
records are not comparable and never share a table.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pandas as pd

from saebench.board.groups import differing
from saebench.board.presented import headlines, presentations
from saebench.board.sparsity import Sparsity, measured_sparsity
from saebench.errors import SaebenchError, one_line, unknown
from saebench.report import Board, Cell, Column, Row
from saebench.results import Group, Record, with_metrics
from saebench.stats import Ratio, ratio_interval, standing
from saebench.text import clean

# Two runs of one fingerprint may differ by rounding inside the model (1e-5 relative, more where a score is a small
# difference of large sums). Beyond this, and beyond a hundredth of the interval, they contradict each other.
_AGREE = 1e-4
# A score that is no ratio of sums (a share of latents, the area under a curve) changes when rounding flips a latent or a fit.
_COUNTED = 0.01


def boards(records: Iterable[Record], sparsity: Sparsity | None = None, *, partial: bool = False) -> list[Board]:
    """Group records into boards, with ranks; boards are in the order of their first records.

    Records of one fingerprint are merged, or refused if they disagree.

    Args:
        records: records of any number of groups.
        sparsity: `measured_sparsity` of a larger set of records, for tasks that do not measure it.
        partial: include records made with --limit, marked in their names; otherwise they are counted and left out.
    """
    groups: dict[Group, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    if sparsity is None:
        sparsity = measured_sparsity(r for members in groups.values() for r in members)
    found = [_board(members, sparsity, partial) for members in groups.values()]
    _tell_apart(found, list(groups))
    return found


def _board(records: list[Record], sparsity: Sparsity, partial: bool) -> Board:
    board = _empty(records[0])
    board.partial = 0 if partial else sum(r.partial for r in records)
    merged = _merge_duplicates([r for r in records if partial or not r.partial], board.notes)
    kept = [record for record, _ in merged]
    board.columns = list(dict.fromkeys(column for r in kept for column in columns_of(r)))
    for name, (record, parts) in zip(_names(kept), merged, strict=True):
        scores = {_column(row): row for row in record.scores}
        cells = {column: _cell(column, record, scores.get(column)) for column in board.columns}
        board.rows.append(Row(name, record, cells, ratios(record), sparsity.of(record), parts))
        board.notes += [f"{name}: {metric} failed: {message}" for metric, message in record.errors.items()]
    board.presentations = presentations(kept, board.notes)
    board.sparsity = sparsity.axis
    board.headlines = headlines(board.columns, board.presentations)
    _rank(board)
    return board


def _tell_apart(found: Sequence[Board], groups: Sequence[Group]) -> None:
    """Add to boards with equal captions the parts in which they differ."""
    titles: dict[tuple[str, ...], list[int]] = {}
    for i, board in enumerate(found):
        titles.setdefault(tuple(map(clean, (board.model, board.hook, board.task, board.dtypes))), []).append(i)
    for alike in titles.values():
        for i, parts in zip(alike, differing([groups[i] for i in alike]), strict=True):
            found[i].variant = ", ".join(f"{name} {value}" for name, value in parts.items())


def _empty(record: Record) -> Board:
    dtypes = f"{record.settings['model_dtype']}/{record.settings['sae_dtype']}"
    judge = record.settings.get("judge")
    if isinstance(judge, dict):
        dtypes += f" · judge {judge.get('provider')}:{judge.get('model')}"
    return Board(
        model=str(record.model["id"]),
        revision=record.model.get("revision"),
        hook=record.hook_out,
        task=record.task_label,
        corpus=str(record.corpus["fingerprint"])[:12],
        dtypes=dtypes,
    )


def columns_of(record: Record) -> list[Column]:
    """The scores of a record, as columns."""
    return [_column(row) for row in record.scores]


def _column(row: dict[str, Any]) -> Column:
    direction = row["direction"] if row["direction"] in ("higher", "lower") else None
    return Column(str(row["metric"]), row["version"], str(row["key"]), row["at"], str(row["unit"]), direction)


def _declared(row: dict[str, Any]) -> Ratio:
    within = row.get("within")
    limits = None if within is None else (within[0], within[1])
    return Ratio(row["num"], row["den"], row["offset"], row["scale"], within=limits, kind=row.get("kind", "ratio"))


def ratios(record: Record) -> dict[Column, Ratio]:
    """The declarations of those scores of a record that can be resampled."""
    return {_column(row): _declared(row) for row in record.scores if row["num"] is not None and row["den"] is not None}


def is_paired(record: Record, metric: str) -> bool:
    """Whether the metric's units are the same for every SAE, so that differences are paired."""
    return bool(record.metrics.get(metric, {}).get("paired", True))


def _cell(column: Column, record: Record, row: dict[str, Any] | None) -> Cell:
    if row is not None:
        return Cell("scored", row["value"], row["low"], row["high"], row["n"], reason=row["no_interval"])
    for failed in (column.metric, f"{column.metric}.{column.key}"):
        if failed in record.errors:
            return Cell("failed", reason=record.errors[failed])
    measured = record.metrics.get(column.metric)
    if measured is None:
        return Cell("missing", reason="not measured")
    if measured["version"] != column.version:
        other = measured["version"]
        return Cell("missing", reason=f"measured with {column.metric} version {other}, not {column.version}")
    return Cell("missing", reason=f"{column.metric} returned no such score")


def _names(records: Sequence[Record]) -> list[str]:
    """The name of each record's SAE, with its hash, then a number, if names are equal; partial records are marked."""
    names = [str(r.sae["name"])[:200] + (" (partial)" if r.partial else "") for r in records]
    seen = Counter(names)
    names = [
        f"{name} {str(r.sae['sha256'])[:8]}" if seen[name] > 1 else name for name, r in zip(names, records, strict=True)
    ]
    times: Counter[str] = Counter()
    for i, name in enumerate(names):
        times[name] += 1
        if times[name] > 1:
            names[i] = f"{name} ({times[name]})"
    return names


# --- duplicates ------------------------------------------------------------------------------------------------------


def _merge_duplicates(records: list[Record], notes: list[str]) -> list[tuple[Record, list[Record]]]:
    """(merged record, its sources) per fingerprint, with every metric that any source has.

    Contradicting records of one fingerprint are all refused, with a note.
    """
    by_print: dict[str, list[Record]] = {}
    for record in records:
        by_print.setdefault(record.fingerprint, []).append(record)
    kept = []
    for same in by_print.values():
        clash = next((c for a, b in combinations(same, 2) if (c := conflict(a, b))), None)
        if clash:
            where = " and ".join(sorted({str(r.path) for r in same}))
            notes.append(f"{same[0].sae['name']}: refused, two records of one fingerprint disagree: {clash} ({where})")
        else:
            kept.append((_union(same), same))
    return kept


def _union(same: list[Record]) -> Record:
    """The record with the most metrics, completed with metrics that it lacks or has in an older version."""
    whole, *others = sorted(same, key=lambda r: -len(set(r.metrics) - set(r.errors)))
    for other in others:
        better = [
            name
            for name, entry in other.metrics.items()
            if name not in other.errors
            and (name not in whole.metrics or name in whole.errors or entry["version"] > whole.metrics[name]["version"])
        ]
        if better:
            whole = replace(with_metrics(whole, other, better), runs=[*whole.runs, *other.runs])
    return whole


def conflict(a: Record, b: Record) -> str | None:
    """The first score in which two records of one fingerprint disagree by more than rounding; integers may jump."""
    theirs = {_column(row): row for row in b.scores}
    for row in a.scores:
        other = theirs.get(_column(row))
        if other is None:
            continue
        if row["num"] is None:
            whole = all(float(r["value"]).is_integer() for r in (row, other))
            allowed = math.inf if whole else max(_COUNTED, _COUNTED * abs(row["value"]))
        else:
            width = 0.0 if row["low"] is None or row["high"] is None else row["high"] - row["low"]
            allowed = max(_AGREE * abs(row["value"]), 0.01 * width)
        if abs(row["value"] - other["value"]) > allowed:
            return f"{row['key']} is {row['value']:.6g} in one and {other['value']:.6g} in the other"
    return None


# --- ranks -----------------------------------------------------------------------------------------------------------


def _rank(board: Board) -> None:
    """Fill in the ranks of every score with a direction and a declared ratio, over the SAEs that have it."""
    units: dict[str, list[pd.DataFrame | None]] = {}
    strangers: dict[str, set[int]] = {}
    # The family of the multiple-comparison correction: the headlines, which a table shows by default.
    shown = max(1, sum(c.direction is not None and any(c in row.ratios for row in board.rows) for c in board.headlines))
    for column in board.columns:
        declarations = Counter(row.ratios[column] for row in board.rows if column in row.ratios)
        if column.direction is None or not declarations:
            continue
        declared = declarations.most_common(1)[0][0]
        if column.metric not in units:
            units[column.metric] = [_units(row, column.metric, board.notes) for row in board.rows]
            strangers[column.metric] = _strangers(board, column.metric, units[column.metric])
        frames = units[column.metric]
        able = []
        for i, row in enumerate(board.rows):
            if column not in row.ratios or frames[i] is None or i in strangers[column.metric]:
                continue
            if row.ratios[column] == declared:
                able.append(i)
            else:
                board.notes.append(f"{row.name}: no rank in {column.name}: its score is declared otherwise")
        _rank_column(board, column, declared, frames, able, shown)


def _rank_column(
    board: Board, column: Column, declared: Ratio, frames: Sequence[pd.DataFrame | None], able: list[int], shown: int
) -> None:
    """Fill in one column's ranks; units that spoil the estimate of all others cost their own SAE its rank."""
    paired = all(is_paired(board.rows[i].record, column.metric) for i in able)
    smallest = board.presentation(column).smallest.get(column.key)

    def stand(some: list[int]) -> tuple[list[int | None], Any]:
        chosen = [f for i in some if (f := frames[i]) is not None]
        return standing(chosen, declared, column.direction or "higher", paired=paired, smallest=smallest, scores=shown)

    try:
        places, better = stand(able)
    except SaebenchError as error:
        reasons = {i: reason for i in able if (reason := _unfit(frames[i], declared))}
        board.notes += [f"{board.rows[i].name}: no rank in {column.name}: {reason}" for i, reason in reasons.items()]
        rest = [i for i in able if i not in reasons]
        if not reasons or not rest:
            board.notes += [] if reasons else [f"no ranks in {column.name}: {one_line(error)}"]
            return
        _rank_column(board, column, declared, frames, rest, shown)
        return
    if all(place is None for place in places) and (unfit := [i for i in able if _unfit(frames[i], declared)]):
        rest = [i for i in able if i not in unfit]
        board.notes += [f"{board.rows[i].name}: no rank in {column.name}: {_unfit(frames[i], declared)}" for i in unfit]
        if rest:
            _rank_column(board, column, declared, frames, rest, shown)
        return
    for i, place in zip(able, places, strict=True):
        board.rows[i].cells[column] = replace(board.rows[i].cells[column], rank=place)
    names = [board.rows[i].name for i in able]
    board.better[column] = pd.DataFrame(better, index=names, columns=names)


def _strangers(board: Board, metric: str, frames: Sequence[pd.DataFrame | None]) -> set[int]:
    """Rows whose units are not those of most others, where units are the same things for every SAE; each with a note."""
    if not all(is_paired(row.record, metric) for row in board.rows):
        return set()
    ids = [None if frame is None else _ids(frame) for frame in frames]
    if not any(ids):
        return set()
    usual, count = Counter(found for found in ids if found is not None).most_common(1)[0]
    if 2 * count <= sum(found is not None for found in ids):
        return set()
    out = {i for i, found in enumerate(ids) if found not in (None, usual)}
    board.notes += [f"{board.rows[i].name}: no ranks in {metric}: its units are not those of the others" for i in out]
    return out


def _ids(frame: pd.DataFrame) -> int:
    """A hash of the units' numbers and clusters, in any order."""
    if not {"unit_id", "cluster_id"} <= set(frame):
        return 0
    return hash(tuple(sorted(zip(frame["unit_id"].tolist(), frame["cluster_id"].tolist(), strict=True), key=str)))


def _unfit(frame: pd.DataFrame | None, declared: Ratio) -> str | None:
    """The reason for which units alone give no estimate; None where they do, or merely do not vary."""
    if frame is None:
        return "no units"
    try:
        found = ratio_interval(frame, declared)
    except SaebenchError as error:
        return one_line(error)
    return None if found.no_interval is None or "variance" in found.no_interval else found.no_interval


def _units(row: Row, metric: str, notes: list[str]) -> pd.DataFrame | None:
    """The units behind a row's scores; if they cannot be read, None and a note, and the row gets no ranks."""
    try:
        return row.units(metric)
    except (SaebenchError, ValueError, OSError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        notes.append(f"{row.name}: no ranks in {metric}: {one_line(error)}")
        return None


# --- selection of columns -------------------------------------------------------------------------------------------------


def select(board: Board, names: Sequence[str]) -> list[Column]:
    """The columns requested by key, metric, or metric.key; default: the headlines.

    Raises:
        UsageError: no column has such a name; suggests the nearest.
    """
    if not names:
        return board.headlines
    columns = board.columns
    found: list[Column] = []
    for name in names:
        hits = called(columns, name)
        if not hits:
            raise unknown("score", name, {c.key for c in columns} | {c.metric for c in columns})
        found += [c for c in hits if c not in found]
    return found


def called(columns: Sequence[Column], name: str) -> list[Column]:
    """The columns that match a key, a metric, or metric.key."""
    return [c for c in columns if name in (c.key, c.metric, f"{c.metric}.{c.key}", c.name)]
