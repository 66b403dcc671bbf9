"""Architectures compared at matched L0, with training seeds as replicates.

SAEs of one architecture and width form levels of L0, and the SAEs of a level are its seeds. At the matched L0 the score of an
architecture is interpolated between the two levels around it, linearly in log L0; a level within 5 % stands for itself. Its
interval holds the noise of training seeds and of documents (`saebench.stats.replicates`), and Holm corrects over all scores and
all pairs shown.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from saebench.board.leaderboard import boards, is_paired, select
from saebench.board.sparsity import measured_sparsity
from saebench.errors import SaebenchError, UsageError
from saebench.report import Board, Column, Row
from saebench.results import Record
from saebench.stats import Difference, Verdict, holm, verdict
from saebench.stats.ranks import ALPHA
from saebench.stats.replicates import (
    Interpolated,
    Replicates,
    interpolate,
    interpolated_difference,
    replicates,
    replicates_of_values,
)

# A level this near to the matched L0 stands for it; levels lie further apart than the seeds of one.
_NEAR = 0.05
_GAP = 1.2


@dataclass(frozen=True)
class Level:
    """SAEs of one architecture at about one L0.

    Attributes:
        l0: geometric mean.
        rows: one per training seed.
    """

    l0: float
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Placed:
    """An architecture's score at the matched L0; low, high and rank are None where it has one seed only.

    Attributes:
        architecture: its name.
        saes: SAEs that enter.
        value, low, high: the interpolated score and its 95 % interval.
        rank: one plus the number of architectures that are better by size and significance.
        reason: why there is no interval.
    """

    architecture: str
    saes: int
    value: float
    low: float | None
    high: float | None
    rank: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Contrast:
    """Architecture B minus architecture A."""

    a: str
    b: str
    difference: Difference
    adjusted: float | None
    verdict: Verdict


@dataclass(frozen=True)
class ScoreBoard:
    """One score of all architectures at the matched L0."""

    column: Column
    rows: tuple[Placed, ...]
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True)
class ArchitectureBoard:
    """All scores of a board's architectures.

    Attributes:
        title: model, hook point and task.
        l0: the matched L0.
        scores: one per score shown.
        family: comparisons that Holm corrects for.
        notes: architectures left out, and why.
    """

    title: str
    l0: float
    scores: tuple[ScoreBoard, ...]
    family: int
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def by_architecture(
    records: Sequence[Record], scores: Sequence[str] = (), l0: float | None = None
) -> list[ArchitectureBoard]:
    """Each board's architectures at matched L0.

    Args:
        records: of any number of tasks; boards with fewer than two architectures are left out.
        scores: keys; empty is the headlines that have a direction.
        l0: the matched L0; None is the level that most architectures have seeds at.

    Raises:
        UsageError: no such score, an L0 that is not positive, or no board with two architectures.
    """
    if l0 is not None and not (math.isfinite(l0) and l0 > 0):
        raise UsageError(f"--l0 {l0}: expected a positive number of latents")
    found = []
    for board in boards(records, measured_sparsity(records), partial=True):
        levels = {name: _levels(rows) for name, rows in _architectures(board).items()}
        levels = {name: own for name, own in levels.items() if own}
        if len(levels) > 1:
            found.append(_board(board, levels, scores, l0 or _common(levels)))
    if not found:
        raise UsageError("no task with SAEs of two architectures and a measured L0: name another --results, or --task")
    return found


def _architectures(board: Board) -> dict[str, list[Row]]:
    """Rows by architecture, and by width where there are several."""
    widths = {row.record.sae["d_sae"] for row in board.rows}
    found: dict[str, list[Row]] = {}
    for row in board.rows:
        name = str(row.record.sae["architecture"])
        found.setdefault(f"{name} {row.record.sae['d_sae']}" if len(widths) > 1 else name, []).append(row)
    return found


def _levels(rows: Sequence[Row]) -> list[Level]:
    known = sorted(
        ((cell.value, row) for row in rows if (cell := row.sparsity) and cell.value), key=lambda pair: pair[0]
    )
    groups: list[list[tuple[float, Row]]] = []
    for value, row in known:
        if groups and value <= _GAP * groups[-1][0][0]:
            groups[-1].append((value, row))
        else:
            groups.append([(value, row)])
    return [
        Level(math.exp(sum(math.log(v) for v, _ in group) / len(group)), tuple(row for _, row in group))
        for group in groups
    ]


def _common(levels: dict[str, list[Level]]) -> float:
    """The level that most architectures have replicates at; the largest number of SAEs decides between equals."""
    counts: Counter[float] = Counter()
    for own in levels.values():
        for level in own:
            near = [x for other in levels.values() for x, _ in _around(other, level.l0) or [] if len(x.rows) > 1]
            counts[level.l0] = len(near)
    [(best, _)] = counts.most_common(1)
    return round(best) if abs(round(best) - best) <= _NEAR * best and round(best) else best


def _around(levels: Sequence[Level], l0: float) -> list[tuple[Level, float]] | None:
    """The levels to interpolate between, with weights; None where the L0 is out of their range."""
    near = min(levels, key=lambda level: abs(math.log(level.l0 / l0)))
    if abs(near.l0 / l0 - 1) <= _NEAR:
        return [(near, 1.0)]
    below = [level for level in levels if level.l0 < l0]
    above = [level for level in levels if level.l0 > l0]
    if not below or not above:
        return None
    low, high = below[-1], above[0]
    share = math.log(l0 / low.l0) / math.log(high.l0 / low.l0)
    return [(low, 1 - share), (high, share)]


def _board(board: Board, levels: dict[str, list[Level]], scores: Sequence[str], l0: float) -> ArchitectureBoard:
    around = {name: found for name, own in levels.items() if (found := _around(own, l0))}
    notes = [
        f"{name}: no SAE within {_NEAR:.0%} of L0 {l0:g}, nor on both sides" for name in levels if name not in around
    ]
    columns = [c for c in select(board, scores) if scores or c.direction is not None]
    placed = [(column, _interpolated(board, column, around)) for column in columns]
    pairs = [list(combinations(own, 2)) for _, own in placed]
    differences = [
        [interpolated_difference(own[b], own[a]) for a, b in some] for (_, own), some in zip(placed, pairs, strict=True)
    ]
    adjusted = iter(holm([math.nan if d.p_value is None else d.p_value for some in differences for d in some]))
    out, family = [], 0
    for (column, own), some, theirs in zip(placed, pairs, differences, strict=True):
        smallest = board.presentation(column).smallest.get(column.key)
        contrasts = []
        for (a, b), difference in zip(some, theirs, strict=True):
            p = next(adjusted)
            known = None if math.isnan(p) else float(p)
            family += known is not None
            result = verdict(difference if known is not None else None, column.direction, smallest, known, ALPHA)
            contrasts.append(Contrast(a, b, difference, known, result))
        out.append(ScoreBoard(column, _rows(around, own, contrasts), tuple(contrasts)))
    return ArchitectureBoard(f"{board.model} · {board.hook} · {board.task}", l0, tuple(out), family, notes)


def _interpolated(
    board: Board, column: Column, around: dict[str, list[tuple[Level, float]]]
) -> dict[str, Interpolated]:
    """Each architecture's score at the matched L0; those without the score are left out."""
    cells = {
        name: [
            (level, weight) for level, weight in own if all(row.cells[column].value is not None for row in level.rows)
        ]
        for name, own in around.items()
    }
    cells = {name: own for name, own in cells.items() if len(own) == len(around[name])}
    groups = _replicates(column, [level.rows for own in cells.values() for level, _ in own])
    found, place = {}, 0
    for name, own in cells.items():
        found[name] = interpolate(groups[place : place + len(own)], [weight for _, weight in own])
        place += len(own)
    return found


