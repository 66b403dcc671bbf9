"""Stability across training seeds: the agreement of latents from runs of one recipe.

Sources: PW-MCC (arXiv 2505.20254), shared latents (arXiv 2501.16615). Decoder rows of both SAEs are matched one to one by signed
cosine; PW-MCC is the mean of the matched cosines. Random rows of equal mean and covariance match to some degree too, so a null is
drawn for the second SAE's rows, and `calibrated` is relative to it: 0 for unrelated rows, 1 for equal rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from saebench import SAE, Score, hookimpl
from saebench.comparison import Compared, Shared
from saebench.errors import UsageError
from saebench.streams import generator

# Largest number of latents for optimal (Hungarian) matching; with more, mutually nearest rows are matched.
_HUNGARIAN = 16_384
# Matched cosine, in decoder and encoder, above which a latent counts as shared.
_SHARED = 0.7
# Draws of the null.
_NULLS = 3


@dataclass(frozen=True)
class Matched:
    """Matched latents of two SAEs.

    Attributes:
        a, b: [pairs] indices of the latents.
        cosine: [pairs] of their decoder rows.
    """

    a: Tensor
    b: Tensor
    cosine: Tensor


class Stability:
    """Agreement of SAEs that differ in their seed."""

    name = "stability"
    version = 1
    about = {  # noqa: RUF012
        "pw_mcc": "mean cosine of matched decoder rows",
        "null": "the same for random rows of the same mean and covariance",
        "calibrated": "pw_mcc counted from the null: 0 unrelated, 1 the same",
        "shared": "latents matched above 0.7 in decoder and encoder",
        "agreement": "mean correlation of matched latents on the same tokens",
    }

    def compare(self, saes: Sequence[SAE], shared: Shared) -> Compared:
        """Every pair of SAEs; scores are means over the latents of all pairs."""
        self._require_comparable(saes)
        pairs = [_pair(saes[i], saes[j], shared, (i, j)) for i, j in combinations(range(len(saes)), 2)]
        frames = []
        for number, (frame, _) in enumerate(pairs):
            start = sum(len(f) for f, _ in pairs[:number])
            frames.append(frame.assign(unit_id=frame.unit_id + start, cluster_id=frame.cluster_id + start))
        units = pd.concat(frames, ignore_index=True)
        null = float(np.average([detail["null"] for _, detail in pairs], weights=[len(frame) for frame, _ in pairs]))
        return Compared(units, _scores(units, null), {"pairs": [detail for _, detail in pairs]})

    @staticmethod
    def _require_comparable(saes: Sequence[SAE]) -> None:
        if len(saes) < 2:
            raise UsageError(f"stability compares two or more SAEs, not {len(saes)}: name another one")
        widths = sorted({sae.d_out for sae in saes})
        if len(widths) > 1:
            raise UsageError(
                f"stability: the SAEs write {widths[0]} and {widths[1]} numbers per token: compare SAEs of one hook point"
            )
        models = sorted({str(sae.metadata.model) for sae in saes if sae.metadata.model})
        if len(models) > 1:
            raise UsageError(
                f"stability: the SAEs are of different models, {models[0]} and {models[1]}: compare SAEs of one"
            )


def match(a: Tensor, b: Tensor) -> Matched:
    """Match rows [L_a, d] and [L_b, d] by cosine: optimally, or mutually nearest rows for too many latents."""
    a, b = normalize(a.double(), dim=1), normalize(b.double(), dim=1)
    if max(len(a), len(b)) <= _HUNGARIAN:
        cosines = a @ b.T
        row, column = (torch.as_tensor(side) for side in linear_sum_assignment(cosines.numpy(), maximize=True))
        return Matched(row, column, cosines[row, column])
    best_of_a, best_of_b = _nearest(a, b), _nearest(b, a)
    row = (best_of_b[best_of_a] == torch.arange(len(a))).nonzero()[:, 0]
    column = best_of_a[row]
    return Matched(row, column, (a[row] * b[column]).sum(1))


def _nearest(a: Tensor, b: Tensor) -> Tensor:
    """[L_a] the row of b with the largest cosine, in chunks, since the full matrix may not fit in memory."""
    return torch.cat([(chunk @ b.T).argmax(1) for chunk in a.split(1024)])


def null_rows(rows: Tensor, random: torch.Generator) -> Tensor:
    """Gaussian rows with the mean and covariance of the unit rows [L, d]."""
    rows = normalize(rows.double(), dim=1)
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / max(1, len(rows) - 1))
    root = vectors * values.clamp(min=0).sqrt()
    noise: Tensor = torch.randn(rows.shape, generator=random, dtype=torch.float64) @ root.T
    return mean + noise


def _pair(a: SAE, b: SAE, shared: Shared, names: tuple[int, int]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(units, details) of one pair; units have a row per live latent of the smaller SAE."""
    frequency, activations = [], []
    for sae in (a, b):
        z = None if shared.x is None else sae.encode(shared.x).dense()
        activations.append(z)
        frequency.append(None if z is None else (z != 0).double().mean(0))
    live = [_live(sae, f) for sae, f in zip((a, b), frequency, strict=True)]
    for number, some in zip(names, live, strict=True):
        if len(some) < 2:
            raise UsageError(
                f"stability: SAE {number + 1} has {len(some)} live latents: give more tokens, or compare others"
            )
    rows = [sae.W_dec[some] for sae, some in zip((a, b), live, strict=True)]
    found = match(*rows)
    encoders = [normalize(sae.W_enc.T[some].double(), dim=1) for sae, some in zip((a, b), live, strict=True)]
    encoder_cosine = (encoders[0][found.a] * encoders[1][found.b]).sum(1)
    nulls = [
        float(
            match(rows[0], null_rows(rows[1], generator(f"stability/null/{names}/{draw}", shared.seed))).cosine.mean()
        )
        for draw in range(_NULLS)
    ]
    units = pd.DataFrame({"unit_id": range(len(found.a)), "cluster_id": range(len(found.a)), "one": 1.0})
    units["cosine"] = found.cosine.numpy()
    units["shared"] = ((found.cosine > _SHARED) & (encoder_cosine > _SHARED)).double().numpy()
    detail: dict[str, Any] = {
        "saes": list(names), "live": [len(some) for some in live], "pw_mcc": float(found.cosine.mean()),
        "shared": float(units.shared.mean()), "null": float(np.mean(nulls)),
        "matching": "hungarian" if max(map(len, live)) <= _HUNGARIAN else "mutual nearest",
    }  # fmt: skip
    if frequency[0] is not None and activations[0] is not None and activations[1] is not None:
        units["frequency"] = frequency[0][live[0]][found.a].numpy()
        left, right = activations[0][:, live[0]][:, found.a], activations[1][:, live[1]][:, found.b]
        units["correlation"] = _correlation(left.double(), right.double()).numpy()
        detail["by_frequency"] = _by_frequency(units)
    return units, detail


