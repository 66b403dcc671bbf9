"""One batch of contexts through the model: the streams that fork at the hook point, and the losses of each.

The streams are the model's own, one per SAE (its reconstruction), the edits of metrics, and the two ablations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from saebench.corpus import Contexts
from saebench.errors import NonFiniteError, SaebenchError, is_out_of_memory, one_line
from saebench.forward.ablation import Ablations
from saebench.forward.calibration import Calibration
from saebench.forward.guard import Guard
from saebench.forward.lane import Lane
from saebench.forward.losses import spliced_losses
from saebench.hookpoint import HookPoint
from saebench.metric import Batch, Edit, Edited, Metric, TokenLosses
from saebench.source import Source
from saebench.subject import Copy, Subject


@dataclass(frozen=True)
class Ground:
    """The parts of a pass that all batches and SAEs share.

    Attributes:
        context_id: [N] the numbers of these contexts in the task.
        ablations: None where no metric needs the losses of SAEs and ablations.
        seed: of the run.
    """

    subject: Source
    contexts: Contexts
    context_id: np.ndarray
    read: HookPoint
    write: HookPoint
    calibration: Calibration
    ablations: Ablations | None
    seed: int = 0

    @property
    def model(self) -> Subject:
        """The language model.

        Raises:
            SaebenchError: the source is none, so nothing can be forked.
        """
        if not isinstance(self.subject, Subject):
            raise SaebenchError(f"{self.subject.loaded.id} is no language model, so nothing can be spliced into it")
        return self.subject


@dataclass(frozen=True)
class _Owned:
    """An edit with its metric, and the context of each of its rows."""

    lane: int
    metric: str
    edit: Edit
    source: Tensor


@dataclass(frozen=True)
class Forked:
    """A batch for each lane, and the losses of edits by (lane, metric)."""

    batches: list[Batch]
    edited: dict[tuple[int, str], dict[str, Edited]]
    seed: int

    def batch(self, lane: int, metric: Metric) -> Batch:
        """The batch as one metric receives it."""
        edited = self.edited.get((lane, metric.name), {}) if metric.edit_rows else None
        return replace(self.batches[lane], _edited=edited, seed=self.seed if metric.seeded else 0)


class Fork:
    """One batch of contexts at the hook point: each SAE's view of it, and the streams that fork there.

    Attributes:
        token_ids, special: [B, T]
        batches: one per lane, without losses; made when the model reaches the hook point.
    """

    def __init__(self, ground: Ground, lanes: Sequence[Lane], rows: np.ndarray) -> None:
        contexts, device = ground.contexts, ground.subject.device
        width = contexts.width(rows)
        self._ground, self._lanes, self._rows = ground, lanes, rows
        self.token_ids = torch.from_numpy(contexts.token_ids[rows, :width]).to(device)
        self.special = torch.from_numpy(contexts.special[rows, :width]).to(device)
        self.batches: list[Batch] = []
        self._edits: list[_Owned] = []

    @torch.no_grad()
    def run(self) -> Forked:
        """Run the model up to the hook point, or to its end where a metric needs losses or edits.

        Raises:
            NonFiniteError: activations are not finite.
            RuntimeError, MemoryError: out of memory; nothing has changed, and a smaller batch may fit.
        """
        ground = self._ground
        subject, place = ground.subject, (ground.read, ground.write)
        edits = any(lane.edits for lane in self._lanes)
        if ground.ablations is None and not edits:
            self(*subject.capture(self.token_ids, *place))
            return Forked(self.batches, {}, ground.seed)
        model = ground.model
        if edits and model.forks and not ground.write.on_stream:
            # Inside a block the block's input forks, so the rows of every stream must be known before the hook point.
            copies = self(*subject.capture(self.token_ids, *place))
            sources = torch.cat([copy.source for copy in copies])
            return self._with_losses(*model.fork(self.token_ids, *place, lambda *_: copies, sources))
        count = len(self._lanes) + ground.ablations.most_copies if ground.ablations else 0
        return self._with_losses(*model.fork(self.token_ids, *place, self, count))

    def __call__(self, x_read: Tensor, x_write: Tensor) -> list[Copy]:
        """The streams to run above the hook point: one per SAE, then edits, then ablations."""
        shared = self._shared(x_read.float(), x_write.float())
        self.batches = [_seen_by(lane, shared) for lane in self._lanes]
        self._edits = [
            owned for k, (lane, batch) in enumerate(zip(self._lanes, self.batches, strict=True))
            for owned in _edits_of(k, lane, batch, self._ground.seed)
        ]  # fmt: skip
        edits = [Copy(owned.edit.rows.to(x_write.dtype), owned.source) for owned in self._edits]
        ablations = self._ground.ablations
        if ablations is None:
            return edits
        scored, every = shared.scored, torch.arange(len(self._rows), device=x_write.device)
        spliced = [b.x if b._reconstruction is None else b.reconstruction for b in self.batches]
        copies = [Copy(torch.where(scored[..., None], xh.to(x_write.dtype), x_write), every) for xh in spliced]
        return copies + edits + ablations.copies(x_write, self.token_ids, scored)

    def _shared(self, x_read: Tensor, x: Tensor) -> Batch:
        """The parts of the batch that every lane shares."""
        ground, rows = self._ground, self._rows
        self._require_finite(x)
        contexts, calibration = ground.contexts, ground.calibration
        return Batch(
            self.token_ids,
            self.special,
            calibration.scored(x, self.special),
            ground.context_id[rows],
            contexts.document_id[rows],
            torch.arange(x.shape[1], device=x.device),
            calibration.mean,
            x,
            _x_read=x_read,
            read_mean=calibration.sample.mean(0),
            _labels=None if contexts.labels is None else contexts.labels.take(rows),
            _grid=ground.subject.grid,
            typical_norm=calibration.median_norm,
            _truth=ground.subject.truth(self.token_ids) if any(lane.needs("truth") for lane in self._lanes) else None,
        )

    def _require_finite(self, x: Tensor) -> None:
        if not bool(torch.isfinite(x).all()):
            bad = int(self._rows[int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])])
            ground = self._ground
            raise NonFiniteError(
                f"activations at {ground.write} are not finite in context {ground.context_id[bad]} "
                f"({ground.subject.loaded.id}, {ground.subject.dtype}): try --dtype float32"
            )

    # --- losses, from the final hidden states of the model and of the streams that `__call__` returned ------------------

    def _with_losses(self, clean: Tensor, hidden: list[Tensor]) -> Forked:
        ablations, scored = self._ground.ablations, self.batches[0].scored
        saes = len(self.batches) if ablations else 0
        own, edits, ablated = hidden[:saes], hidden[saes : saes + len(self._edits)], hidden[saes + len(self._edits) :]
        # Edits with one row per context, in order, share the logits of the clean stream; others need them computed again.
        size, tiles = len(self.token_ids), []
        for owned, states in zip(self._edits, edits, strict=True):
            tiles.append(list(states.split(size)) if _in_order(owned.source, size) else [])
        streams = [*own, *(tile for some in tiles for tile in some)]
        losses = spliced_losses(self._ground.model, clean, streams, self.token_ids, scored)
        edited: dict[tuple[int, str], dict[str, Edited]] = {}
        at = saes
        for owned, states, some in zip(self._edits, edits, tiles, strict=True):
            if some:
                span = slice(at, at := at + len(some))
                ce, kl = torch.cat(losses.spliced[span]), torch.cat(losses.kl[span])
            else:
                ce, kl = self._apart(clean, states, owned.source)
            kept = states if owned.edit.hidden else None
            edited.setdefault((owned.lane, owned.metric), {})[owned.edit.name] = Edited(owned.source, ce, kl, kept)
        self._drop_non_finite(edited)
        if ablations is None:
            return Forked(self.batches, edited, self._ground.seed)
        zero, mean = ablations.losses(self._rows, ablated, self.token_ids, scored)
        predicted = scored.clone()
        predicted[:, -1] = False
        batches = [
            replace(
                batch, _token_losses=TokenLosses(losses.clean, losses.spliced[k], zero, mean, losses.kl[k], predicted)
            )
            for k, batch in enumerate(self.batches)
        ]
        return Forked(batches, edited, self._ground.seed)

    def _apart(self, clean: Tensor, hidden: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and KL [R, T] of rows whose contexts come in any order."""
        scored, token_ids = self.batches[0].scored[source], self.token_ids[source]
        losses = spliced_losses(self._ground.model, clean[source], [hidden], token_ids, scored)
        return losses.spliced[0], losses.kl[0]

    def _drop_non_finite(self, edited: dict[tuple[int, str], dict[str, Edited]]) -> None:
        """Fail the metrics whose edits make the model's predictions non-finite."""
        for (lane, metric), edits in edited.items():
            bad = [name for name, e in edits.items() if not bool(torch.isfinite(e.cross_entropy + e.kl).all())]
            if bad:
                message = f"edit '{bad[0]}' makes the model's predictions non-finite: use a smaller one"
                self._lanes[lane].fail_metric(metric, SaebenchError(message))


