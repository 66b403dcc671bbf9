"""The one pass: contexts × language model × SAEs -> batches -> metrics.

Every SAE of one (model, hook point) goes through together. A batch of contexts is run once below the hook point; there it forks
into one stream per SAE (saebench/subject.py), and what comes out is handed to each SAE's metrics.
"""

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saebench.corpus import Contexts
from saebench.errors import NonFiniteError, SaebenchError, is_out_of_memory, one_line
from saebench.forward.ablation import Ablations
from saebench.forward.calibration import Calibration
from saebench.forward.losses import spliced_losses
from saebench.hookpoint import HookPoint
from saebench.metric import Batch, Metric, TokenLosses, get_state, set_state
from saebench.sae import SAE
from saebench.subject import Copy, Subject


@dataclass
class Lane:
    """One SAE on its way through the pass.

    Attributes:
        key: what it measures; a saved state is found again by it.
        sae: on the model's device, float32.
        metrics: by name; those that need no batch get none.
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
                self.errors[metric.name] = f"{type(error).__name__}: {one_line(error)}"
        return found

    def needs(self, what: str) -> bool:
        return any(what in m.needs for m in self.alive)

    def fail(self, message: str, needing: frozenset[str]) -> None:
        """Mark every metric that needs any of `needing` as failed."""
        for name, metric in self.metrics.items():
            if metric.needs & needing:
                self.errors.setdefault(name, message)


@dataclass
class Tally:
    """Tokens seen, by what became of them."""

    scored: int = 0
    outliers: int = 0
    special: int = 0


class _AtHook:
    """One batch of contexts at the hook point: each SAE's view of it, and the streams that fork there.

    Attributes:
        token_ids, special: [B, T]
        batches: one per lane, without losses; set when the model reaches the hook point, anew on every call.
    """

    def __init__(self, the_pass: "Pass", rows: np.ndarray) -> None:
        contexts, device = the_pass.contexts, the_pass.subject.device
        width = contexts.width(rows)
        self._pass = the_pass
        self._rows = rows
        self.token_ids = torch.from_numpy(contexts.token_ids[rows, :width]).to(device)
        self.special = torch.from_numpy(contexts.special[rows, :width]).to(device)
        self.batches: list[Batch] = []

    def __call__(self, x_read: Tensor, x_write: Tensor) -> list[Copy]:
        """The streams to run above the hook point: one per SAE, then the ablations; none where no metric needs losses."""
        shared = self._shared(x_read.float(), x_write.float())
        self.batches = [_seen_by(lane, shared) for lane in self._pass.lanes]
        if self._pass.ablations is None:
            return []
        scored, every = shared.scored, torch.arange(len(self._rows), device=x_write.device)
        spliced = [b.x if b._reconstruction is None else b.reconstruction for b in self.batches]
        copies = [Copy(torch.where(scored[..., None], xh.to(x_write.dtype), x_write), every) for xh in spliced]
        return copies + self._pass.ablations.copies(x_write, self.token_ids, scored)

    def _shared(self, x_read: Tensor, x: Tensor) -> Batch:
        """Everything that the lanes' batches have in common."""
        the_pass, rows = self._pass, self._rows
        the_pass.require_finite(x, rows)
        contexts, calibration = the_pass.contexts, the_pass.calibration
        return Batch(
            self.token_ids,
            self.special,
            calibration.scored(x, self.special),
            the_pass.context_id[rows],
            contexts.document_id[rows],
            torch.arange(x.shape[1], device=x.device),
            calibration.mean,
            x,
            _x_read=x_read,
            read_mean=calibration.sample.mean(0),
            _labels=None if contexts.labels is None else contexts.labels.take(rows),
            seed=the_pass.seed,
        )

    def with_losses(self, ablations: Ablations, clean: Tensor, hidden: list[Tensor]) -> list[Batch]:
        """The batches with losses, from final hidden states of the model and of the copies that `__call__` returned."""
        scored = self.batches[0].scored
        own, ablated = hidden[: len(self.batches)], hidden[len(self.batches) :]
        zero, mean = ablations.losses(self._rows, ablated, self.token_ids, scored)
        losses = spliced_losses(self._pass.subject, clean, own, self.token_ids, scored)
        predicted = scored.clone()
        predicted[:, -1] = False
        return [
            replace(batch, _token_losses=TokenLosses(losses.clean, spliced, zero, mean, kl, predicted))
            for batch, spliced, kl in zip(self.batches, losses.spliced, losses.kl, strict=True)
        ]


