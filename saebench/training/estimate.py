"""`--dry-run`: tokens, steps, memory, disk and time of a training run, from the model's config and a moment of this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saebench.arithmetic.speed import duration, matrix_speed
from saebench.hookpoint import HookPoint
from saebench.models import DTYPES, default_device, load_config
from saebench.recipe import StepCost, make_settings
from saebench.registry import registry
from saebench.running.cost import ModelSize, model_size
from saebench.training.baselines import BASELINES
from saebench.training.budget import checkpoint_bytes, chunk_contexts
from saebench.training.choices import settled
from saebench.training.request import SaeSpec, TrainRequest
from saebench.training.shapes import check_shapes

# Python, torch and transformers themselves, in a process that uses no GPU.
_PROCESS = 0.5 * 2**30
# Tensors [batch, d_in] of a step (activations as they come and scaled, x̂, the error, gradients): what a topk step took of memory
# at d_in 576 beside its weights and its codes.
_ROWS = 13


@dataclass(frozen=True)
class Estimate:
    """Time, memory and disk that a run would take.

    Attributes:
        tokens, steps: None where the text's length decides and was not read.
        model_flops, sae_flops: floating-point operations per token: the model up to the hook point, all SAEs' steps.
        seconds: roughly, at the speed of this machine's matrix products; None without a token count.
        memory, disk, cache: bytes.
    """

    request: TrainRequest
    device: str
    dtype: str
    d_in: int
    tokens: int | None
    steps: int | None
    model_flops: float
    sae_flops: float
    seconds: tuple[float, float] | None
    memory: float
    disk: float
    cache: float | None

    def lines(self) -> list[str]:
        """For people."""
        request = self.request
        names = ", ".join(sae.name for sae in request.saes)
        out = [
            f"{request.model} at {request.hook} (d = {self.d_in}), {self.dtype} on {self.device}",
            f"{len(request.saes)} SAE(s) from one forward pass: {names}",
        ]
        if self.tokens is None or self.steps is None:
            out.append(f"tokens: the text of {request.epochs} epoch(s); give --tokens for steps and time")
        else:
            out.append(
                f"tokens {self.tokens:,} in {self.steps:,} steps of {request.batch_size:,}, at most {request.epochs} epoch(s)"
            )
        if products := self.products:
            out.append(f"SAE products in {' and '.join(products)}")
        out.append(f"work per token: model {self.model_flops / 1e6:,.0f} MFLOP, SAEs {self.sae_flops / 1e6:,.0f} MFLOP")
        out.append(f"memory about {self.memory / 2**30:.1f} GiB; disk about {self.disk / 2**30:.2f} GiB")
        if self.cache is not None:
            out.append(f"activations kept in {request.cache}: {self.cache / 2**30:.1f} GiB an epoch")
        if self.seconds is not None:
            model, saes = self.seconds
            out.append(
                f"time about {duration(model + saes)} on this machine: model {duration(model)}, SAEs {duration(saes)}"
            )
        return out

    @property
    def products(self) -> list[str]:
        """The precisions of the SAEs' dense products; none of baselines alone."""
        return sorted({_cost(sae)[1] for sae in self.request.saes if sae.recipe not in BASELINES})

    def to_json(self) -> dict[str, Any]:
        """Plain values; bytes, seconds, floating-point operations."""
        return {
            "saes": [sae.name for sae in self.request.saes], "device": self.device, "dtype": self.dtype,
            "products": self.products, "d_in": self.d_in, "tokens": self.tokens, "steps": self.steps,
            "model_flops_per_token": self.model_flops,
            "sae_flops_per_token": self.sae_flops, "seconds": self.seconds and sum(self.seconds),
            "memory_bytes": self.memory, "disk_bytes": self.disk, "cache_bytes": self.cache,
        }  # fmt: skip


def estimate(
    request: TrainRequest, tokens: int | None = None, steps: int | None = None, length: int | None = None
) -> Estimate:
    """Estimate a run from the model's config alone.

    Args:
        tokens, steps, length: where the text was read (length: tokens of a context); None takes the request's.

    Raises:
        UsageError: see `check_shapes`.
    """
    device = request.device or default_device()
    request = settled(request, device)
    hook = HookPoint.parse(request.hook)
    config = load_config(request.model, request.revision)
    size = model_size(config)
    d_in = check_shapes(request, config)
    length = length or request.context_length
    dtype = str(request.dtype)
    itemsize = DTYPES[dtype].itemsize
    tokens = tokens or request.tokens
    steps = steps or (tokens // request.batch_size if tokens else None)
    model_flops = 2 * size.below(hook)
    sae_flops = sum(2.0 * _cost(sae)[0].products * d_in * sae.width for sae in request.saes)
    seconds = None
    if tokens is not None:
        needed = {dtype, "float32", *(_cost(sae)[1] for sae in request.saes)}
        rates = {name: matrix_speed(device, DTYPES[name]) for name in sorted(needed)}
        seconds = (
            tokens * model_flops / rates[dtype],
            tokens * sum(_sae_seconds(s, d_in, rates) for s in request.saes),
        )
    chunk = chunk_contexts(request, d_in, itemsize, length) * length
    state = checkpoint_bytes(request, d_in)
    return Estimate(
        request, device, dtype, d_in, tokens, steps, model_flops, sae_flops, seconds,
        _memory(request, size, config, d_in, itemsize, device, chunk, length), state * 5 / 2,
        None if request.cache is None or tokens is None else tokens / request.epochs * d_in * itemsize,
    )  # fmt: skip


def _memory(
    request: TrainRequest, size: ModelSize, config: Any, d_in: int, itemsize: int, device: str, chunk: int, length: int
) -> float:
    """Weights, one forward pass's widest layer, the buffer twice over (as it is filled), the SAEs, the fullest of their steps."""
    text = config.get_text_config()
    batch = int(request.context_batch or 1) * length
    wide = 3 * getattr(text, "intermediate_size", 4 * text.hidden_size) + 4 * text.hidden_size
    model = size.parameters * itemsize + batch * wide * itemsize
    saes = sum(4 * 4 * (2 * d_in * sae.width) for sae in request.saes)
    step = 4 * request.batch_size * max(_cost(sae)[0].held * sae.width + _ROWS * d_in for sae in request.saes)
    process = _PROCESS if device.startswith("cpu") else 0
    return float(process + model + 2 * chunk * d_in * itemsize + saes + step)


def _cost(sae: SaeSpec) -> tuple[StepCost, str]:
    """Cost of one step of an SAE, and the dtype of its products."""
    if sae.recipe in BASELINES:
        return StepCost(held=0, products=1, elementwise=0), "float32"  # pca's covariance; random makes no step
    recipe = registry().get("recipes", sae.recipe)
    return recipe.cost, str(make_settings(recipe, sae.settings).dtype)


def _sae_seconds(sae: SaeSpec, d_in: int, rates: Mapping[str, float]) -> float:
    """The time of an SAE's step for each of its tokens, at these floating-point operations a second."""
    cost, dtype = _cost(sae)
    return 2 * sae.width * (cost.products * d_in / rates[dtype] + cost.elementwise / rates["float32"])
