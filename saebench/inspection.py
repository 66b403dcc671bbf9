"""`saebench inspect`: a checkpoint's properties, the source of each convention, and missing information."""

import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from saebench.errors import UsageError
from saebench.format import MissingError
from saebench.hookpoint import HookPoint
from saebench.loading.checkpoint import load_sae
from saebench.sae import SAE, Fact, Metadata

# Placeholders that let loading continue; values that depend on one are left out of the result.
_STAND_IN: dict[str, Any] = {"k": 1, "scale": 1.0}


@dataclass(frozen=True)
class Norms:
    """Smallest, median and largest of some lengths (or the one length of a bias, three times)."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:.4g}"
        return f"{self.low:.4g} … {self.median:.4g} … {self.high:.4g}"


@dataclass(frozen=True)
class Missing:
    """Information that a run needs and the checkpoint lacks, and the flag that supplies it."""

    name: str
    flag: str
    why: str


@dataclass(frozen=True)
class Inspection:
    """The properties of a checkpoint.

    Attributes:
        path, format: of the checkpoint.
        architecture: in the field's words; `activation` is the function it became here.
        d_in, d_sae, d_out: its shape; `parameters` counts them all.
        dtype: precision of the weights in the file.
        model, hook, hook_out, context_length, prepend_bos, training_tokens, group_sizes: of its training.
        transcoder: whether it writes elsewhere than it reads.
        declared_l0, measured_l0: latents per token, as declared and (with a model) as counted.
        sha256: the identity of the function, None while something it depends on is missing.
        norms: lengths of encoder columns, decoder rows and biases.
        facts: every convention that changes numbers, and its source.
        missing: information to supply, with its flag.
    """

    path: str
    format: str
    architecture: str
    activation: str
    d_in: int
    d_sae: int
    d_out: int
    parameters: int
    dtype: str | None
    model: str | None
    hook: str | None
    hook_out: str | None
    context_length: int | None
    prepend_bos: bool | None
    training_tokens: int | None
    group_sizes: tuple[int, ...] | None
    transcoder: bool
    declared_l0: float | None
    measured_l0: float | None
    sha256: str | None
    norms: dict[str, Norms]
    facts: tuple[Fact, ...]
    missing: tuple[Missing, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The properties as lines of text."""
        shape = f"{self.d_in} → {self.d_sae} → {self.d_out}"
        out = [
            f"{self.path}: {self.format} checkpoint",
            f"  architecture  {self.architecture}, computed as {self.activation}",
            f"  shape         {shape}, {self.parameters:,} parameters, stored as {self.dtype or 'unknown'}",
            f"  model         {self.model or 'unknown'}",
            f"  hook          {self.hook or 'unknown'}{f' → {self.hook_out}' if self.hook_out else ''}",
        ]
        out += [f"  {name:<13} {value}" for name, value in self._optional() if value is not None]
        out += [f"  ‖{name}‖".ljust(16) + str(norms) for name, norms in self.norms.items()]
        out += ["conventions that change numbers:"]
        width = max((len(f.name) for f in self.facts), default=0)
        out += [f"  {f.name:<{width}}  {f.value}  [{f.source}]" for f in self.facts]
        if self.missing:
            out += ["missing:", *(f"  {m.name}: supply it with {m.flag} ({m.why})" for m in self.missing)]
        return out

    def _optional(self) -> list[tuple[str, Any]]:
        return [
            ("context", self.context_length), ("prepend BOS", self.prepend_bos), ("tokens", self.training_tokens),
            ("groups", self.group_sizes), ("declared L0", self.declared_l0),
            ("measured L0", None if self.measured_l0 is None else f"{self.measured_l0:.2f}"), ("sha256", self.sha256),
        ]  # fmt: skip


def inspect_sae(
    path: str | Path,
    *,
    format: str | None = None,
    k: int | None = None,
    scale: float | None = None,
    hook: str | None = None,
    model: str | None = None,
    ignore_keys: Collection[str] = (),
    measure: bool = False,
) -> Inspection:
    """Inspect the checkpoint at `path`; missing information is listed, not an error.

    Args:
        path, format, k, scale, hook, model, ignore_keys: as for `load_sae`.
        measure: run the model on a sample of text and measure the L0; needs a model and a hook point.

    Raises:
        UsageError: no such path; `measure` without a model or a hook point, or for a checkpoint that lacks its k or scale.
        CheckpointError: damaged or ambiguous.
    """
    given: dict[str, Any] = {"k": k, "scale": scale}
    lacking: list[Missing] = []
    while True:
        try:
            sae = load_sae(path, format=format, hook=hook, model=model, ignore_keys=ignore_keys, **given)
            break
        except MissingError as error:
            if given[error.option] is not None:
                raise
            given[error.option] = _STAND_IN[error.option]
            lacking.append(Missing(error.option, f"--{error.option}", "the SAE cannot be computed without it"))
    measured = None
    if measure:
        if lacking:
            raise UsageError(f"{path}: the L0 cannot be measured without {', '.join(m.flag for m in lacking)}")
        measured = measure_l0(sae)
    return _describe(sae, lacking, measured)


