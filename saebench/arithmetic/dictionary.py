"""The SAE while it is trained: its parameters, and the products a loss is written in."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saebench.arithmetic import kernels
from saebench.arithmetic.kernels import Codes
from saebench.streams import generator


class Dictionary(nn.Module):
    """x̂ = z W_dec + b_dec with z a function of (x − b_dec) W_encᵀ + b_enc.

    Both matrices have one row per latent, [width, d_in]: a latent's reading and writing directions are contiguous in memory.

    Attributes:
        dtype: of the dense products; parameters are always float32.
        extra: trained tensors that only one recipe has, by name.
        state: tensors that its loss updates itself, by name.
    """

    W_enc: nn.Parameter
    W_dec: nn.Parameter

    def __init__(
        self,
        d_in: int,
        width: int,
        *,
        seed: int,
        dtype: torch.dtype,
        encoder_norm: float,
        extra: dict[str, Tensor],
        state: dict[str, Tensor],
    ) -> None:
        """
        Args:
            seed: of the directions (stream `train/weights`), which encoder and decoder start with in common.
            encoder_norm: of the encoder's rows; the decoder's have norm 1.
        """
        super().__init__()
        self.dtype = dtype
        stream = generator("train/weights", seed)
        directions = nn.functional.normalize(torch.randn(width, d_in, generator=stream), dim=1)
        self.W_enc = nn.Parameter(encoder_norm * directions)
        self.W_dec = nn.Parameter(directions)
        self.b_enc = nn.Parameter(torch.zeros(width))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.extra = nn.ParameterDict(extra)
        self.state = nn.ParameterDict({name: nn.Parameter(t, requires_grad=False) for name, t in state.items()})

    @property
    def width(self) -> int:
        return self.W_dec.shape[0]

    def pre_activations(self, x: Tensor) -> Tensor:
        """[n, width] of x [n, d_in], dense and with gradient; the first step of relu, gated and jumprelu."""
        return kernels.linear(x - self.b_dec, self.W_enc, self.b_enc, self.dtype)

    def top_k(self, x: Tensor, k: int) -> Codes:
        """The ReLU of the k largest pre-activations of each row of x [n, d_in]."""
        return kernels.encode_top_k(x, self.b_dec, self.W_enc, self.b_enc, k, self.dtype)

    def batch_top_k(self, x: Tensor, k: int) -> Codes:
        """The ReLU of the k·n largest pre-activations of the whole batch (of all processes)."""
        return kernels.encode_batch_top_k(x, self.b_dec, self.W_enc, self.b_enc, k, self.dtype)

    def decode(self, codes: Codes) -> Tensor:
        """x̂ [n, d_in] of sparse codes."""
        return kernels.decode(codes, self.W_dec, self.b_dec)

    def decode_prefixes(self, codes: Codes, sizes: Sequence[int]) -> list[Tensor]:
        """x̂ [n, d_in] of the first group of latents, of the first two, …, of all; `sizes` of the groups sum to the width."""
        x_hat, start = self.b_dec.expand(len(codes.layout.offsets) - 1, -1), 0
        found = []
        for size, W_dec in zip(sizes, self.W_dec.split(list(sizes)), strict=True):
            part = kernels.decode(codes.between(start, start + size), W_dec, torch.zeros_like(self.b_dec))
            x_hat = x_hat + part
            found.append(x_hat)
            start += size
        return found

    def decode_dense(self, z: Tensor, frozen: bool = False) -> Tensor:
        """x̂ [n, d_in] of dense codes z [n, width]; with `frozen`, W_dec and b_dec take no gradient from it."""
        W_dec, b_dec = (self.W_dec.detach(), self.b_dec.detach()) if frozen else (self.W_dec, self.b_dec)
        return kernels.linear(z, W_dec.T, b_dec, self.dtype)
