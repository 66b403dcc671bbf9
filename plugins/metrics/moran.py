"""Spatial smoothness of latents on images: Moran's I over the eight neighbours of each patch.

Source: Moran (1950), "Notes on continuous stochastic phenomena", with binary weights. Under random permutation of the patches
of an image the expectation of I is exactly −1/(patches − 1), so that is subtracted and no permutation is drawn.
"""

from typing import ClassVar, Self

import pandas as pd
import torch
from torch import Tensor

from saebench import SAE, Batch, Env, Metric, Score, hookimpl

_SHIFTS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


class Moran(Metric):
    """moran: mean over live latents of Moran's I, above its expectation under permuted patches.

    Sums run within each image, around the latent's mean in that image, so images that differ in level alone do not look
    smooth. An image with an unscored patch is left out.
    Units: latents.
    """

    name = "moran"
    version = 1
    needs = frozenset({"latents", "grid"})
    paired = False
    about: ClassVar[dict[str, str]] = {
        "moran": "Moran's I of latents over neighbouring patches; 0 for permuted patches"
    }

    def __init__(self, sae: SAE) -> None:
        # Σ over images of the neighbours' products, and of the squares, each around the image's mean.
        self.products = torch.zeros(sae.d_sae, dtype=torch.float64)
        self.squares = torch.zeros(sae.d_sae, dtype=torch.float64)
        self.shape = [0, 0]

    def update(self, batch: Batch) -> None:
        """Add the sums of each image."""
        self.shape = list(batch.grid)
        z = batch.latents.dense()
        for image, scored in zip(z.double(), batch.scored, strict=True):
            if not bool(scored.all()):
                continue  # a patch that is not scored leaves a hole in the grid
            centred = image - image.mean(0)
            self.squares += centred.square().sum(0).cpu()
            self.products += _neighbours(centred.reshape(*batch.grid, -1)).cpu()

    def merge(self, other: Self) -> None:
        """Add the sums of another instance."""
        self.products += other.products
        self.squares += other.squares
        self.shape = self.shape if any(self.shape) else other.shape

    def units(self) -> pd.DataFrame:
        """One row per latent that varies within an image."""
        height, width = self.shape
        live = (self.squares > 0).nonzero()[:, 0]
        patches = height * width
        weights = sum(max(0, height - abs(i)) * max(0, width - abs(j)) for i, j in _SHIFTS)
        excess = patches / max(1, weights) * self.products[live] / self.squares[live] + 1 / max(1, patches - 1)
        return pd.DataFrame({"unit_id": live.numpy(), "cluster_id": live.numpy(), "excess": excess.numpy(), "one": 1.0})

    def scores(self, env: Env) -> list[Score]:
        """The mean over live latents."""
        return [Score.ratio("moran", "excess", "one", unit="Moran's I", direction="higher")]


def _neighbours(image: Tensor) -> Tensor:
    """[L] Σ over ordered pairs of neighbouring patches of their product; image is [H, W, L]."""
    height, width, _ = image.shape
    total = torch.zeros_like(image[0, 0])
    for i, j in _SHIFTS:
        here = image[max(0, -i) : height - max(0, i), max(0, -j) : width - max(0, j)]
        there = image[max(0, i) : height - max(0, -i), max(0, j) : width - max(0, -j)]
        total += (here * there).sum((0, 1))
    return total


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    """The metric `moran`."""
    return [Moran]