def _describe(sae: SAE, lacking: list[Missing], measured: float | None) -> Inspection:
    meta = sae.metadata
    stood_in = {f"--{m.name}" for m in lacking}
    missing = tuple(lacking) + _unsaid(sae)
    return Inspection(
        path=meta.path or "", format=meta.format or "", architecture=meta.architecture,
        activation=_activation(sae, "--k" in stood_in), d_in=sae.d_in, d_sae=sae.d_sae, d_out=sae.d_out,
        parameters=sum(t.numel() for _, t in sae.tensors()), dtype=meta.dtype, model=meta.model, hook=meta.hook,
        hook_out=meta.hook_out, context_length=meta.context_length, prepend_bos=meta.prepend_bos,
        training_tokens=meta.training_tokens, group_sizes=meta.group_sizes, transcoder=sae.is_transcoder,
        declared_l0=None if "--k" in stood_in else meta.declared_l0, measured_l0=measured,
        sha256=None if lacking else sae.sha256(), norms=_norms(sae),
        facts=tuple(f for f in meta.facts if f.source not in stood_in), missing=missing,
    )  # fmt: skip


def _unsaid(sae: SAE) -> tuple[Missing, ...]:
    meta, out = sae.metadata, []
    if meta.hook is None:
        out.append(Missing("hook", "--hook", "the hook point is not in the checkpoint"))
    elif problem := _unknown_place(meta.hook):
        out.append(Missing("hook", "--hook", problem))
    if meta.model is None:
        out.append(Missing("model", "--model", "the language model is not in the checkpoint"))
    return tuple(out)


def _unknown_place(hook: str) -> str | None:
    try:
        HookPoint.parse(hook)
    except UsageError as error:
        return str(error)
    return None


def _activation(sae: SAE, without_k: bool) -> str:
    name = type(sae.activation).__name__
    k = getattr(sae.activation, "k", None)
    if k is not None:
        name += "(k = ?)" if without_k else f"(k = {k})"
    threshold = getattr(sae.activation, "threshold", None)
    if isinstance(threshold, Tensor):
        low, high = float(threshold.min()), float(threshold.max())
        name += f"(threshold {low:.4g})" if low == high else f"(thresholds {low:.4g} … {high:.4g})"
    transform = type(sae.transform).__name__
    return name if transform == "NoTransform" else f"{transform} → {name}"


def _norms(sae: SAE) -> dict[str, Norms]:
    found = {}
    for name, lengths in (("W_enc", _columns(sae.W_enc)), ("W_dec", sae.W_dec.norm(dim=1))):
        found[name] = Norms(float(lengths.min()), float(lengths.median()), float(lengths.max()))
    for name in ("b_enc", "b_dec"):
        length = float(getattr(sae, name).norm())
        found[name] = Norms(length, length, length)
    return found


def _columns(matrix: Tensor) -> Tensor:
    """[columns] norms of the columns, read along the matrix's memory layout."""
    lengths: Tensor = matrix.T.norm(dim=1) if not matrix.is_contiguous() else matrix.norm(dim=0)
    return lengths


def measure_l0(sae: SAE, contexts: int = 8, length: int = 128) -> float:
    """Mean number of latents per token on a sample of the `fidelity` task's text, without BOS and outliers.

    Raises:
        UsageError: the SAE's model or hook point is unknown, or does not fit the SAE.
    """
    from saebench.catalog import load_task
    from saebench.corpus import task_contexts
    from saebench.forward.calibration import calibrate
    from saebench.models import default_device, load_model
    from saebench.subject import Subject

    meta: Metadata = sae.metadata
    if meta.model is None or meta.hook is None:
        raise UsageError(f"{meta.path}: measuring the L0 needs --model and --hook, which the checkpoint lacks")
    place = HookPoint.parse(meta.hook)
    subject = Subject(load_model(meta.model, device=default_device()))
    subject.require(place)
    task = load_task("fidelity")
    small = task.with_content(contexts=replace(task.contexts, count=contexts, length=min(length, task.contexts.length)))
    text = task_contexts(small, subject.loaded.tokenizer)
    with tempfile.TemporaryDirectory() as cache:
        sample = calibrate(subject, text, place, place, task.contexts.max_norm, 8, Path(cache)).sample
    if sample.shape[1] != sae.d_in:
        raise UsageError(f"{meta.path}: reads {sae.d_in} numbers, but {place} of {meta.model} has {sample.shape[1]}")
    return float(sae.encode(sample.cpu()).counts().double().mean())
