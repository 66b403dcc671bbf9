"""Filter and sort the records of boards: by architecture, width, L0 or any score."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from saebench.board.leaderboard import called
from saebench.board.sparsity import Sparsity
from saebench.errors import unknown
from saebench.report import Board, Cell, Column, Row
from saebench.results import Record
from saebench.text import clean


def keep(
    records: Iterable[Record],
    sparsity: Sparsity,
    *,
    task: str | None = None,
    architectures: Collection[str] = (),
    widths: Collection[int] = (),
    max_l0: float | None = None,
) -> list[Record]:
    """The records that pass the filters; ranks are computed among these alone.

    Args:
        sparsity: `measured_sparsity` of all records, since not every task measures it.
        task: name, or name@version.
        architectures: as the checkpoints name them ("topk"), case-insensitive.
        widths: numbers of latents.
        max_l0: largest measured L0; an SAE without a measured L0 is left out.

    Raises:
        UsageError: no record has that task or architecture; names the nearest.
    """
    records = list(records)
    wanted = {name.lower() for name in architectures}
    if task is not None:
        _known("task", task, {name for r in records for name in (str(r.task["name"]), r.task_label)})
    for name in wanted:
        _known("architecture", name, {str(r.sae.get("architecture")).lower() for r in records})
    return [
        r
        for r in records
        if (task is None or task in (r.task["name"], r.task_label))
        and (not wanted or str(r.sae.get("architecture")).lower() in wanted)
        and (not widths or r.sae.get("d_sae") in widths)
        and (max_l0 is None or _value(sparsity.of(r)) <= max_l0)
    ]


def _known(what: str, name: str, names: set[str]) -> None:
    if names and name not in names:
        raise unknown(what, clean(name), {clean(one) for one in names})


def only_scores(boards: Sequence[Board], names: Sequence[str]) -> list[Board]:
    """The boards with only the requested scores (keys, metrics, or metric.key); a board without any of them is left out.

    Raises:
        UsageError: no board has such a score; names the nearest.
    """
    for name in names:
        if not any(called(board.columns, name) for board in boards):
            raise unknown("score", name, {part for b in boards for c in b.columns for part in (c.key, c.metric)})
    found = []
    for board in boards:
        columns = list(dict.fromkeys(c for name in names for c in called(board.columns, name)))
        rows = [replace(row, cells={c: row.cells[c] for c in columns}) for row in board.rows]
        if columns:
            found.append(replace(board, columns=columns, asked=columns, rows=rows))
    return found


def _value(cell: Cell | None) -> float:
    return math.inf if cell is None or cell.value is None else cell.value


def sort_boards(boards: Sequence[Board], by: str) -> list[Board]:
    """The boards with rows sorted by `name`, `architecture`, `width`, `l0` or a score; rows without a value come last.

    A score with a direction is sorted best first, others in ascending order.

    Raises:
        UsageError: no board has such a score; names the nearest.
    """
    about: dict[str, Callable[[Row], Any]] = {
        "name": lambda row: row.name.lower(),
        "architecture": lambda row: str(row.record.sae.get("architecture")).lower(),
        "width": lambda row: _whole(row.record.sae.get("d_sae")),
    }
    about |= {board.sparsity.key: lambda row: _value(row.sparsity) for board in boards if board.sparsity}
    if by in about:
        return [replace(board, rows=sorted(board.rows, key=about[by])) for board in boards]
    known = {name for board in boards for c in board.columns for name in _called(c)} | set(about)
    if by not in known:
        raise unknown("order", by, known)
    return [replace(board, rows=_by_score(board, by)) for board in boards]


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _called(column: Column) -> tuple[str, ...]:
    return column.key, f"{column.metric}.{column.key}", column.name


def _by_score(board: Board, by: str) -> list[Row]:
    hits = [c for c in board.columns if by in _called(c)]
    if not hits:
        return board.rows
    column = next((c for c in hits if c.at is None), hits[0])
    return sorted(board.rows, key=lambda row: _place(row, column))


def _place(row: Row, column: Column) -> tuple[bool, float]:
    value = row.cells[column].value
    if value is None:
        return True, 0.0
    return False, -value if column.direction == "higher" else value
