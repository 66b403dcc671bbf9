"""Records -> boards: what may be compared, side by side, with ranks. It prints nothing and knows no metric.

A board holds the records of one group (`Record.group`): one language model, place, task, corpus and arithmetic. Nothing
else is comparable, so nothing else ever stands in one table.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import pandas as pd

from saebench.errors import SaebenchError, one_line, unknown
from saebench.results import Record
from saebench.stats import Ratio, ranks

if TYPE_CHECKING:
    from saebench.metric import Direction

# Two runs of one fingerprint may differ by rounding inside the model (metrics.md: 1e-5, more where a score is a small
# difference of large sums). Beyond this, and beyond a hundredth of the interval, they contradict each other.
_AGREE = 1e-4


@dataclass(frozen=True)
class Column:
    """One score as a column: `version` is the metric's, since numbers of two versions are not comparable."""

    metric: str
    version: int
    key: str
    at: float | None = None
    unit: str = ""
    direction: "Direction | None" = None

    @property
    def name(self) -> str:
        return f"{self.metric}.{self.key}" + ("" if self.at is None else f"@{self.at:g}")


State = Literal["scored", "missing", "failed"]


@dataclass(frozen=True)
class Cell:
    """One number of a board, or why there is none.

    Attributes:
        state: scored; missing (never measured, or with another version of the metric); failed (measuring it raised).
        rank: 1 + the number of SAEs of the board that are significantly better; None for scores that no one wins.
        reason: why there is no interval, or no number.
    """

    state: State
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    rank: int | None = None
    reason: str | None = None


@dataclass
class Row:
    """One SAE of a board.

    Attributes:
        name: what no other row of the board is called.
        record: what it was measured in.
        cells: one for every column of the board.
        ratios: how those scores were declared that can be resampled.
    """

    name: str
    record: Record
    cells: dict[Column, Cell]
    ratios: dict[Column, Ratio]


@dataclass
class Board:
    """Everything that is comparable with each other.

    Attributes:
        model, revision, hook, task, corpus, dtypes: what all rows share, in words; the judge stands behind the dtypes.
        columns: every score that any row has, in the order of the records.
        rows: one per SAE.
        partial: how many records were left out because they were made with --limit.
        notes: what else was left out, and why; one line each.
    """

    model: str
    revision: str | None
    hook: str
    task: str
    corpus: str
    dtypes: str
    columns: list[Column] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    partial: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.model} · {self.hook} · {self.task}"


@runtime_checkable
class Report(Protocol):
    """A renderer of boards, found through the hook `saebench_reports`."""

    name: str

    def render(self, boards: Sequence[Board]) -> str | bytes:
        """The boards as text in this format; bytes for a binary one, which the command line never sends to a terminal."""


def boards(records: Iterable[Record]) -> list[Board]:
    """Records grouped into boards, with ranks, in the order in which their groups first appear.

    Partial records are counted and left out; records of one fingerprint are merged, or refused where they disagree.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    return [_board(members) for members in groups.values()]


def _board(records: list[Record]) -> Board:
    board = _empty(records[0])
    board.partial = sum(r.partial for r in records)
    kept = _merge_duplicates([r for r in records if not r.partial], board.notes)
    board.columns = list(dict.fromkeys(column for r in kept for column in columns_of(r)))
    for name, record in zip(_names(kept), kept, strict=True):
        scores = {_column(row): row for row in record.scores}
        cells = {column: _cell(column, record, scores.get(column)) for column in board.columns}
        board.rows.append(Row(name, record, cells, ratios(record)))
        board.notes += [f"{name}: {metric} failed: {message}" for metric, message in record.errors.items()]
    _rank(board)
    return board


def _empty(record: Record) -> Board:
    dtypes = f"{record.settings['model_dtype']}/{record.settings['sae_dtype']}"
    judge = record.settings.get("judge")
    if isinstance(judge, dict):
        dtypes += f" · judge {judge.get('provider')}:{judge.get('model')}"
    return Board(
        model=str(record.model["id"]),
        revision=record.model.get("revision"),
        hook=record.hook_out,
        task=f"{record.task['name']}@{record.task['version']}",
        corpus=str(record.corpus["fingerprint"])[:12],
        dtypes=dtypes,
    )


def columns_of(record: Record) -> list[Column]:
    """The scores of a record, as columns."""
    return [_column(row) for row in record.scores]


def _column(row: dict[str, Any]) -> Column:
    direction = row["direction"] if row["direction"] in ("higher", "lower") else None
    return Column(str(row["metric"]), row["version"], str(row["key"]), row["at"], str(row["unit"]), direction)


def ratios(record: Record) -> dict[Column, Ratio]:
    """How the scores of a record were declared, those that can be resampled."""
    return {
        _column(row): Ratio(row["num"], row["den"], row["offset"], row["scale"])
        for row in record.scores
        if row["num"] is not None and row["den"] is not None
    }


def is_paired(record: Record, metric: str) -> bool:
    """Whether the metric's units are the same things for every SAE."""
    return bool(record.metrics.get(metric, {}).get("paired", True))


