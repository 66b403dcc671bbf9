"""Geometry of the dictionary, computed from the weights alone and independent of text."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from saebench import SAE, Env, Metric, Score, hookimpl

# Latents with a larger cosine of their decoder directions count as duplicates.
DUPLICATE = 0.9
_WHY = "computed from the weights, nothing is sampled"
_ABOUT = {
    "decoder_norm": "mean norm of decoder rows",
    "encoder_decoder_cosine": "mean cosine of a latent's encoder and decoder",
    "nearest_neighbour_cosine": "mean cosine with the nearest other latent",
    "duplicate_fraction": "latents with a neighbour closer than 0.9",
    "effective_rank": "dimensions the dictionary spans",
}


class Geometry(Metric):
    """Decoder norms, encoder–decoder cosine, nearest decoder neighbour, duplicates, effective rank. No units."""

    name = "geometry"
    version = 1
    about = _ABOUT
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, sae: SAE) -> None:
        self._sae = sae

    def merge(self, other: "Geometry") -> None:
        """Do nothing: the weights are the same in every instance."""

    def scores(self, env: Env) -> list[Score]:
        """Scores of the weights; see `Metric.scores`."""
        sae = env.sae
        norms = sae.W_dec.double().norm(dim=1)
        nearest = nearest_cosine(sae.W_dec)

        def plain(key: str, value: float | Tensor, unit: str) -> Score:
            return Score.plain(key, float(value), n=sae.d_sae, no_interval=_WHY, unit=unit)

        scores = [
            plain("decoder_norm", norms.mean(), "activation"),
            plain("decoder_norm_min", norms.min(), "activation"),
            plain("decoder_norm_max", norms.max(), "activation"),
            plain("nearest_neighbour_cosine", nearest.double().mean(), "cosine"),
            plain("duplicate_fraction", (nearest > DUPLICATE).double().mean(), "fraction"),
            plain("effective_rank", effective_rank(sae.W_dec), "dimensions"),
        ]
        if sae.d_in == sae.d_out:
            cosine = F.cosine_similarity(sae.W_enc.T, sae.W_dec, dim=1)
            scores.insert(3, plain("encoder_decoder_cosine", cosine.double().mean(), "cosine"))
        return scores


def nearest_cosine(W_dec: Tensor, chunk_elements: int = 2**26) -> Tensor:
    """[d_sae] for each latent the largest cosine of its decoder direction with another latent's."""
    unit = F.normalize(W_dec, dim=1)
    step = max(1, chunk_elements // len(unit))
    best = []
    for start in range(0, len(unit), step):
        cosine = unit[start : start + step] @ unit.T
        own = torch.arange(len(cosine), device=unit.device)
        cosine[own, own + start] = -torch.inf
        best.append(cosine.amax(1))
    out = torch.cat(best)
    return out if len(unit) > 1 else torch.zeros_like(out)


def effective_rank(W_dec: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the unit decoder (Roy and Vetterli 2007, definition 1).

    A zero row has no direction and is left out.
    """
    norms = W_dec.norm(dim=1)
    unit = (W_dec[norms > 0] / norms[norms > 0, None]).double()
    gram = unit.T @ unit if unit.shape[0] >= unit.shape[1] else unit @ unit.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().cpu().numpy()
    p = singular[singular > 0] / singular.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    return [Geometry]
