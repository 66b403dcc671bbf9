"""One SAE in a pass, with its metrics: which of them are alive, what they need, and why the others failed."""

from dataclasses import dataclass, field
from typing import Any

from saebench.errors import SaebenchError, one_line
from saebench.metric import Metric, get_state
from saebench.sae import SAE


@dataclass
class Lane:
    """One SAE on its way through the pass.

    Attributes:
        key: identity of the computation; a saved state is found by it.
        sae: on the model's device, float32.
        metrics: by name; those that read weights only get no batch.
        errors: metric name -> why it failed. A metric that failed gets no further batch and yields no score.
    """

    key: str
    sae: SAE
    metrics: dict[str, Metric]
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def alive(self) -> list[Metric]:
        return [m for name, m in self.metrics.items() if name not in self.errors]

    def states(self) -> dict[str, Any]:
        """The state of every metric that has not failed, by name; one whose state cannot be saved fails here."""
        found = {}
        for metric in self.alive:
            try:
                found[metric.name] = get_state(metric)
            except Exception as error:  # a stranger's metric
                self.fail_metric(metric.name, error)
        return found

    def needs(self, part: str) -> bool:
        """Whether a metric that has not failed needs this part of a batch."""
        return any(part in m.needs for m in self.alive)

    @property
    def edits(self) -> bool:
        """Whether a metric that has not failed adds streams of its own."""
        return any(m.edit_rows for m in self.alive)

    def fail(self, message: str, needing: frozenset[str]) -> None:
        """Mark every metric that needs any of `needing` as failed."""
        for name, metric in self.metrics.items():
            if metric.needs & needing:
                self.errors.setdefault(name, message)

    def fail_metric(self, name: str, error: BaseException) -> None:
        """Mark one metric as failed by an exception of its own."""
        kind = "" if isinstance(error, SaebenchError) else f"{type(error).__name__}: "
        self.errors[name] = kind + one_line(error)