def _live(sae: SAE, frequency: Tensor | None) -> Tensor:
    """Latents that fire; without activations, those with a nonzero decoder row."""
    alive = sae.W_dec.norm(dim=1) > 0
    fires: Tensor = alive if frequency is None else alive & (frequency > 0)
    return fires.nonzero()[:, 0]


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of paired columns [N, pairs]; 0 if a column is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    scale = a.norm(dim=0) * b.norm(dim=0)
    return torch.where(scale > 0, (a * b).sum(0) / scale.clamp(min=1e-300), 0.0)


def _by_frequency(units: pd.DataFrame) -> list[dict[str, float]]:
    """Mean cosine in each decade of firing frequency."""
    decade = np.floor(np.log10(units["frequency"]))
    return [
        {"log10_frequency": float(key), "latents": float(len(some)), "pw_mcc": float(some.cosine.mean())}
        for key, some in units.groupby(decade)
    ]


def _scores(units: pd.DataFrame, null: float) -> list[Score]:
    scores = [
        Score.ratio("pw_mcc", "cosine", "one", direction="higher", unit="cosine", within=(-1.0, 1.0)),
        Score.plain("null", null, n=_NULLS, no_interval="a reference, averaged over its draws", unit="cosine"),
        Score.ratio(
            "calibrated",
            "cosine",
            "one",
            offset=-null / (1 - null),
            scale=1 / (1 - null),
            direction="higher",
            unit="fraction",
        ),
        Score.ratio("shared", "shared", "one", direction="higher", unit="fraction", within=(0.0, 1.0)),
    ]
    if "correlation" in units:
        scores.append(
            Score.ratio("agreement", "correlation", "one", direction="higher", unit="correlation", within=(-1.0, 1.0))
        )
    return scores


@hookimpl
def saebench_comparisons() -> list[Stability]:
    """The comparison `stability`."""
    return [Stability()]
