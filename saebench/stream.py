"""The one pass: contexts × language model × SAEs -> batches -> metrics.

All SAEs of one (model, hook point) share the pass. The model runs a batch of contexts once below the hook point; there the batch
forks into one stream per SAE, edit and ablation (saebench/forward/fork.py), and each SAE's metrics receive the result.
"""

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from saebench.errors import SaebenchError, is_out_of_memory
from saebench.forward.fork import Fork, Forked, Ground
from saebench.forward.guard import Guard
from saebench.forward.lane import Lane
from saebench.metric import Metric, set_state
from saebench.sae import SAE


@dataclass
class Tally:
    """Token counts of a pass: scored tokens, and those left out as outliers or special tokens."""

    scored: int = 0
    outliers: int = 0
    special: int = 0


class Pass:
    """A pass over some contexts for some SAEs that share a model and a hook point.

    Attributes:
        ground: model, text, hook points, calibration and ablations.
        done: number of finished contexts, from the first on.
        tally: token counts of the finished contexts.
    """

    def __init__(self, ground: Ground, lanes: list[Lane]) -> None:
        self.ground = ground
        self.contexts = ground.contexts
        self.lanes = lanes
        self.done = 0
        self.tally = Tally()

    def run(self, batch_size: int, after_batch: Callable[[], None] = lambda: None) -> int:
        """Run the remaining contexts; returns the batch size, halved whenever the device ran out of memory.

        Args:
            after_batch: called after each batch, to report progress and save the state.

        Raises:
            SaebenchError: the model's activations are not finite, or not even one context fits.
        """
        while self.done < len(self.contexts):
            rows = np.arange(self.done, min(self.done + batch_size, len(self.contexts)))
            try:
                forked = Fork(self.ground, self.lanes, rows).run()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if batch_size == 1:
                    raise SaebenchError(
                        f"not even one context with {len(self.lanes)} SAEs fits into the memory of "
                        f"{self.ground.subject.device}: give fewer --sae, or --dtype bfloat16"
                    ) from error
                batch_size //= 2
                torch.cuda.empty_cache()
                continue
            self._update(forked, self._padding(rows))
            self.done += len(rows)
            after_batch()
        return batch_size

    # --- state: saved while the pass runs, and sent between ranks at its end ------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """The pass's complete state, as plain values and arrays."""
        lanes = {lane.key: lane.states() for lane in self.lanes}
        return {
            "done": self.done,
            "tally": list(astuple(self.tally)),
            "lanes": lanes,
            "errors": {lane.key: lane.errors for lane in self.lanes},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from a snapshot that holds every lane of this pass."""
        self.done = saved["done"]
        self.tally = Tally(*saved["tally"])
        for lane in self.lanes:
            lane.errors = dict(saved["errors"][lane.key])
            for metric in lane.alive:
                set_state(metric, saved["lanes"][lane.key][metric.name])
        if not 0 <= self.done <= len(self.contexts):
            raise ValueError(f"{self.done} of {len(self.contexts)} contexts done")

    def absorb(self, other: Mapping[str, Any]) -> None:
        """Add another rank's snapshot: the same lanes over other contexts."""
        self.tally = Tally(*(a + b for a, b in zip(astuple(self.tally), other["tally"], strict=True)))
        for lane in self.lanes:
            for name, message in other["errors"][lane.key].items():
                lane.errors.setdefault(name, message)
            for metric in lane.alive:
                lane.attempt(metric.name, partial(_merge, metric, lane.sae, other["lanes"][lane.key]))

    # --- update -------------------------------------------------------------------------------------------------------

    def _padding(self, rows: np.ndarray) -> int:
        """The number of padding tokens in a batch."""
        lengths = self.contexts.lengths
        return 0 if lengths is None else int((self.contexts.width(rows) - lengths[rows]).sum())

    def _update(self, forked: Forked, padding: int) -> None:
        """Count the tokens, and update each lane's metrics with their batch."""
        shared = forked.batches[0]
        special, scored = int(shared.special.sum()), int(shared.scored.sum())
        self.tally.special += special - padding
        self.tally.scored += scored
        self.tally.outliers += shared.scored.numel() - special - scored
        common = Guard(shared)
        for k, lane in enumerate(self.lanes):
            own = Guard(forked.batches[k], but=common)
            for metric in lane.alive:
                if metric.needs or metric.edit_rows:
                    lane.attempt(metric.name, partial(metric.update, forked.batch(k, metric)), common, own)


def _merge(metric: Metric, sae: SAE, states: Mapping[str, Any]) -> None:
    """Merge another rank's instance of the metric, restored from its lane's states."""
    other = type(metric)(sae)
    set_state(other, states[metric.name])
    metric.merge(other)
