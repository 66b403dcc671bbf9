"""The report contract: boards of comparable records, and their renderers (hook `saebench_reports`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import pandas as pd

from saebench.metric import Direction
from saebench.presentation import Axis, Presentation
from saebench.results import Record
from saebench.stats import Ratio


@dataclass(frozen=True)
class Column:
    """One score as a column; `version` is the metric's, since numbers of two versions are not comparable."""

    metric: str
    version: int
    key: str
    at: float | None = None
    unit: str = ""
    direction: Direction | None = None

    @property
    def name(self) -> str:
        return f"{self.metric}.{self.key}" + ("" if self.at is None else f"@{self.at:g}")


State = Literal["scored", "missing", "failed"]


@dataclass(frozen=True)
class Cell:
    """One number of a board, or the reason for its absence.

    Attributes:
        state: scored; missing (never measured, or with another version of the metric); failed (measuring it raised).
        rank: 1 + the number of SAEs of the board that are significantly better; None for scores without a direction.
        reason: of a missing interval or number.
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
        name: unique on the board.
        record: the measurement.
        cells: one for every column of the board.
        ratios: declarations of the scores that can be resampled.
        sparsity: position on the board's sparsity axis; if the record has none, from another task's record of the same SAE
            (`reason` names the task).
        parts: the records of one fingerprint that `record` merges; empty for a single one.
    """

    name: str
    record: Record
    cells: dict[Column, Cell]
    ratios: dict[Column, Ratio]
    sparsity: Cell | None = None
    parts: Sequence[Record] = ()

    def units(self, metric: str) -> pd.DataFrame | None:
        """The units of a metric, from the record that contains them; see `Record.units`."""
        entry = self.record.metrics.get(metric)
        return next((p for p in self.parts if p.metrics.get(metric) is entry), self.record).units(metric)


@dataclass(repr=False)
class Board:
    """A table of comparable measurements.

    Attributes:
        model, revision, hook, task, corpus, dtypes: shared by all rows, as text; `dtypes` also names the judge.
        columns: every score that any row has, in the order of the records.
        rows: one per SAE.
        partial: number of records left out because they were made with --limit.
        notes: other omissions with their reasons, one line each.
        variant: difference from another board of the same title, if there is one.
        headlines: the default columns of a table.
        asked: the scores requested by name; empty: tables show the headlines.
        presentations: captions and figures of each metric and version.
        sparsity: the score that rows are drawn, sorted and filtered by; None if no metric declares one.
        better: for each ranked score, a boolean frame: whether the SAE of the row is better than the SAE of the column, by size
            and significance.
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
    variant: str = ""
    headlines: list[Column] = field(default_factory=list)
    asked: list[Column] = field(default_factory=list)
    presentations: Mapping[tuple[str, int], Presentation] = field(default_factory=dict)
    sparsity: Axis | None = None
    better: dict[Column, pd.DataFrame] = field(default_factory=dict, compare=False)

    def presentation(self, column: Column) -> Presentation:
        """The presentation of the column's metric."""
        return self.presentations.get((column.metric, column.version), Presentation())

    def __repr__(self) -> str:
        return f"<Board {self.title}: {len(self.rows)} SAEs, {len(self.columns)} scores>"

    @property
    def title(self) -> str:
        return f"{self.model} · {self.hook} · {self.task}"

    @property
    def shown(self) -> list[Column]:
        """The columns of a table: those requested, else the headlines."""
        return self.asked or [column for column in self.headlines if column in self.columns]


@runtime_checkable
class Report(Protocol):
    """A renderer of boards, found through the hook `saebench_reports`."""

    name: str

    def render(self, boards: Sequence[Board]) -> str | bytes:
        """Render boards as text, or as bytes for a binary format, which the command line never sends to a terminal."""


@runtime_checkable
class PagedReport(Report, Protocol):
    """A renderer of a main file and of further pages in a folder beside it."""

    def render(self, boards: Sequence[Board], folder: str | None = None) -> str:
        """The main file, with links into the folder of that name."""

    def pages(self, boards: Sequence[Board], home: str) -> Mapping[str, str]:
        """The further pages by file name; they link back to the main file `home`, one folder up."""
