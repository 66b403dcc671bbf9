"""The pass that the steering metrics share, and the latents and contexts that it leaves them."""

from typing import ClassVar, Self

import numpy as np
import torch

from saebench import SAE, Batch, Metric, SaebenchError

from ..autointerp.tables import Table, joined, rows
from ..latents import fired, sampled
from . import collect
from .measure import Steered, target_tokens
from .settings import PassSettings

# Tables of sums and contexts are reduced when there are this many.
_TABLES = 16


class SteeringPass(Metric):
    """Firings, target sets and directions of sampled latents, and neutral contexts from other documents."""

    needs = frozenset({"x", "x_read", "latents"})
    paired = False
    uses_lens = True
    settings: ClassVar[PassSettings] = PassSettings()

    def __init__(self, sae: SAE) -> None:
        self.seed = 0
        self.live = np.zeros(sae.d_sae, dtype=bool)
        self.firings: list[Table] = []
        self.sums: list[Table] = []
        self.contexts: list[Table] = []
        self.base = np.zeros(0, dtype=np.int64)
        self.total = np.zeros(sae.d_out)
        self._sae = sae

    def update(self, batch: Batch) -> None:
        """Sample firings, targets and neutral contexts; see `Metric.update`."""
        self.seed = batch.seed
        where = collect.predicting(batch)
        self.live |= fired(batch, where)
        firings, sums = collect.fired_tokens(batch, self._sae, where, self._sample())
        self.firings.append(firings)
        self.sums.append(sums)
        self.contexts.append(collect.neutral(batch, self.settings))
        self.base = collect.added(self.base, collect.next_counts(batch, where))
        # Context by context, so that the order of the sums does not depend on the batch.
        for x, mask in zip(batch.x, where, strict=True):
            self.total += x[mask].double().sum(0).cpu().numpy()
        self._cut(_TABLES)

    def merge(self, other: Self) -> None:
        self.seed = max(self.seed, other.seed)
        self.live |= other.live
        self.firings += other.firings
        self.sums += other.sums
        self.contexts += other.contexts
        self.base = collect.added(self.base, other.base)
        self.total += other.total
        self._cut(1)

    def _sample(self) -> np.ndarray:
        return sampled(self.name, self.seed, self.live, self.settings.latents)

    def _cut(self, tables: int) -> None:
        if len(self.firings) > tables:
            table = joined(self.firings)
            self.firings = [rows(table, np.isin(table["latent"], self._sample()))]
            self.sums = [collect.summed(self.sums, self._sample())]
            self.contexts = [collect.chosen_contexts(self.contexts, self.settings)]

    def _neutral(self) -> tuple[list[list[int]], list[list[int]]]:
        """The contexts to choose and to score on.

        Raises:
            SaebenchError: there are none of one kind.
        """
        table = collect.chosen_contexts(self.contexts, self.settings) if self.contexts else None
        both = (
            []
            if table is None
            else [table["tokens"][table["role"] == r].tolist() for r in (collect.CHOOSE, collect.SCORE)]
        )
        if not both or not all(both):
            raise SaebenchError(
                f"no neutral contexts of {self.settings.length} tokens: use a task with more or longer documents"
            )
        return both[0], both[1]

    def _prepared(self, sae: SAE, latents: np.ndarray) -> list[Steered]:
        """The latents with enough firings, each with the target set of the next one as its control."""
        firings, sums = joined(self.firings), collect.summed(self.sums, latents)
        total, tokens = self.total, int(self.base.sum())
        direction = torch.nn.functional.normalize(sae.W_dec.double().cpu(), dim=1)
        found: list[Steered] = []
        for latent in latents.tolist():
            mine = rows(firings, firings["latent"] == latent)
            targets = target_tokens(
                np.bincount(mine["next"], minlength=len(self.base)), self.base, self.settings.targets
            )
            if len(mine["next"]) < self.settings.fewest or len(mine["next"]) == tokens or not targets:
                continue
            row = int(np.flatnonzero(sums["latent"] == latent)[0])
            count, own = int(sums["count"][row]), sums["sum"][row]
            difference = torch.from_numpy(own / count - (total - own) / (tokens - count))
            size = float(np.quantile(mine["strength"].astype(np.float64), 0.999))
            ceiling = torch.nn.functional.normalize(difference, dim=0)
            found.append(Steered(latent, size, direction[latent], ceiling, targets, []))
        others = found[1:] + found[:1]
        return [_with_others(one, other) for one, other in zip(found, others, strict=True)]


def _with_others(one: Steered, other: Steered) -> Steered:
    return Steered(one.latent, one.size, one.direction, one.ceiling, one.targets, other.targets)