def _replicates(column: Column, levels: Sequence[Sequence[Row]]) -> list[Replicates]:
    """With the documents' noise where SAEs share their units."""
    rows = [row for level in levels for row in level]
    declared = {row.ratios.get(column) for row in rows}
    [one] = declared if len(declared) == 1 else [None]
    if one is not None and all(is_paired(row.record, column.metric) for row in rows):
        try:
            frames = [[frame for row in level if (frame := row.units(column.metric)) is not None] for level in levels]
            if [len(some) for some in frames] == [len(level) for level in levels]:
                return replicates(frames, one)
        except SaebenchError:
            pass  # no interval over documents: the seeds' variance is all there is
    return [replicates_of_values([float(row.cells[column].value or 0.0) for row in level]) for level in levels]


def _rows(
    around: dict[str, list[tuple[Level, float]]], own: dict[str, Interpolated], contrasts: Sequence[Contrast]
) -> tuple[Placed, ...]:
    beaten: Counter[str] = Counter()
    for contrast in contrasts:
        beaten[contrast.a] += contrast.verdict == "better"
        beaten[contrast.b] += contrast.verdict == "worse"
    rows = []
    for name, found in own.items():
        low, high, reason = found.interval()
        saes = sum(len(level.rows) for level, _ in around[name])
        rows.append(Placed(name, saes, found.value, low, high, None if low is None else 1 + beaten[name], reason))
    return tuple(rows)
