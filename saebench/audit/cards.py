"""From records of a panel to the card of each score."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from scipy.stats import kendalltau

from saebench.audit.degrade import LADDER
from saebench.audit.measure import Measured, spread
from saebench.audit.panel import Member
from saebench.errors import SaebenchError
from saebench.reliability import ScoreCard
from saebench.report import Column
from saebench.results import Record
from saebench.stats import Difference, holm, independent_difference, paired_difference
from saebench.stats.ranks import ALPHA
from saebench.stats.replicates import Replicates, pooled_variance, replicated_difference, replicates

# Members that a rank correlation needs.
_FEW = 4


class Judged:
    """The statistics of one score over a panel.

    Attributes:
        measured: the metric on the panel.
        column: the score.
    """

    def __init__(self, measured: Measured, column: Column) -> None:
        self.measured, self.column = measured, column
        self.members = [m for m in measured.panel.members if measured.value(m, column) is not None]
        self.missing: dict[str, str] = {}

    def card(self, reseeds: Sequence[Record] | None, truth: dict[str, float] | None) -> ScoreCard:
        """The card.

        Args:
            reseeds: records of one SAE under several seeds; None where the metric has no randomness of its own.
            truth: the planted truth of each member; None where nothing is planted.
        """
        cells = self._cells()
        seed_sd = self._seed_sd(cells)
        told, pairs = self._recipes(cells)
        card = ScoreCard(
            self.column.key, self.column.unit, self.column.direction, panel=self.measured.panel.name,
            reseed_cv=self._reseed_cv(reseeds), smallest_difference=self._smallest(cells), seed_sd=seed_sd,
            discriminability=told, pairs=pairs, monotone=self._monotone(), floor=self._floor(), values=self._values(),
        )  # fmt: skip
        card = self._with_truth(card, truth)
        return replace(self._with_copies(card, seed_sd), missing=self.missing)

    def value(self, member: Member) -> float:
        found = self.measured.value(member, self.column)
        assert found is not None  # self.members have one
        return found

    @property
    def sign(self) -> int:
        return -1 if self.column.direction == "lower" else 1

    def _none(self, name: str, reason: str) -> float | None:
        """None, with the reason why."""
        self.missing[name] = reason
        return None

    def _cells(self) -> dict[float, dict[str, list[Member]]]:
        """Recipes' members by level and recipe."""
        cells: dict[float, dict[str, list[Member]]] = {}
        for m in self.members:
            if m.role == "recipe":
                cells.setdefault(m.level, {}).setdefault(m.recipe, []).append(m)
        return cells

    def _values(self) -> dict[str, dict[str, tuple[float, ...]]]:
        found: dict[str, dict[str, tuple[float, ...]]] = {}
        for m in self.members:
            if m.role in ("recipe", "control", "floor"):
                name = m.sae.metadata.architecture if m.role == "control" else m.recipe
                level = found.setdefault(name, {})
                level[f"{m.level:g}"] = (*level.get(f"{m.level:g}", ()), self.value(m))
        return found

    def _reseed_cv(self, reseeds: Sequence[Record] | None) -> float | None:
        if reseeds is None:
            return self._none("reseed_cv", "no randomness of its own")
        rows = [row for r in reseeds for row in r.scores]
        same = [
            row for row in rows if (row["metric"], row["key"], row["at"]) == (self.column.metric, self.column.key, None)
        ]
        if len(same) < 2:
            return self._none("reseed_cv", "no score under several seeds")
        return spread([float(row["value"]) for row in same])

    def _seed_sd(self, cells: dict[float, dict[str, list[Member]]]) -> float | None:
        groups = [
            Replicates(np.array([self.value(m) for m in own])) for level in cells.values() for own in level.values()
        ]
        variance, degrees = pooled_variance(groups)
        return float(variance**0.5) if degrees else self._none("seed_sd", "one training seed of each recipe")

    def difference(self, a: Member, b: Member) -> Difference | None:
        """Score of A minus score of B from one run of each; None for a score without units."""
        declared = self.measured.declared(a, self.column)
        units = self.measured.units(a), self.measured.units(b)
        if (
            declared is None
            or declared != self.measured.declared(b, self.column)
            or units[0] is None
            or units[1] is None
        ):
            return None
        between = paired_difference if self.measured.paired() else independent_difference
        try:
            return between(units[0], units[1], declared)
        except SaebenchError:
            return None

    def _smallest(self, cells: dict[float, dict[str, list[Member]]]) -> float | None:
        level = cells.get(self.measured.panel.middle, {})
        found = [self.difference(a[0], b[0]) for a, b in combinations(level.values(), 2)]
        widths = [(d.high - d.low) / 2 for d in found if d is not None and d.low is not None and d.high is not None]
        return float(np.median(widths)) if widths else self._none("smallest_difference", "no interval of a difference")

    # --- recipes at matched L0 ----------------------------------------------------------------------------------------

    def _recipes(self, cells: dict[float, dict[str, list[Member]]]) -> tuple[float | None, int]:
        """The share of pairs told apart, and how many pairs were tested."""
        told: list[bool] = []
        for level in cells.values():
            found = self._pairs(list(level.values()))
            told += [bool(p <= ALPHA) for p in holm(found) if not np.isnan(p)]
        if not told:
            return self._none("discriminability", "no test of a pair of recipes"), 0
        return float(np.mean(told)), len(told)

    def _pairs(self, recipes: Sequence[Sequence[Member]]) -> list[float]:
        """p-values of all pairs at one level: seeds are replicates where there are any, else one run against another."""
        if max(map(len, recipes), default=0) < 2:
            found = [self.difference(a[0], b[0]) for a, b in combinations(recipes, 2)]
        else:
            groups = self._replicates(recipes)
            pooled = pooled_variance(groups)
            found = [replicated_difference(a, b, pooled) for a, b in combinations(groups, 2)]
        return [np.nan if d is None or d.p_value is None else d.p_value for d in found]

    def _replicates(self, recipes: Sequence[Sequence[Member]]) -> list[Replicates]:
        """With the documents' noise where members share their units."""
        declared = {self.measured.declared(m, self.column) for own in recipes for m in own}
        units = [[frame for m in own if (frame := self.measured.units(m)) is not None] for own in recipes]
        [one] = declared if len(declared) == 1 else [None]
        if one is not None and self.measured.paired() and list(map(len, units)) == list(map(len, recipes)):
            try:
                return replicates(units, one)
            except SaebenchError:
                pass  # no interval over documents: the seeds' variance is all there is
        return [Replicates(np.array([self.value(m) for m in own])) for own in recipes]

    # --- degraded copies ----------------------------------------------------------------------------------------------

    def _with_copies(self, card: ScoreCard, seed_sd: float | None) -> ScoreCard:
        """Degraded copies: told from their original by documents; without units, by twice the standard deviation over seeds."""
        by_name = {m.name: m for m in self.members}
        copies = [(m, by_name[m.base]) for m in self.members if m.base in by_name]
        changes = [self.sign * (self.value(copy) - self.value(original)) for copy, original in copies]
        found = [self.difference(copy, original) for copy, original in copies]
        adjusted = holm([np.nan if d is None or d.p_value is None else d.p_value for d in found])
        told: list[tuple[Member, bool, float]] = []
        for (copy, _), change, p in zip(copies, changes, adjusted, strict=True):
            if not np.isnan(p):
                told.append((copy, bool(p <= ALPHA), change))
            elif seed_sd is not None:
                told.append((copy, abs(change) > 2 * seed_sd, change))
        if not told:
            self._none("degraded", "no test against a degraded copy")
            self._none("ladder", "no test against a degraded copy")
            return card
        right = [apart and (change < 0 or self.column.direction is None) for _, apart, change in told]
        wrong = [apart and change > 0 and self.column.direction is not None for _, apart, change in told]
        rungs = [[ok for (copy, _, _), ok in zip(told, right, strict=True) if copy.how == how] for how in LADDER]
        return replace(
            card,
            degraded=float(np.mean(right)),
            wrong_way=float(np.mean(wrong)),
            copies=len(told),
            ladder=_ladder(rungs),
        )

    # --- order --------------------------------------------------------------------------------------------------------

    def _monotone(self) -> float | None:
        run = sorted((m for m in self.members if m.role == "snapshot"), key=lambda m: m.share)
        if len(run) < _FEW:
            return self._none("monotone", "no snapshots of a training run")
        return self._tau("monotone", [m.share for m in run], [self.sign * self.value(m) for m in run])

    def _with_truth(self, card: ScoreCard, truth: dict[str, float] | None) -> ScoreCard:
        known = [m for m in self.members if truth is not None and m.name in truth]
        if truth is None or len(known) < _FEW:
            self._none("truth", "nothing is planted in a language model" if truth is None else "too few members")
            return card
        by: Callable[[Sequence[Member]], float | None] = lambda some: self._tau(  # noqa: E731
            "truth", [truth[m.name] for m in some], [self.sign * self.value(m) for m in some]
        )
        levels = [[m for m in known if m.level == level] for level in self.measured.panel.levels]
        matched = [tau for some in levels if len(some) >= _FEW and (tau := by(some)) is not None]
        return replace(card, truth=by(known), truth_matched=float(np.mean(matched)) if matched else None)

    def _tau(self, name: str, first: Sequence[float], second: Sequence[float]) -> float | None:
        tau = float(kendalltau(first, second).statistic)
        return self._none(name, "the score does not vary") if np.isnan(tau) else tau

    def _floor(self) -> float | None:
        values = [self.value(m) for m in self.members if m.role == "floor" and m.level == self.measured.panel.middle]
        return float(np.mean(values)) if values else self._none("floor", "no random SAE in the panel")


def _ladder(rungs: Sequence[Sequence[bool]]) -> str | None:
    """The smallest rung from which on most copies are told apart."""
    least = "none"
    for name, told in reversed(list(zip(LADDER, rungs, strict=True))):
        if not told or np.mean(told) <= 0.5:
            break
        least = name
    return least
