"""The canonical sparse autoencoder and its sparse latents: what every checkpoint becomes.

    u = transform(x);  pre = (u - b_dec if subtracts_b_dec else u) @ W_enc + b_enc;  z = activation(pre)
    x̂ = transform⁻¹(z @ W_dec + b_dec) (+ x @ W_skip)

Latents stay sparse from encode to decode: at L0 64 of 65,536 latents a dense [tokens, d_sae] matrix would be a
thousand times larger than what is in it.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

# Pre-activations are made this many at a time (64 MiB in float32): beyond that a temporary only costs page faults.
_DENSE_ELEMENTS = 2**24


@dataclass(frozen=True)
class Latents:
    """Sparse latents of n tokens, row by row (CSR): only the latents that fire (z ≠ 0) are held.

    Attributes:
        values: [nnz] the activations, none of them 0.
        indices: [nnz] the latent each value belongs to (int64).
        offsets: [n + 1] row i is `values[offsets[i]:offsets[i + 1]]` (int64).
        shape: the shape of the dense form, (*leading, d_sae), where the product of `leading` is n.
    """

    values: Tensor
    indices: Tensor
    offsets: Tensor
    shape: tuple[int, ...]

    @classmethod
    def from_dense(cls, z: Tensor) -> "Latents":
        """Latents of a dense [*leading, d_sae] tensor."""
        rows = z.reshape(-1, z.shape[-1])
        fires = rows != 0
        indices = fires.nonzero()[:, 1]
        return cls(rows[fires], indices, _offsets(fires.sum(1)), tuple(z.shape))

    @classmethod
    def from_topk(cls, values: Tensor, indices: Tensor, d_sae: int) -> "Latents":
        """Latents of [n, k] values and indices; zeros among the values are left out, since they do not fire."""
        fires = values != 0
        return cls(values[fires], indices[fires], _offsets(fires.sum(1)), (len(values), d_sae))

    @classmethod
    def concatenate(cls, parts: "list[Latents]") -> "Latents":
        """Rows of several Latents of one d_sae, one after the other; shape (n, d_sae)."""
        if len(parts) == 1:
            return parts[0]
        counts = torch.cat([p.counts() for p in parts])
        return cls(
            torch.cat([p.values for p in parts]),
            torch.cat([p.indices for p in parts]),
            _offsets(counts),
            (len(counts), parts[0].shape[-1]),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def counts(self) -> Tensor:
        """[n] how many latents fire on each token: the token's L0."""
        return self.offsets.diff()

    def rows(self) -> Tensor:
        """[nnz] the row each value belongs to."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.values.device), self.counts())

    def select(self, mask: Tensor) -> "Latents":
        """The rows where `mask` (boolean, n elements in any shape) is true; shape (n_true, d_sae)."""
        mask = mask.reshape(-1)
        keep = mask[self.rows()]
        counts = self.counts()[mask]
        return Latents(self.values[keep], self.indices[keep], _offsets(counts), (len(counts), self.shape[-1]))

    def reshape(self, *leading: int) -> "Latents":
        """The same rows under other leading dimensions."""
        if math.prod(leading) != len(self):
            raise ValueError(f"{len(self)} rows do not fill {leading}")
        return replace(self, shape=(*leading, self.shape[-1]))

    def dense(self) -> Tensor:
        """[*leading, d_sae]"""
        out = self.values.new_zeros(len(self), self.shape[-1])
        out[self.rows(), self.indices] = self.values
        return out.reshape(self.shape)


def _offsets(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(0), (1, 0))


# --- activations -----------------------------------------------------------------------------------------------------


class Activation(Protocol):
    """Maps pre-activations [n, d_sae] to Latents; its dataclass fields are what it needs from a checkpoint."""

    def __call__(self, pre: Tensor) -> Latents: ...


@dataclass(frozen=True)
class ReLU:
    """z = max(pre, 0)."""

    def __call__(self, pre: Tensor) -> Latents:
        return Latents.from_dense(pre.relu())


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices [n, k] of each row's k largest scores, in no particular order."""
    values, indices = scores.topk(k, dim=-1, sorted=False)
    return values, indices


