"""Matching of latents with planted features by decoder rows."""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True)
class Matching:
    """One-to-one pairs of latents and features, and each feature's nearest latent.

    Attributes:
        cosine: [pairs] |cos| of the pairs with the largest sum; its mean is MCC.
        cosine_feature: [pairs] the features of those pairs.
        latent, feature: [pairs] the pairs with the largest sum of signed cosines: a latent that points away from a feature
            does not detect it.
        nearest: [features] the latent with the largest signed cosine.
        distinct: number of features that are nearest (by |cos|) to some latent, over the number of latents.
    """

    cosine: Tensor
    cosine_feature: Tensor
    latent: Tensor
    feature: Tensor
    nearest: Tensor
    distinct: float


def match(decoder: Tensor, directions: Tensor) -> Matching:
    """Match decoder rows [L, d] with feature directions [N, d] by optimal (Hungarian) assignment.

    Rows of norm 0 have cosine 0 with everything.
    """
    rows = torch.nn.functional.normalize(decoder.double(), dim=1)
    cosines = rows @ torch.nn.functional.normalize(directions.double(), dim=1).T
    some, features = linear_sum_assignment(cosines.abs().cpu().numpy(), maximize=True)
    latent, feature = linear_sum_assignment(cosines.cpu().numpy(), maximize=True)
    return Matching(
        cosine=cosines.abs()[some, features].cpu(),
        cosine_feature=torch.as_tensor(features),
        latent=torch.as_tensor(latent),
        feature=torch.as_tensor(feature),
        nearest=cosines.argmax(0).cpu(),
        distinct=len(cosines.abs().argmax(1).unique()) / len(rows),
    )
