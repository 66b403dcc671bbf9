"""Measure the members of a panel with ordinary runs, whose records are found again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saebench.audit.panel import Member, Panel
from saebench.board.leaderboard import is_paired, ratios
from saebench.errors import SaebenchError
from saebench.report import Column
from saebench.results import Record
from saebench.runner import execute
from saebench.running.reporting import Reporter
from saebench.running.request import Request
from saebench.stats import Ratio

# Seeds of a metric's own randomness.
RESEEDS = 5


@dataclass(frozen=True)
class Budget:
    """How much is measured, and where records lie.

    Attributes:
        results: folder of the audit's own records.
        limit: contexts; None is all of the task.
    """

    results: Path
    limit: int | None


class Measured:
    """One metric on the members of a panel.

    Attributes:
        panel: the members.
        records: by the member's name; members that could not be measured have none.
    """

    def __init__(self, panel: Panel, metric: str, records: dict[str, Record]) -> None:
        self.panel, self.metric, self.records = panel, metric, records
        self._units: dict[str, pd.DataFrame | None] = {}

    def columns(self) -> list[Column]:
        """The metric's scores that are no points of a curve, in the order of the records."""
        found: dict[str, Column] = {}
        for record in self.records.values():
            for row in record.scores:
                if row["metric"] == self.metric and row["at"] is None:
                    direction = row["direction"] if row["direction"] in ("higher", "lower") else None
                    column = Column(self.metric, row["version"], str(row["key"]), None, str(row["unit"]), direction)
                    found.setdefault(column.key, column)
        return list(found.values())

    def value(self, member: Member, column: Column) -> float | None:
        """The score; None where the member has none."""
        record = self.records.get(member.name)
        rows = [] if record is None else record.scores
        return next((float(row["value"]) for row in rows if _is(row, column)), None)

    def declared(self, member: Member, column: Column) -> Ratio | None:
        """How the score was declared; None for a plain number."""
        record = self.records.get(member.name)
        found = {} if record is None else ratios(record)
        return next((ratio for own, ratio in found.items() if (own.metric, own.key, own.at) == _place(column)), None)

    def paired(self) -> bool:
        """Whether members share their units."""
        return all(is_paired(record, self.metric) for record in self.records.values())

    def units(self, member: Member) -> pd.DataFrame | None:
        """The units behind the member's scores."""
        if member.name not in self._units:
            record = self.records.get(member.name)
            self._units[member.name] = None if record is None else record.units(self.metric)
        return self._units[member.name]


def _place(column: Column) -> tuple[str, str, float | None]:
    return column.metric, column.key, column.at


def _is(row: dict[str, Any], column: Column) -> bool:
    return (row["metric"], row["key"], row["at"]) == _place(column)


def measure(panel: Panel, metric: str, budget: Budget, reporter: Reporter, truth: str | None = None) -> Measured:
    """Every member's record of a metric; `truth`, another metric, is measured in the same pass.

    Raises:
        SaebenchError: no member could be measured; the first one's reason.
    """
    wanted = list(dict.fromkeys(filter(None, [metric, truth])))
    records = _run(panel, panel.members, wanted, budget, 0, reporter)
    failed = next((r.errors[metric] for r in records.values() if metric in r.errors), None)
    if all(metric in record.errors for record in records.values()):
        raise SaebenchError(f"metric '{metric}' failed on every SAE of {panel.name}: {failed}")
    return Measured(panel, metric, records)


def reseeded(panel: Panel, metric: str, budget: Budget, reporter: Reporter) -> list[Record]:
    """The record of the panel's base SAE for each of several seeds of the metric."""
    found: list[Record] = []
    for seed in range(RESEEDS):
        found += _run(panel, [panel.base], [metric], budget, seed, reporter).values()
    return found


def _run(
    panel: Panel, members: Sequence[Member], metrics: Sequence[str], budget: Budget, seed: int, reporter: Reporter
) -> dict[str, Record]:
    distinct: dict[str, Member] = {}  # an SAE is measured once, whatever its name
    for member in members:
        distinct.setdefault(member.sae.sha256(), member)
    request = Request(
        saes=[m.sae for m in distinct.values()], names=[m.name for m in distinct.values()], metrics=metrics, seed=seed,
        results=budget.results, limit=budget.limit, **panel.options,
    )  # fmt: skip
    outcome = execute(request, reporter)
    if not outcome.records:
        raise outcome.failures[0].error if outcome.failures else SaebenchError(f"{panel.name}: nothing was measured")
    by_sha = {str(record.sae["sha256"]): record for record in outcome.records}
    return {m.name: by_sha[sha] for m in members if (sha := m.sae.sha256()) in by_sha}


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over the absolute mean; None where the mean is 0."""
    mean = abs(float(np.mean(values)))
    return float(np.std(values, ddof=1)) / mean if mean > 0 else None