def _in_order(source: Tensor, size: int) -> bool:
    """Whether rows are the batch's contexts in order, once or several times."""
    return len(source) % size == 0 and bool(
        (source.reshape(-1, size) == torch.arange(size, device=source.device)).all()
    )


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


def _edits_of(number: int, lane: Lane, batch: Batch, seed: int) -> list[_Owned]:
    """The edits of one SAE's metrics; a metric whose edits are invalid fails."""
    found: list[_Owned] = []
    for metric in lane.alive:
        if not metric.edit_rows:
            continue
        own = replace(batch, seed=seed if metric.seeded else 0)
        made = lane.attempt(metric.name, partial(_made_by, metric, own), Guard(batch), retried=True)
        found += [_Owned(number, metric.name, edit, source) for edit, source in made or []]
    return found


def _made_by(metric: Metric, batch: Batch) -> list[tuple[Edit, Tensor]]:
    """A metric's edits of a batch, each with the context of every row."""
    edits = metric.edits(batch)
    return list(zip(edits, check_edits(metric, edits, batch), strict=True))


def check_edits(metric: Metric, edits: Sequence[Edit], batch: Batch) -> list[Tensor]:
    """The context [R] of every row of each edit.

    Raises:
        SaebenchError: names, shapes, values or the number of rows break the contract.
    """
    size, length, width = batch.x.shape
    sources = []
    for edit in edits:
        rows = edit.rows
        if rows.ndim != 3 or tuple(rows.shape[1:]) != (length, width) or not rows.is_floating_point():
            raise SaebenchError(f"edit '{edit.name}' has rows {tuple(rows.shape)}, not floats [R, {length}, {width}]")
        if not bool(torch.isfinite(rows).all()):
            raise SaebenchError(f"edit '{edit.name}' has rows that are not finite")
        source = torch.arange(size, device=rows.device) if edit.source is None else edit.source.to(rows.device)
        inside = source.dtype == torch.int64 and bool(((source >= 0) & (source < size)).all())
        if source.shape != rows.shape[:1] or not inside:
            raise SaebenchError(
                f"edit '{edit.name}' needs a context of the batch (0 to {size - 1}) for each of its rows"
            )
        sources.append(source)
    if len({edit.name for edit in edits}) < len(edits):
        raise SaebenchError("two edits have the same name")
    total = sum(len(edit.rows) for edit in edits)
    if total > metric.edit_rows * size:
        raise SaebenchError(f"{total} rows of edits for {size} contexts: `edit_rows` declares {metric.edit_rows} each")
    return sources
