"""The floor of probing: a random dictionary of an SAE's shape, as sparse as the SAE is on each single token."""

import torch
from torch import Tensor

from saebench.sae import Latents

# Pre-activations are made this many at a time.
_ELEMENTS = 2**24


class RandomSAE:
    """d_sae random unit directions; on a token where the SAE has L0 active latents, the L0 largest positive projections.

    It has the SAE's shape and its sparsity on every token, for any activation function, and learned nothing.
    """

    def __init__(self, d_in: int, d_sae: int, device: torch.device, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(d_sae, d_in, generator=generator)
        self.directions = torch.nn.functional.normalize(directions, dim=1).to(device)

    def encode(self, x: Tensor, centre: Tensor, counts: Tensor) -> Latents:
        """
        Args:
            x: [N, d_in] float32
            centre: [d_in], subtracted first: otherwise the same directions fire on every token.
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
