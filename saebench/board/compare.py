"""Two records side by side: paired differences with intervals, and a sentence that sums them up."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any

import numpy as np

from saebench.board.groups import differing
from saebench.board.leaderboard import boards, is_paired, select
from saebench.errors import SaebenchError, UsageError, one_line
from saebench.report import Cell, Column
from saebench.results import Record
from saebench.stats import Difference, Verdict, holm, independent_difference, paired_difference, verdict
from saebench.text import clean, interval_text, value_text


@dataclass(frozen=True)
class Line:
    """One score of both SAEs, and B − A on the contexts that they share (None, with a reason, if it cannot be computed).

    Where each SAE has units of its own (`paired` is False), B − A is a difference of independent samples.

    Attributes:
        smallest: the score's smallest difference of interest; None if the metric declares none.
        adjusted: the p-value, corrected over every score of every pair that the comparison shows (Holm).
    """

    column: Column
    a: Cell
    b: Cell
    difference: Difference | None
    reason: str | None = None
    paired: bool = True
    smallest: float | None = None
    adjusted: float | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict on B − A; see `saebench.stats.verdict`."""
        return verdict(self.difference, self.column.direction, self.smallest, self.adjusted)


@dataclass(frozen=True, repr=False)
class Comparison:
    """B against A, score by score."""

    a: str
    b: str
    lines: list[Line]

    @property
    def sentence(self) -> str:
        """Summary of the lines: the better SAE by score and margin, negligible differences, and confounding scores."""
        parts = []
        for kind, words in (("better", f"{self.b} is better than {self.a} in"), ("worse", f"{self.a} is better in")):
            if found := [_by(line) for line in self.lines if line.verdict == kind]:
                parts.append(f"{words} {_join(found)}")
        if small := [line.column.key for line in self.lines if line.verdict == "negligible"]:
            parts.append(f"differences in {_join(small)} are negligible")
        if same := [line.column.key for line in self.lines if line.verdict == "same"]:
            parts.append(f"no difference was seen in {_join(same)}")
        differs = [line for line in self.lines if line.verdict == "differs"]
        if differs:
            both = [f"{line.column.key} ({line.a.value:.4g} and {line.b.value:.4g})" for line in differs]
            parts.append(
                f"they differ in {_join(both)}, so compare them at equal {_join([d.column.key for d in differs])}"
            )
        return "; ".join(parts) + "." if parts else f"No score of {self.a} and {self.b} could be compared."

    def __repr__(self) -> str:
        return f"<Comparison of {self.b} against {self.a}: {self.sentence}>"

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        head = "".join(
            f"<th>{escape(t)}</th>" for t in ("score", self.a, self.b, "B − A", "95 % interval", "p", "verdict")
        )
        body = "".join(f"<tr>{''.join(f'<td>{escape(t)}</td>' for t in _texts(line))}</tr>" for line in self.lines)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{escape(self.sentence)}</p>"

    def to_json(self) -> dict[str, Any]:
        """Plain values; `difference` is B − A."""
        lines = [
            {
                "score": line.column.name,
                "a": line.a.value,
                "b": line.b.value,
                "difference": None if line.difference is None else asdict(line.difference),
                "verdict": line.verdict,
                "adjusted_p_value": line.adjusted,
                "smallest_difference": line.smallest,
                "reason": line.reason,
                "paired": line.paired,
            }
            for line in self.lines
        ]
        return {"a": self.a, "b": self.b, "scores": lines, "sentence": self.sentence}


def _texts(line: Line) -> list[str]:
    """A line's cells as text."""
    found = line.difference
    shown = None if found is None else Cell("scored", found.value, found.low, found.high)
    difference = ["", ""] if shown is None else [value_text(shown), interval_text(shown)]
    p_value = None if found is None else found.p_value if line.adjusted is None else line.adjusted
    p = "" if p_value is None else f"{p_value:.2g}"
    return [clean(line.column.key), value_text(line.a), value_text(line.b), *difference, p, line.verdict]


def compare(records: Sequence[Record], scores: Sequence[str] = ()) -> list[Comparison]:
    """Compare the first record with each of the others, on the requested scores (default: the headlines).

    Raises:
        UsageError: fewer than two records, or an unknown score.
        SaebenchError: incomparable records; names the parts in which they differ.
    """
    if len(records) < 2:
        raise UsageError("compare needs two records or more")
    first = records[0]
    for other in records[1:]:
        _comparable(first, other)
    return _corrected([_compare(first, other, scores) for other in records[1:]])


def _corrected(found: list[Comparison]) -> list[Comparison]:
    """The comparisons with p-values adjusted over all of their lines together."""
    lines = [line for comparison in found for line in comparison.lines]
    p = [line.difference.p_value if line.difference else None for line in lines]
    adjusted = iter(holm([np.nan if value is None else value for value in p]).tolist())
    return [
        replace(
            comparison,
            lines=[
                replace(line, adjusted=None if np.isnan(value := next(adjusted)) else value)
                for line in comparison.lines
            ],
        )
        for comparison in found
    ]


def _comparable(a: Record, b: Record) -> None:
    one, two = differing([a.group, b.group])
    parts = [f"{name} ({one[name]} and {two[name]})" for name in one]
    if a.fingerprint == b.fingerprint:
        raise SaebenchError(f"{clean(a.sae['name'])}: the same measurement twice; name two different SAEs")
    if a.partial != b.partial:
        parts.append("one is partial (--limit)")
    if parts:
        raise SaebenchError(
            f"{clean(a.sae['name'])} and {clean(b.sae['name'])} are not comparable: they differ in {_join(parts)}; "
            "run both with the same model, hook point, task and dtype"
        )


def _compare(a: Record, b: Record, scores: Sequence[str]) -> Comparison:
    # A board of two makes equal names distinct and explains missing scores.
    [board] = boards([a, b], partial=True)
    one, two = board.rows
    lines = []
    for column in select(board, scores):
        left, right = one.cells[column], two.cells[column]
        difference, reason = None, left.reason or right.reason
        paired = is_paired(a, column.metric) and is_paired(b, column.metric)
        declared = one.ratios.get(column)
        if declared is not None and declared == two.ratios.get(column):
            try:
                units = [record.units(column.metric) for record in (b, a)]
                if units[0] is not None and units[1] is not None:
                    between = paired_difference if paired else independent_difference
                    difference = between(units[0], units[1], declared)
                    reason = difference.no_interval
            except SaebenchError as error:
                reason = one_line(error)
        elif left.value is not None and right.value is not None:
            reason = (
                reason or "only ratios of sums over units, declared alike in both records, have a paired difference"
            )
        size = board.presentation(column).smallest.get(column.key)
        lines.append(Line(column, left, right, difference, reason, paired, size))
    return Comparison(clean(one.name), clean(two.name), lines)


def _by(line: Line) -> str:
    found = line.difference
    assert found is not None
    if found.low is None or found.high is None:
        return f"{line.column.key} by {abs(found.value):.3g}"
    low, high = sorted((abs(found.low), abs(found.high)))
    return f"{line.column.key} by {low:.3g} to {high:.3g}"


def _join(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
