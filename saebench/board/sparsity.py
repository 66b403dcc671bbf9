"""The sparsity axis: the score that measures sparsity, and its value for each SAE, measured on any task."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from saebench.board.presented import presentations
from saebench.presentation import Axis
from saebench.report import Cell
from saebench.results import Record

# (SAE sha256, model sha256, hook point): the key of a sparsity, independent of the text.
Site = tuple[str, str, str]


def site(record: Record) -> Site:
    """The SAE's function, the language model and the hook point of a record."""
    return str(record.sae["sha256"]), str(record.model["sha256"]), record.hook


@dataclass(frozen=True)
class Sparsity:
    """The sparsity of every SAE of some records.

    Attributes:
        axis: the declared score; None if no record has one.
        metric: the metric of that score.
        cells: each SAE's value from its complete record with the most tokens; `reason` names that record's task.
    """

    axis: Axis | None = None
    metric: str = ""
    cells: dict[Site, Cell] = field(default_factory=dict)

    def of(self, record: Record) -> Cell | None:
        """The record's own value, else the value from another task's record of the same SAE."""
        return self.own(record) or self.cells.get(site(record))

    def own(self, record: Record) -> Cell | None:
        """The record's own value."""
        if self.axis is None:
            return None
        try:
            row = record.score(self.axis.key, self.metric)
        except KeyError:
            return None
        return Cell("scored", row["value"], row["low"], row["high"], row["n"])


def measured_sparsity(records: Iterable[Record]) -> Sparsity:
    """The sparsity of every SAE of the records, on the one declared axis that most of them have; axes are never mixed."""
    records = list(records)
    axes: Counter[tuple[str, Axis]] = Counter()
    declared = {key: shown.sparsity for key, shown in presentations(records, []).items() if shown.sparsity}
    for record in records:
        for metric, entry in record.metrics.items():
            axis = declared.get((metric, entry["version"]))
            if axis is not None and Sparsity(axis, metric).own(record):
                axes[metric, axis] += 1
    if not axes:
        return Sparsity()
    (metric, axis), _ = axes.most_common(1)[0]
    found = Sparsity(axis, metric)
    for record in records:
        cell, place = found.own(record), site(record)
        if cell and not record.partial and (place not in found.cells or (cell.n or 0) > (found.cells[place].n or 0)):
            found.cells[place] = replace(cell, reason=record.task_label)
    return found
