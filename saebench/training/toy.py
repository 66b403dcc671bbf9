"""The toy: a small network with more features than neurons, whose features are known.

Features are planted as directions in a layer of fewer neurons, in superposition (Elhage et al. 2022, "Toy Models of
Superposition"); few are active at a time, and they come in groups that are active together, as features of text do. An SAE
that sees only the neurons has to recover the directions.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saebench.recipe import Recipe, make_settings
from saebench.streams import generator
from saebench.training.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ToyNetwork:
    """Planted features and how they fire.

    A group is on with probability `on`, and each feature of a group that is on fires with probability `fires`, at a strength
    drawn evenly from [½, 1½]: on average features · on · fires are active.

    Attributes:
        directions: [features, neurons] unit rows.
    """

    directions: Tensor
    group: int = 8
    on: float = 0.1
    fires: float = 0.25

    @classmethod
    def random(cls, features: int, neurons: int, seed: int) -> "ToyNetwork":
        stream = generator("toy/network", seed)
        return cls(torch.nn.functional.normalize(torch.randn(features, neurons, generator=stream), dim=1))

    @property
    def active(self) -> float:
        """How many features are active on average."""
        return len(self.directions) * self.on * self.fires

    def sample(self, n: int, stream: torch.Generator) -> Tensor:
        """Activations of the neurons [n, neurons]."""
        features = len(self.directions)
        on = torch.rand(n, features // self.group, generator=stream) < self.on
        fires = torch.rand(n, features, generator=stream) < self.fires
        strength = 0.5 + torch.rand(n, features, generator=stream)
        return (on.repeat_interleave(self.group, dim=1) & fires) * strength @ self.directions


@dataclass(frozen=True)
class ToyResult:
    """Agreement of latents with the planted features.

    Attributes:
        cosine: [latents, features] of decoder rows with planted directions; latents in the order of the features they match.
        mean_max_cosine: mean over features of the largest cosine that a latent has with it.
        mcc: mean cosine of the best one-to-one matching (Hungarian method).
        steps: how many were made.
    """

    cosine: Tensor
    mean_max_cosine: float
    mcc: float
    steps: int

    def figure(self) -> "Figure":
        """Every latent against every planted feature: a clean diagonal where each was found by one latent."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.8, 4.2), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(self.cosine.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_xlabel("planted feature")
        axes.set_ylabel("latent, matched")
        axes.set_title(f"mean max cosine {self.mean_max_cosine:.3f}, matched {self.mcc:.3f}", fontsize=10)
        figure.colorbar(image, ax=axes, label="cosine")
        return figure


def toy(
    recipe: Recipe,
    *,
    seed: int = 0,
    features: int = 128,
    neurons: int = 64,
    latents: int = 192,
    steps: int = 600,
    **given: Any,
) -> ToyResult:
    """Train a recipe on the toy network, with half as many latents again as features, and compare its latents with them.

    Args:
        seed: of the network, the data and the SAE.
        given: settings of the recipe; its k defaults to the number of features that are active on average, rounded up.
    """
    network = ToyNetwork.random(features, neurons, seed)
    defaults: dict[str, Any] = {"dtype": "float32", "dead_after": 20_000, "lr": 1e-2}
    if "k" in {f.name for f in dataclasses.fields(recipe.settings)}:
        defaults["k"] = -int(-network.active // 1)
    trainer = Trainer(recipe, make_settings(recipe, defaults | given), neurons, width=latents, seed=seed, steps=steps)
    stream = generator("toy/data", seed)
    trainer.initialise(network.sample(4096, stream))
    for _ in range(steps):
        trainer.step(network.sample(512, stream))
    return compare(trainer.sae().W_dec, network.directions, steps)


def compare(decoder: Tensor, directions: Tensor, steps: int = 0) -> ToyResult:
    """Decoder rows [latents, neurons] against planted unit directions [features, neurons]."""
    cosine = torch.nn.functional.normalize(decoder.double(), dim=1) @ directions.double().T
    rows, columns = linear_sum_assignment(cosine.numpy(), maximize=True)
    matched = torch.from_numpy(rows[columns.argsort()])
    left = torch.tensor(sorted(set(range(len(decoder))) - set(rows.tolist())), dtype=torch.int64)
    return ToyResult(
        cosine[torch.cat([matched, left])].float(),
        float(cosine.max(dim=0).values.mean()),
        float(cosine[rows, columns].mean()),
        steps,
    )