@dataclass(frozen=True)
class TopK:
    """z = ReLU of the k largest pre-activations of each token, 0 elsewhere (Gao et al. 2024, arXiv 2406.04093, eq. 2)."""

    k: int

    def __call__(self, pre: Tensor) -> Latents:
        values, indices = top_k(pre, self.k)
        return Latents.from_topk(values.relu(), indices, pre.shape[-1])


@dataclass(frozen=True)
class SignedTopK:
    """z = the k largest pre-activations of each token, negative ones too, 0 elsewhere."""

    k: int

    def __call__(self, pre: Tensor) -> Latents:
        values, indices = top_k(pre, self.k)
        return Latents.from_topk(values, indices, pre.shape[-1])


@dataclass(frozen=True)
class AbsTopK:
    """z = the k pre-activations of each token that are largest in magnitude, with their signs (arXiv 2510.00404)."""

    k: int

    def __call__(self, pre: Tensor) -> Latents:
        _, indices = top_k(pre.abs(), self.k)
        return Latents.from_topk(pre.gather(-1, indices), indices, pre.shape[-1])


@dataclass(frozen=True)
class NormTopK:
    """z = ReLU of the pre-activations whose product with `norm` is among the token's k largest (Llamascopium).

    Attributes:
        k: how many.
        norm: [d_sae] the decoder rows' norms, which decide the selection and leave the value alone.
    """

    k: int
    norm: Tensor

    def __call__(self, pre: Tensor) -> Latents:
        values, indices = top_k(pre * self.norm, self.k)
        chosen = pre.gather(-1, indices)
        return Latents.from_topk(torch.where(values > 0, chosen, 0.0), indices, pre.shape[-1])


@dataclass(frozen=True)
class Identity:
    """z = pre: a dense code, as OpenAI's format allows."""

    def __call__(self, pre: Tensor) -> Latents:
        return Latents.from_dense(pre)


@dataclass(frozen=True)
class JumpReLU:
    """z = ReLU(pre) where pre > threshold, else 0 (Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 2).

    Attributes:
        threshold: [d_sae] or a scalar, in the units of pre. BatchTopK at inference is this with one learned threshold.
    """

    threshold: Tensor

    def __call__(self, pre: Tensor) -> Latents:
        return Latents.from_dense(torch.where(pre > self.threshold, pre.relu(), 0.0))


@dataclass(frozen=True)
class Gated:
    """z = ReLU(exp(r_mag)·p + b_mag) where p + b_gate > 0 (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 6).

    p is the encoder's projection without a bias: the SAE's own b_enc is zero. All fields are [d_sae].
    """

    r_mag: Tensor
    b_gate: Tensor
    b_mag: Tensor

    def __call__(self, pre: Tensor) -> Latents:
        magnitude = (pre * self.r_mag.exp() + self.b_mag).relu()
        return Latents.from_dense(torch.where(pre + self.b_gate > 0, magnitude, 0.0))


@dataclass(frozen=True)
class GroupMax:
    """z = ReLU of the largest pre-activation in each of k equal, consecutive groups of latents (EleutherAI sparsify)."""

    k: int

    def __call__(self, pre: Tensor) -> Latents:
        groups = pre.relu().unflatten(-1, (self.k, -1))
        values, indices = groups.max(dim=-1)
        start = torch.arange(self.k, device=pre.device) * groups.shape[-1]
        return Latents.from_topk(values, indices + start, pre.shape[-1])


# --- input transforms ------------------------------------------------------------------------------------------------


class Transform(Protocol):
    """Maps model space to the SAE's own space, and back with what it took from the token."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]: ...

    def inverse(self, u: Tensor, stats: Any) -> Tensor: ...


@dataclass(frozen=True)
class NoTransform:
    """The SAE reads activations as they are."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return x, None

    def inverse(self, u: Tensor, stats: Any) -> Tensor:
        return u


