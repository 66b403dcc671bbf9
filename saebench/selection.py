"""Which records stand on a board, and in which order: by architecture, width, L0 or any score."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from saebench.errors import unknown
from saebench.leaderboard import Board, Column, Row
from saebench.results import Record


def keep(
    records: Iterable[Record],
    *,
    task: str | None = None,
    architectures: Collection[str] = (),
    widths: Collection[int] = (),
    max_l0: float | None = None,
) -> list[Record]:
    """The records that are asked for; ranks are then among those alone.

    Args:
        task: name, or name@version.
        architectures: in the checkpoints' words ("topk"), whatever their case.
        widths: numbers of latents.
        max_l0: measured latents per token at most; a record without an l0 is left out.
    """
    wanted = {name.lower() for name in architectures}
    return [
        r
        for r in records
        if (task is None or task in (r.task["name"], r.task_label))
        and (not wanted or str(r.sae.get("architecture")).lower() in wanted)
        and (not widths or r.sae.get("d_sae") in widths)
        and (max_l0 is None or _l0(r) <= max_l0)
    ]


def _l0(record: Record) -> float:
    try:
        return float(record.score("l0")["value"])
    except KeyError:
        return math.inf


def sort_boards(boards: Sequence[Board], by: str) -> list[Board]:
    """The boards with their rows in order of `name`, `architecture`, `width` or a score; a row without it comes last.

    A score that has a direction puts the best first, one that has none the smallest.

    Raises:
        UsageError: no board has such a score; names the nearest.
    """
    about: dict[str, Callable[[Row], Any]] = {
        "name": lambda row: row.name.lower(),
        "architecture": lambda row: str(row.record.sae.get("architecture")).lower(),
        "width": lambda row: _whole(row.record.sae.get("d_sae")),
    }
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
