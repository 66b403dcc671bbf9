"""The floor of probing: random dictionaries of an SAE's shape, as sparse as the SAE is on each single token."""

from weakref import WeakValueDictionary

import torch
from torch import Tensor

from saebench.sae import Latents
from saebench.streams import generator

# Random dictionaries drawn per SAE; their spread is part of the floor's interval.
FLOORS = 3
# Pre-activations are made this many at a time.
_ELEMENTS = 2**24
# SAEs of one shape share their floors for as long as one of them is measured.
_SHARED: WeakValueDictionary[tuple[int, int, int, int, str], Tensor] = WeakValueDictionary()


class RandomSAE:
    """d_sae random unit directions; on a token where the SAE has L0 active latents, the L0 largest projections, if positive.

    It has the SAE's shape and sparsity and no trained weight, whatever the SAE's activation function is. Its directions come from
    a random stream of their own, so that no SAE was initialised with them.

    Args:
        draw: which of the floors, from 0.
        seed: of the run.
    """

    def __init__(self, d_in: int, d_sae: int, device: torch.device, seed: int = 0, draw: int = 0) -> None:
        key = (d_in, d_sae, seed, draw, str(device))
        shared = _SHARED.get(key)
        if shared is None:
            directions = torch.randn(d_sae, d_in, generator=generator(f"probing/floor/{draw}", seed))
            shared = _SHARED[key] = torch.nn.functional.normalize(directions, dim=1).to(device)
        self.directions = shared

    def encode(self, x: Tensor, centre: Tensor, counts: Tensor) -> Latents:
        """
        Args:
            x: [N, d_in] float32
            centre: [d_in] is subtracted first: without it the same directions win everywhere.
            counts: [N] the SAE's own L0 on each token.
        """
        d_sae = len(self.directions)
        parts = []
        step = max(1, _ELEMENTS // d_sae)
        for rows, wanted in zip(x.split(step), counts.split(step), strict=True):
            most = int(wanted.max())
            values, indices = ((rows - centre) @ self.directions.T).topk(most, dim=-1)
            beyond = torch.arange(most, device=x.device) >= wanted[:, None]
            parts.append(Latents.from_topk(values.relu().masked_fill(beyond, 0), indices, d_sae))
        return Latents.concatenate(parts)