def _seen_by(lane: Lane, shared: Batch) -> Batch:
    """The batch with one SAE's latents and reconstruction; non-finite ones fail the metrics that need them."""
    if not any(lane.needs(n) for n in ("latents", "reconstruction", "token_losses")):
        return shared
    try:
        latents = lane.sae.encode(shared.x_read)
        if not bool(torch.isfinite(latents.values).all()):
            raise SaebenchError("latents are not finite")
        if not (lane.needs("reconstruction") or lane.needs("token_losses")):
            return replace(shared, _latents=latents)
        reconstruction = lane.sae.decode(latents, shared.x_read)
        if not bool(torch.isfinite(reconstruction).all()):
            raise SaebenchError("the reconstruction is not finite")
    except (SaebenchError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        lane.fail(one_line(error), frozenset({"latents", "reconstruction", "token_losses"}))
        return shared
    return replace(shared, _latents=latents, _reconstruction=reconstruction)


class Pass:
    """A pass over some contexts for some SAEs that share a model and a hook point.

    Attributes:
        done: contexts finished, counted from the beginning.
        tally: tokens seen.
    """

    def __init__(
        self,
        subject: Subject,
        contexts: Contexts,
        context_id: np.ndarray,
        read: HookPoint,
        write: HookPoint,
        lanes: list[Lane],
        calibration: Calibration,
        ablations: Ablations | None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            context_id: [N] the task's numbers of these contexts.
            ablations: None when no metric needs losses; the model then stops at the hook point.
            seed: of the run.
        """
        self.subject = subject
        self.contexts = contexts
        self.context_id = context_id
        self.read, self.write = read, write
        self.lanes = lanes
        self.calibration = calibration
        self.ablations = ablations
        self.seed = seed
        self.done = 0
        self.tally = Tally()

    def run(self, batch_size: int, after_batch: Callable[[], None] = lambda: None) -> int:
        """Run what is not done yet; returns the batch size that fitted (halved whenever the device ran out of memory).

        Args:
            after_batch: called after each batch: progress, saving state.

        Raises:
            SaebenchError: the model's activations are not finite, or not even one context fits.
        """
        while self.done < len(self.contexts):
            rows = np.arange(self.done, min(self.done + batch_size, len(self.contexts)))
            try:
                batches = self._compute(rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if batch_size == 1:
                    raise SaebenchError(
                        f"not even one context with {len(self.lanes)} SAEs fits into the memory of "
                        f"{self.subject.device}: give fewer --sae, or --dtype bfloat16"
                    ) from error
                batch_size //= 2
                torch.cuda.empty_cache()
                continue
            self._update(batches, self._padding(rows))
            self.done += len(rows)
            after_batch()
        return batch_size

    # --- state: what is saved while the pass runs, and sent between ranks at its end ----------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Everything the pass has come to, as plain values and arrays."""
        lanes = {lane.key: lane.states() for lane in self.lanes}
        return {
            "done": self.done,
            "tally": list(astuple(self.tally)),
            "lanes": lanes,
            "errors": {lane.key: lane.errors for lane in self.lanes},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from a snapshot that knows every lane of this pass."""
        self.done = saved["done"]
        self.tally = Tally(*saved["tally"])
        for lane in self.lanes:
            lane.errors = dict(saved["errors"][lane.key])
            for metric in lane.alive:
                set_state(metric, saved["lanes"][lane.key][metric.name])

    def absorb(self, other: Mapping[str, Any]) -> None:
        """Add another rank's snapshot: the same lanes over other contexts."""
        self.tally = Tally(*(a + b for a, b in zip(astuple(self.tally), other["tally"], strict=True)))
        for lane in self.lanes:
            for name, message in other["errors"][lane.key].items():
                lane.errors.setdefault(name, message)
            for metric in lane.alive:
                try:
                    fresh = type(metric)(lane.sae)
                    set_state(fresh, other["lanes"][lane.key][metric.name])
                    metric.merge(fresh)
                except Exception as error:  # a stranger's metric
                    lane.errors[metric.name] = f"{type(error).__name__}: {one_line(error)}"

    # --- compute: nothing here changes state, so that a batch can be tried again ----------------------------------------

    @torch.no_grad()
    def _compute(self, rows: np.ndarray) -> list[Batch]:
        """One batch per lane."""
        at_hook = _AtHook(self, rows)
        if self.ablations is None:
            at_hook(*self.subject.capture(at_hook.token_ids, self.read, self.write))
            return at_hook.batches
        count = len(self.lanes) + self.ablations.most_copies
        clean, hidden = self.subject.fork(at_hook.token_ids, self.read, self.write, at_hook, count)
        return at_hook.with_losses(self.ablations, clean, hidden)

    def require_finite(self, x: Tensor, rows: np.ndarray) -> None:
        """Raise NonFiniteError, with the first context that has a non-finite activation."""
        if not bool(torch.isfinite(x).all()):
            bad = int(rows[int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])])
            raise NonFiniteError(
                f"activations at {self.write} are not finite in context {self.context_id[bad]} "
                f"({self.subject.loaded.id}, {self.subject.dtype}): try --dtype float32"
            )

    # --- update -------------------------------------------------------------------------------------------------------

    def _padding(self, rows: np.ndarray) -> int:
        """How many tokens of a batch are padding."""
        lengths = self.contexts.lengths
        return 0 if lengths is None else int((self.contexts.width(rows) - lengths[rows]).sum())

    def _update(self, batches: list[Batch], padding: int) -> None:
        """Count the tokens and give each lane's metrics their batch."""
        shared = batches[0]
        special, scored = int(shared.special.sum()), int(shared.scored.sum())
        self.tally.special += special - padding
        self.tally.scored += scored
        self.tally.outliers += shared.scored.numel() - special - scored
        for lane, batch in zip(self.lanes, batches, strict=True):
            for metric in lane.alive:
                if not metric.needs:
                    continue
                try:
                    metric.update(batch)
                except Exception as error:  # a stranger's metric must not end the pass
                    lane.errors[metric.name] = f"{type(error).__name__}: {one_line(error)}"
