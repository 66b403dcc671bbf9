"""One SAE in a pass, with its metrics: those still alive, the parts of a batch they need, and the errors of the others."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from saebench.errors import SaebenchError, is_out_of_memory, one_line
from saebench.forward.guard import Guard, SAEGuard
from saebench.metric import Metric, get_state
from saebench.sae import SAE

T = TypeVar("T")


@dataclass
class Lane:
    """One SAE in a pass, with its metrics.

    Attributes:
        key: identity of the computation: the key of its saved state.
        sae: on the model's device, float32.
        metrics: by name; metrics of weights alone get no batch.
        errors: messages by metric name. A failed metric gets no further batch and has no score.
        watch: detects changes to the SAE's weights.
    """

    key: str
    sae: SAE
    metrics: dict[str, Metric]
    errors: dict[str, str] = field(default_factory=dict)
    watch: SAEGuard | None = None

    @property
    def alive(self) -> list[Metric]:
        return [m for name, m in self.metrics.items() if name not in self.errors]

    def attempt(self, name: str, call: Callable[[], T], *shared: Guard, retried: bool = False) -> T | None:
        """Run one call of a metric; an exception or a change of shared values fails this metric alone.

        Args:
            shared: guards of values that other metrics read too; changes are undone.
            retried: whether the caller tries again with a smaller batch when memory runs out.

        Raises:
            RuntimeError, MemoryError: memory ran out, and the call is `retried`.
            KeyboardInterrupt: by the user.

        Returns:
            The result; None where the metric has failed.
        """
        found = None
        try:
            found = call()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin's own sys.exit too
            if retried and is_out_of_memory(error):
                raise
            self.fail_metric(name, error)
        finally:
            changed = [change for guard in (*shared, self.watch) if guard is not None and (change := guard.restore())]
        if changed:
            self.errors[name] = f"changed {changed[0]}, which other metrics read: work on a copy"
        return None if name in self.errors else found

    def states(self) -> dict[str, Any]:
        """The states of the metrics that have not failed, by name; a metric whose state cannot be saved fails here."""
        states = {metric.name: self.attempt(metric.name, partial(get_state, metric)) for metric in self.alive}
        return {name: state for name, state in states.items() if state is not None}

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
