"""The cost model: the floating-point operations of a run, before it starts.

One pass = one full forward + (K + edits + ablations) × the layers above the hook point + K × SAE + calibration. On the residual
stream the two ablations cost two contexts in all (forward/ablation.py); elsewhere two more copies, until they are cached.
Experiments after the pass cost the tokens that their metrics declare (`Metric.lens_work`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saebench.forward.calibration import CONTEXTS
from saebench.hookpoint import HookPoint
from saebench.lens import LensWork


@dataclass(frozen=True)
class ModelSize:
    """Multiply-adds per token of a decoder.

    Attributes:
        block: of one layer.
        head: of the output layer.
        n_layers: number of layers.
        parameters: number of all parameters, the embedding included.
    """

    block: float
    head: float
    n_layers: int
    parameters: int

    @property
    def full(self) -> float:
        return self.n_layers * self.block + self.head

    def below(self, hook: HookPoint) -> float:
        return (hook.layer + (hook.site == "resid_post")) * self.block

    def above(self, hook: HookPoint) -> float:
        return self.full - self.below(hook)

    def experiments(self, work: LensWork, hook: HookPoint) -> float:
        """Multiply-adds of a metric's experiments."""
        layers = self.n_layers * self.block
        return work.whole * layers + work.above * (layers - self.below(hook)) + work.logits * self.head


@dataclass(frozen=True)
class Cost:
    """The cost of one pass, in multiply-adds and in full forwards of the model over the same tokens.

    Attributes:
        stages: name -> multiply-adds.
        tokens: in the pass.
        forward: multiply-adds of one full forward over them.
    """

    stages: dict[str, float]
    tokens: int
    forward: float

    @property
    def forwards(self) -> float:
        return sum(self.stages.values()) / self.forward


def model_size(config: Any) -> ModelSize:
    """Sizes from a Hugging Face config, without weights."""
    import torch
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    n = config.get_text_config().num_hidden_layers
    blocks = next(m for m in model.base_model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n)
    block = sum(p.numel() for p in blocks[0].parameters())
    head = model.get_output_embeddings().weight.numel()
    return ModelSize(float(block), float(head), n, sum(p.numel() for p in model.parameters()))


@dataclass(frozen=True)
class Streams:
    """Streams above the hook point; without any, the model stops there.

    Attributes:
        losses: whether a metric needs losses: one stream per SAE, and the ablations.
        edits: rows per context that the metrics of one SAE add.
    """

    losses: bool
    edits: int = 0


def pass_cost(
    size: ModelSize,
    write: HookPoint,
    shapes: Sequence[tuple[int, int]],
    contexts: int,
    length: float,
    streams: Streams,
) -> Cost:
    """The cost of one pass with ablated losses not cached.

    Args:
        length: tokens a context, on average.
        shapes: (d_in, d_sae) of each SAE.
    """
    tokens = round(contexts * length)
    shared = write.on_stream
    sae = sum(2.0 * d_in * d_sae for d_in, d_sae in shapes)
    stages = {"calibration": min(CONTEXTS, contexts) * length * size.below(write)}
    if streams.losses or streams.edits:
        stages["full forward"] = tokens * size.full
    else:
        stages["up to the hook"] = tokens * size.below(write)
    if streams.losses:
        stages["above the hook, once per SAE"] = tokens * len(shapes) * size.above(write)
        # Shared: two contexts run with both ablations, to prove that one row serves all (ablation.py).
        one_row = 2 * length * (size.full + 2 * size.above(write))
        stages["ablations"] = one_row if shared else 2 * tokens * size.above(write)
    if streams.edits:
        # Inside a block, the rows must be known before the block's input forks: one more pass up to the hook.
        again = 0.0 if shared else tokens * size.below(write)
        stages["edits"] = again + tokens * len(shapes) * streams.edits * size.above(write)
    stages["SAEs"] = tokens * sae
    return Cost(stages, tokens, tokens * size.full)


def memory_bytes(size: ModelSize, write_dtype_bytes: int, saes: int, batch: int, length: int, config: Any) -> float:
    """Rough peak: weights, and the largest activations of one forked batch (the MLP's three matrices in one layer)."""
    text = config.get_text_config()
    wide = getattr(text, "intermediate_size", 4 * text.hidden_size)
    rows = batch * length * (1 + saes)
    return float(size.parameters * write_dtype_bytes + rows * (3 * wide + 4 * text.hidden_size) * write_dtype_bytes)


def hook_width(config: Any, hook: HookPoint) -> int:
    """The width of activations at a hook point."""
    text = config.get_text_config()
    if hook.site == "mlp_post":
        return int(getattr(text, "intermediate_size", 4 * text.hidden_size))
    if hook.site == "z":
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return int(head * text.num_attention_heads)
    return int(text.hidden_size)
