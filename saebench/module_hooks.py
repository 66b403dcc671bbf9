"""Hooks on a module's first argument or output, in every form in which transformers passes them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


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