def _cell(column: Column, record: Record, row: dict[str, Any] | None) -> Cell:
    if row is not None:
        return Cell("scored", row["value"], row["low"], row["high"], row["n"], reason=row["no_interval"])
    if column.metric in record.errors:
        return Cell("failed", reason=record.errors[column.metric])
    measured = record.metrics.get(column.metric)
    if measured is None:
        return Cell("missing", reason="not measured")
    if measured["version"] != column.version:
        other = measured["version"]
        return Cell("missing", reason=f"measured with {column.metric} version {other}, not {column.version}")
    return Cell("missing", reason=f"{column.metric} gave no such score")


def _names(records: Sequence[Record]) -> list[str]:
    """Each record's SAE by name, with its hash and then a number where that is needed to tell it from the others."""
    names = [str(r.sae["name"])[:200] for r in records]
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


def _merge_duplicates(records: list[Record], notes: list[str]) -> list[Record]:
    """One record per fingerprint: the one with the most metrics. Those that contradict each other are all refused."""
    by_print: dict[str, list[Record]] = {}
    for record in records:
        by_print.setdefault(record.fingerprint, []).append(record)
    kept = []
    for same in by_print.values():
        clash = next((c for other in same[1:] if (c := conflict(same[0], other))), None)
        if clash:
            where = " and ".join(sorted({str(r.path) for r in same}))
            notes.append(f"{same[0].sae['name']}: refused, two records of one fingerprint disagree: {clash} ({where})")
        else:
            kept.append(max(same, key=lambda r: len(set(r.metrics) - set(r.errors))))
    return kept


def conflict(a: Record, b: Record) -> str | None:
    """In which score two records of one fingerprint disagree by more than rounding; quantiles and counts may jump."""
    theirs = {_column(row): row for row in b.scores}
    for row in a.scores:
        other = theirs.get(_column(row))
        if other is None or row["num"] is None:
            continue
        width = 0.0 if row["low"] is None or row["high"] is None else row["high"] - row["low"]
        if abs(row["value"] - other["value"]) > max(_AGREE * abs(row["value"]), 0.01 * width):
            return f"{row['key']} is {row['value']:.6g} in one and {other['value']:.6g} in the other"
    return None


# --- ranks -----------------------------------------------------------------------------------------------------------


def _rank(board: Board) -> None:
    """Fill in the ranks: every score with a direction and columns in the units, over the SAEs that have it."""
    units: dict[str, list[pd.DataFrame | None]] = {}
    for column in board.columns:
        declared = next((row.ratios[column] for row in board.rows if column in row.ratios), None)
        if column.direction is None or declared is None:
            continue
        if column.metric not in units:
            units[column.metric] = [_units(row, column.metric, board.notes) for row in board.rows]
        frames = units[column.metric]
        able = [i for i, row in enumerate(board.rows) if row.ratios.get(column) == declared and frames[i] is not None]
        try:
            paired = all(is_paired(board.rows[i].record, column.metric) for i in able)
            places = ranks([f for i in able if (f := frames[i]) is not None], declared, column.direction, paired=paired)
        except SaebenchError as error:
            board.notes.append(f"no ranks in {column.name}: {one_line(error)}")
            continue
        for i, place in zip(able, places, strict=True):
            board.rows[i].cells[column] = replace(board.rows[i].cells[column], rank=place)


def _units(row: Row, metric: str, notes: list[str]) -> pd.DataFrame | None:
    """The units behind a row's scores; where they cannot be read, a note, and the row goes without ranks."""
    try:
        return row.record.units(metric)
    except (SaebenchError, ValueError, OSError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        notes.append(f"{row.name}: no ranks in {metric}: {one_line(error)}")
        return None


# --- what to look at -------------------------------------------------------------------------------------------------

# What people see first, where it was measured. A metric with none of these shows all its scores that have a direction.
HEADLINES = ("explained_variance", "loss_recovered_zero", "loss_recovered_mean", "ce_increase", "kl", "l0",
             "dead_fraction")  # fmt: skip


def headlines(columns: Sequence[Column]) -> list[Column]:
    """The columns for a table that people read; curves never are."""
    scalars = [c for c in columns if c.at is None]
    known = {c.metric for c in scalars if c.key in HEADLINES}
    first = sorted((c for c in scalars if c.key in HEADLINES), key=lambda c: HEADLINES.index(c.key))
    return first + [c for c in scalars if c.metric not in known and c.direction is not None]


def select(columns: Sequence[Column], names: Sequence[str]) -> list[Column]:
    """The columns that are asked for by key, metric, or metric.key; headlines if nothing is.

    Raises:
        UsageError: nothing is called that.
    """
    if not names:
        return headlines(columns)
    found: list[Column] = []
    for name in names:
        hits = [c for c in columns if name in (c.key, c.metric, f"{c.metric}.{c.key}", c.name)]
        if not hits:
            raise unknown("score", name, {c.key for c in columns} | {c.metric for c in columns})
        found += [c for c in hits if c not in found]
    return found