@dataclass(frozen=True)
class LayerNorm:
    """Per token u = (x − mean)/(sd + eps), and x̂ = û·sd + mean on the way out.

    Attributes:
        eps: added to the standard deviation, outside the root.
        unbiased: whether sd divides by d − 1.
        eps_on_output: whether the way out multiplies by sd + eps rather than sd.
        restores: whether there is a way out; a transcoder's output lies elsewhere and stays as it is.
    """

    eps: float = 1e-5
    unbiased: bool = True
    eps_on_output: bool = False
    restores: bool = True

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        mean = x.mean(-1, keepdim=True)
        centred = x - mean
        sd = centred.std(-1, keepdim=True, correction=int(self.unbiased))
        return centred / (sd + self.eps), (mean, sd)

    def inverse(self, u: Tensor, stats: Any) -> Tensor:
        if not self.restores:
            return u
        mean, sd = stats
        restored: Tensor = u * (sd + self.eps if self.eps_on_output else sd) + mean
        return restored


@dataclass(frozen=True)
class TokenScale:
    """Per token u = x·(√d/‖x‖), undone on the way out (SAELens "constant_norm_rescale").

    Attributes:
        norm: the length given to every token; None means √d.
        restores: whether the way out undoes it; a transcoder's output lies elsewhere and stays as it is.
    """

    norm: float | None = None
    restores: bool = True

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        target = math.sqrt(x.shape[-1]) if self.norm is None else self.norm
        scale = target / x.norm(dim=-1, keepdim=True)
        return x * scale, scale

    def inverse(self, u: Tensor, stats: Any) -> Tensor:
        return u / stats if self.restores else u


