"""Hooks on a module's first argument or output, in every form in which transformers passes them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from saebench.errors import SaebenchError


def before(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Any:
    """Register a pre-hook on a module's first argument, positional or `hidden_states`."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        value = args[0] if args else kwargs["hidden_states"]
        changed = change(value)
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def after(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Any:
    """Register a hook on a module's output: a tensor, or the first element of a tuple."""

    def hook(_: nn.Module, args: Any, output: Any) -> Any:
        changed = change(output[0] if isinstance(output, tuple) else output)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return module.register_forward_hook(hook)


def find_blocks(model: Any) -> nn.ModuleList:
    """The decoder's layers: its outermost ModuleList of the config's length. A vision tower may be as deep."""
    n = model.config.get_text_config().num_hidden_layers
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    root = decoder if isinstance(decoder, nn.Module) else model.base_model
    found = [m for m in root.modules() if isinstance(m, nn.ModuleList) and len(m) == n]
    if not found:
        raise SaebenchError(
            f"model type '{model.config.model_type}' has no list of {n} layers that saebench can find; "
            "only decoder-only language models are supported"
        )
    return found[0]
