"""The canonical sparse autoencoder, the form into which every checkpoint is read.

u = transform(x);  pre = (u - b_dec if subtracts_b_dec else u) @ W_enc + b_enc;  z = activation(pre)
x̂ = transform⁻¹(z @ W_dec + b_dec) (+ x @ W_skip)
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from saebench.activation import AbsTopK as AbsTopK
from saebench.activation import Activation as Activation
from saebench.activation import Gated as Gated
from saebench.activation import GroupMax as GroupMax
from saebench.activation import Identity as Identity
from saebench.activation import JumpReLU as JumpReLU
from saebench.activation import NormTopK as NormTopK
from saebench.activation import ReLU as ReLU
from saebench.activation import SignedTopK as SignedTopK
from saebench.activation import TopK as TopK
from saebench.activation import top_k as top_k
from saebench.latents import Latents as Latents
from saebench.transform import LayerNorm as LayerNorm
from saebench.transform import NoTransform as NoTransform
from saebench.transform import TokenScale as TokenScale
from saebench.transform import Transform as Transform

# Pre-activations are computed this many at a time (64 MiB in float32): a larger temporary only costs page faults.
_DENSE_ELEMENTS = 2**24


@dataclass(frozen=True)
class Fact:
    """One convention that changes numbers, with its source: a file and key, `inferred`, or an option."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class Metadata:
    """Facts that a checkpoint states about its SAE; None where the checkpoint states nothing, never a guess.

    Attributes:
        architecture: the training architecture in the field's words (topk, batchtopk, jumprelu, …).
        format: name of the format plugin that read the checkpoint.
        path: the file, folder or address that was read.
        model: the language model the SAE was trained on, as the checkpoint names it.
        hook, hook_out: the hook points read and written, in either dialect; `hook_out` only where they differ (a transcoder).
        context_length: tokens per training context.
        prepend_bos: whether training contexts began with BOS.
        training_tokens: tokens of training.
        declared_l0: the k, or the expected L0, that the checkpoint declares.
        group_sizes: widths of the nested prefixes of a Matryoshka SAE.
        dtype: precision of the weights in the file (float32 in memory).
        transcoder: whether the SAE writes to another place than it reads, known even without `hook_out`.
        facts: every convention that changes numbers, with its source.
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

    def __repr__(self) -> str:
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "facts"}
        shown = [f"{name}={value!r}" for name, value in known.items() if value is not None and value is not False]
        return f"Metadata({', '.join(shown)}, {len(self.facts)} facts)"


@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder (or transcoder) in canonical form; input and output are in the model's own space.

    Attributes:
        W_enc: [d_in, d_sae]
        W_dec: [d_sae, d_out], rows contiguous
        b_enc: [d_sae]
        b_dec: [d_out]
        activation: pre-activations to Latents
        subtracts_b_dec: whether the encoder sees u − b_dec
        transform: model space to the SAE's space and back
        W_skip: [d_in, d_out] of a skip transcoder: x @ W_skip is added to the output
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

    def __repr__(self) -> str:
        meta, kind = self.metadata, type(self.activation).__name__
        where = f", {meta.hook} of {meta.model}" if meta.hook else ""
        return f"SAE({self.d_in} → {self.d_sae}, {kind}{where})"

    @property
    def is_transcoder(self) -> bool:
        """Whether the SAE reconstructs another place than the one it reads."""
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
            latents: the latents that `encode` returned.
            x: the activations [*leading, d_in] that were encoded. Needed when the SAE normalises each token (the inverse
                uses the token's statistics) or has a skip connection.

        Raises:
            ValueError: x is needed and missing.
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
        """Every tensor of the SAE, by name, in a fixed order."""
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "W_skip"):
            value = getattr(self, name)
            if value is not None:
                yield name, value
        for f in fields(self.activation):  # type: ignore[arg-type]
            value = getattr(self.activation, f.name)
            if isinstance(value, Tensor):
                yield f"activation.{f.name}", value

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "SAE":
        """The SAE on another device, and in another floating dtype if given."""
        return self.map(lambda t: t.to(device=device, dtype=dtype or t.dtype))

    def map(self, move: Callable[[Tensor], Tensor]) -> "SAE":
        """The SAE with every tensor replaced by `move(tensor)`."""
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
        """Hash of the function: every tensor's bytes and every convention, but not the file they came from."""
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