# --- the SAE ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """One convention that changes numbers, and where it was read: a file and key, `inferred`, or an option."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says about itself; None is "it does not say", never a guess.

    Attributes:
        architecture: the training architecture in the field's words (topk, batchtopk, jumprelu, …).
        format: the name of the format plugin that read it.
        path: where it was read from.
        model: the language model it was trained on, as the checkpoint names it.
        hook: the hook point it reads, in either dialect; hook_out the one it writes, where that differs (a transcoder).
        dtype: in what precision the file holds the weights (in memory they are float32).
        transcoder: whether it is known to write elsewhere than it reads, even if it does not say where.
        declared_l0: the k, or the expected L0, that the checkpoint declares.
        facts: every convention that changes numbers, with its source.
        group_sizes: widths of the nested prefixes of a Matryoshka SAE.
    """

    architecture: str = "unknown"
    format: str | None = None
    path: str | None = None
    model: str | None = None
    hook: str | None = None
    hook_out: str | None = None
    context_length: int | None = None
    prepend_bos: bool | None = None
    training_tokens: int | None = None
    declared_l0: float | None = None
    group_sizes: tuple[int, ...] | None = None
    dtype: str | None = None
    transcoder: bool = False
    facts: tuple[Fact, ...] = ()


@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder (or transcoder) in canonical form; it takes and gives activations in the model's own space.

    Attributes:
        W_enc: [d_in, d_sae]
        W_dec: [d_sae, d_out], rows contiguous
        b_enc: [d_sae]
        b_dec: [d_out]
        activation: pre-activations to Latents
        subtracts_b_dec: whether the encoder sees u − b_dec
        transform: model space to the SAE's space and back
        W_skip: [d_in, d_out] of a skip transcoder, x @ W_skip is added to the output
    """

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    activation: Activation
    subtracts_b_dec: bool
    transform: Transform = field(default_factory=NoTransform)
    W_skip: Tensor | None = None
    metadata: Metadata = field(default_factory=Metadata)

    def __post_init__(self) -> None:
        d_in, d_sae = self.W_enc.shape
        wanted = {"W_dec": (d_sae, self.W_dec.shape[-1]), "b_enc": (d_sae,), "b_dec": (self.W_dec.shape[-1],)}
        for name, shape in wanted.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)}, expected {shape}")
        if self.subtracts_b_dec and d_in != self.d_out:
            raise ValueError("an SAE whose output differs in width from its input cannot subtract b_dec")

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def is_transcoder(self) -> bool:
        """Whether it predicts another place than the one it reads."""
        meta = self.metadata
        return meta.transcoder or (meta.hook_out is not None and meta.hook_out != meta.hook)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Latents:
        """Latents of activations x [*leading, d_in], in the SAE's own dtype."""
        rows = x.reshape(-1, self.d_in).to(self.W_enc.dtype)
        step = max(1, _DENSE_ELEMENTS // self.d_sae)
        parts = [self._encode_rows(chunk) for chunk in rows.split(step)] or [self._encode_rows(rows)]
        return Latents.concatenate(parts).reshape(*x.shape[:-1])

    def _encode_rows(self, rows: Tensor) -> Latents:
        u, _ = self.transform.forward(rows)
        if self.subtracts_b_dec:
            u = u - self.b_dec
        return self.activation(torch.addmm(self.b_enc, u, self.W_enc))

    @torch.no_grad()
    def decode(self, latents: Latents, x: Tensor | None = None) -> Tensor:
        """Reconstruction [*leading, d_out] in the model's own space.

        Args:
            latents: what `encode` gave.
            x: the activations [*leading, d_in] they came from. Needed when the SAE normalises each token (its way back
                needs the token's own statistics) or has a skip connection.

        Raises:
            ValueError: x is needed and was not given.
        """
        u = F.embedding_bag(
            latents.indices,
            self.W_dec,
            latents.offsets,
            mode="sum",
            per_sample_weights=latents.values,
            include_last_offset=True,
        )
        u = (u + self.b_dec).reshape(*latents.shape[:-1], self.d_out)
        if isinstance(self.transform, NoTransform) and self.W_skip is None:
            return u
        if x is None:
            raise ValueError("decode needs x: this SAE normalises each token or has a skip connection")
        x = x.to(self.W_enc.dtype)
        _, stats = self.transform.forward(x)
        out = self.transform.inverse(u, stats)
        return out if self.W_skip is None else out + x @ self.W_skip

    def __call__(self, x: Tensor) -> Tensor:
        """The full reconstruction of x [*leading, d_in]: [*leading, d_out]."""
        return self.decode(self.encode(x), x)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that makes this SAE, by name, in a fixed order."""
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "W_skip"):
            value = getattr(self, name)
            if value is not None:
                yield name, value
        for f in fields(self.activation):  # type: ignore[arg-type]
            value = getattr(self.activation, f.name)
            if isinstance(value, Tensor):
                yield f"activation.{f.name}", value

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "SAE":
        """This SAE on another device (and in another floating dtype)."""
        return self.map(lambda t: t.to(device=device, dtype=dtype or t.dtype))

    def map(self, move: Callable[[Tensor], Tensor]) -> "SAE":
        """This SAE with every tensor replaced by `move(tensor)`."""
        activation = replace(
            self.activation,  # type: ignore[type-var]
            **{
                f.name: move(v)
                for f in fields(self.activation)  # type: ignore[arg-type]
                if isinstance(v := getattr(self.activation, f.name), Tensor)
            },
        )
        own = {n: move(t) for n, t in self.tensors() if "." not in n}
        return replace(self, activation=activation, **own)  # type: ignore[arg-type]

    def sha256(self) -> str:
        """The identity of the function itself: every tensor's bytes and every convention, whatever file it came from."""
        digest = hashlib.sha256()
        plain = (
            type(self.activation).__name__,
            [
                (f.name, v)
                for f in fields(self.activation)  # type: ignore[arg-type]
                if not isinstance(v := getattr(self.activation, f.name), Tensor)
            ],
            self.subtracts_b_dec,
            repr(self.transform),
        )
        digest.update(repr(plain).encode())
        for name, tensor in self.tensors():
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            for chunk in torch.atleast_1d(tensor).split(4096):
                digest.update(chunk.contiguous().view(torch.uint8).cpu().numpy().data)
        return digest.hexdigest()
