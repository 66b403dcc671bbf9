"""Random models of several families, built in memory, and reference runs of them that share nothing with saebench/subject.py."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from saebench.corpus import Contexts
from saebench.models import LoadedModel
from saebench.subject import Subject

VOCABULARY = 53
LAYERS = 3
_LLAMA_LIKE = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_SPECIFIC: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": 64, "n_embd": 16, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCABULARY},
    "gpt_neox": {"num_key_value_heads": None},
    "gemma2": {"head_dim": 4, "sliding_window": 4, "attn_implementation": "eager", "final_logit_softcapping": 3.0},
    "gemma3_text": {"head_dim": 4, "sliding_window": 4},
    "mistral": {"sliding_window": 4},
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.0625},
}


def tiny(model_type: str, seed: int = 0, **overrides: Any) -> Subject:
    """A random model whose layers all matter (the default initialisation is nearly the identity)."""
    own = dict(_SPECIFIC.get(model_type, {}))
    attention = own.pop("attn_implementation", None)
    base = {} if model_type == "gpt2" else dict(_LLAMA_LIKE)
    arguments = {k: v for k, v in {**base, **own, **overrides}.items() if v is not None}
    config = transformers.AutoConfig.for_model(model_type, **arguments)
    torch.manual_seed(seed)
    extra = {"attn_implementation": attention} if attention else {}
    model = transformers.AutoModelForCausalLM.from_config(config, **extra).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        offset = 0.0 if parameter.ndim > 1 or name.endswith("bias") or model_type.startswith("gemma") else 1.0
        parameter.data.normal_(std=0.3 if parameter.ndim > 1 else 0.1).add_(offset)
    return subject_of(model, f"{model_type}-{seed}")


def subject_of(model: Any, name: str = "tiny") -> Subject:
    return Subject(LoadedModel(model, None, name, name * 2))


def random_ids(contexts: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY, (contexts, length), generator=torch.Generator().manual_seed(seed))


def contexts_of(token_ids: Tensor, special: Tensor | None = None) -> Contexts:
    flags = torch.zeros_like(token_ids, dtype=torch.bool) if special is None else special
    n = len(token_ids)
    return Contexts(token_ids.numpy(), np.arange(n), flags.numpy(), tuple(map(str, range(n))), 0, n)


# Where a site is, written down a second time and by hand: (module below the block, which end of it).
_INSIDE = {"z": ("self_attn.o_proj", "in"), "mlp_post": ("mlp.down_proj", "in"), "ln1_out": ("input_layernorm", "out")}
REFERENCE: dict[str, dict[str, tuple[str, str]]] = {
    "llama": _INSIDE
    | {"attn_out": ("self_attn", "out"), "mlp_out": ("mlp", "out"), "ln2_out": ("mlp", "in")}
    | {"resid_mid": ("post_attention_layernorm", "in")},
    "gpt2": {
        "attn_out": ("attn", "out"), "mlp_out": ("mlp", "out"), "z": ("attn.c_proj", "in"),
        "mlp_post": ("mlp.c_proj", "in"), "ln1_out": ("attn", "in"), "ln2_out": ("mlp", "in"), "resid_mid": ("ln_2", "in"),
    },
    "gpt_neox": {
        "attn_out": ("attention", "out"), "mlp_out": ("mlp", "out"), "z": ("attention.dense", "in"),
        "mlp_post": ("mlp.dense_4h_to_h", "in"), "ln1_out": ("attention", "in"), "ln2_out": ("mlp", "in"),
    },
    # What is added to the residual stream is what the norm behind attention and MLP gives.
    "gemma2": _INSIDE
    | {"attn_out": ("post_attention_layernorm", "out"), "mlp_out": ("post_feedforward_layernorm", "out")}
    | {"resid_mid": ("pre_feedforward_layernorm", "in"), "ln2_out": ("mlp", "in")},
}  # fmt: skip
REFERENCE |= dict.fromkeys(("mistral", "qwen2"), REFERENCE["llama"]) | {"gemma3_text": REFERENCE["gemma2"]}
RESIDUAL = {"resid_pre": ("", "in"), "resid_post": ("", "out")}


@contextmanager
def hooked(
    subject: Subject, layer: int, place: tuple[str, str], change: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """`change` applied to a module's input or output; None leaves it."""
    name, end = place
    block = subject.blocks[layer]
    module = block.get_submodule(name) if name else block

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        value = args[0] if args else kwargs["hidden_states"]
        new = change(value)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    def after(_: Any, args: Any, output: Any) -> Any:
        new = change(output[0] if isinstance(output, tuple) else output)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if end == "in"
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


def family(subject: Subject) -> dict[str, tuple[str, str]]:
    return RESIDUAL | REFERENCE.get(subject.model.config.model_type, {})


@torch.no_grad()
def look(subject: Subject, layer: int, site: str, token_ids: Tensor) -> Tensor:
    """Activations at a place, by one hook on the whole model."""
    seen: list[Tensor] = []

    def keep(value: Tensor) -> None:
        seen.append(value.clone())

    with hooked(subject, layer, family(subject)[site], keep):
        subject.model(input_ids=token_ids, use_cache=False)
    return seen[0]


@torch.no_grad()
def logits_with(subject: Subject, layer: int, site: str, token_ids: Tensor, rows: Tensor) -> Tensor:
    """The model's own logits when `rows` stand at a place: a plain run of the whole model."""
    places = family(subject)
    if site == "resid_mid":  # the stream bypasses every module there: set what attention adds instead
        pre = look(subject, layer, "resid_pre", token_ids)
        site, rows = "attn_out", rows - pre
    with hooked(subject, layer, places[site], lambda h: rows.to(h.dtype)):
        return subject.model(input_ids=token_ids, use_cache=False).logits.float()


def count_hooks(subject: Subject) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules())
