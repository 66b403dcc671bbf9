"""saebench: measure sparse autoencoders on language models.

The public API. Names are resolved on first use, so that `saebench --help` and plugin metadata never import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saebench.board.frame import load_results as load_results
    from saebench.errors import SaebenchError as SaebenchError
    from saebench.format import Format as Format
    from saebench.format import LoadOptions as LoadOptions
    from saebench.hookpoint import HookPoint as HookPoint
    from saebench.hookspecs import hookimpl as hookimpl
    from saebench.judge import Judge as Judge
    from saebench.lens import Lens as Lens
    from saebench.loading.checkpoint import load_sae as load_sae
    from saebench.loading.checkpoint import save_sae as save_sae
    from saebench.metric import Batch as Batch
    from saebench.metric import Env as Env
    from saebench.metric import Metric as Metric
    from saebench.metric import Score as Score
    from saebench.results import Record as Record
    from saebench.results import load_records as load_records
    from saebench.runner import run as run
    from saebench.sae import SAE as SAE
    from saebench.sae import Latents as Latents
    from saebench.steering.steer import steer as steer

__version__ = "0.1.0"

_HOME = {
    "Batch": "metric",
    "Env": "metric",
    "Format": "format",
    "HookPoint": "hookpoint",
    "Judge": "judge",
    "Latents": "sae",
    "Lens": "lens",
    "LoadOptions": "format",
    "Metric": "metric",
    "Record": "results",
    "SAE": "sae",
    "SaebenchError": "errors",
    "Score": "metric",
    "hookimpl": "hookspecs",
    "load_records": "results",
    "load_results": "board.frame",
    "load_sae": "loading.checkpoint",
    "run": "runner",
    "save_sae": "loading.checkpoint",
    "steer": "steering.steer",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'saebench' has no attribute {name!r}")
    return getattr(import_module(f"saebench.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
