"""A planted model as an activation source: every context has its own random stream."""

from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from saebench.corpus import Contexts
from saebench.hookpoint import HookPoint
from saebench.metric import Truth
from saebench.planting import PlantedSpec, SampleSpec
from saebench.sources.planted import PlantedModel
from saebench.sources.source import ArraySource
from saebench.streams import generator


class PlantedSource(ArraySource):
    """Samples of a planted model, in contexts of `length` independent samples; a context is a cluster.

    A sample depends on the number of its context only, so batch size, order and number of ranks change no bit.
    """

    kind = "planted"

    def __init__(self, name: str, spec: PlantedSpec, samples: SampleSpec, purpose: str = "context") -> None:
        super().__init__(name, repr(sorted(asdict(spec).items())))
        self.planted = PlantedModel(spec)
        self.length = samples.length
        self._count = samples.contexts
        self._purpose = purpose
        self._last: tuple[Tensor, Tensor] | None = None

    def contexts(self) -> Contexts:
        """The contexts of the measurement; token ids are row numbers."""
        count = self._count
        rows = np.arange(count * self.length, dtype=np.int64).reshape(count, self.length)
        return Contexts(
            rows, np.arange(count, dtype=np.int64), np.zeros(rows.shape, dtype=bool),
            tuple(f"{self.loaded.id}/{i}" for i in range(count)), available=count,
        )  # fmt: skip

    def capture(self, token_ids: Tensor, read: HookPoint, write: HookPoint) -> tuple[Tensor, Tensor]:
        """(x, x) with x [B, T, d]."""
        features = self._features(token_ids)
        x = self.planted.activations(features)
        return x, x

    def truth(self, token_ids: Tensor) -> Truth:
        """Features, directions and parents behind the rows."""
        return Truth(self._features(token_ids), self.planted.directions, self.planted.parent)

    def _features(self, token_ids: Tensor) -> Tensor:
        """[B, T, features]; cached for one batch, since a pass requests x and then the truth of the same rows."""
        first = token_ids[:, 0]
        if self._last is None or not torch.equal(self._last[0], first):
            seed = self.planted.spec.seed
            drawn = [
                self.planted.sample(self.length, generator(f"planted/{self._purpose}/{int(row) // self.length}", seed))
                for row in first
            ]
            self._last = first.clone(), torch.stack(drawn)
        return self._last[1]
