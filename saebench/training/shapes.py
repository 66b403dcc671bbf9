"""Whether every SAE of a run fits the model, from the model's config alone: before any text is read."""

from collections.abc import Iterable
from typing import Any

from saebench.errors import UsageError
from saebench.hookpoint import HookPoint
from saebench.recipe import make_settings
from saebench.registry import registry
from saebench.running.cost import hook_width, model_size
from saebench.training.baselines import BASELINES, check_baseline
from saebench.training.request import SaeSpec, TrainRequest


def check_shapes(request: TrainRequest, config: Any) -> int:
    """d_in, the width of activations at the request's hook point.

    Args:
        config: the model's, as `load_config` gives it.

    Raises:
        UsageError: the model has no such layer, or see `check_saes`.
    """
    hook = HookPoint.parse(request.hook)
    layers = model_size(config).n_layers
    if not 0 <= hook.layer < layers:
        raise UsageError(f"hook point {hook} is not in {request.model}, which has layers 0 to {layers - 1}")
    d_in = hook_width(config, hook)
    check_saes(request.saes, d_in)
    return d_in


def check_saes(saes: Iterable[SaeSpec], d_in: int) -> None:
    """Raise UsageError where an SAE's recipe or setting is unknown, of the wrong type or does not fit; no weights are made."""
    for spec in saes:
        try:
            _check(spec, d_in)
        except UsageError as error:
            raise UsageError(f"{spec.name}: {error}") from error


def _check(spec: SaeSpec, d_in: int) -> None:
    if spec.recipe in BASELINES:
        check_baseline(spec.recipe, spec.settings, d_in, spec.width)
        return
    recipe = registry().get("recipes", spec.recipe)
    make_settings(recipe, spec.settings).check(d_in, spec.width)
