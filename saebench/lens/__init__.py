"""`Lens`: read, edit and continue the language model at an SAE's hook point, after the pass (`env.lens`)."""

from saebench.lens.contribution import contribution, token_scale
from saebench.lens.forked import Forked
from saebench.lens.lens import Lens
from saebench.lens.model import Activations, Change
from saebench.lens.work import LensWork

__all__ = ["Activations", "Change", "Forked", "Lens", "LensWork", "contribution", "token_scale"]
