"""Sizes of the steering metrics. Another size is another metric: its numbers do not share a column with these."""

from dataclasses import dataclass

from .rating import instructions


@dataclass(frozen=True)
class PassSettings:
    """Sizes of the pass.

    Attributes:
        latents: live latents sampled.
        contexts: neutral contexts, half to choose and half to score.
        length: tokens of a neutral context; the token after the last is predicted.
        targets: tokens of a target set at most.
        fewest: firings below which a latent has no target set.
    """

    latents: int = 100
    contexts: int = 64
    length: int = 24
    targets: int = 20
    fewest: int = 16

    def __post_init__(self) -> None:
        least = {"latents": 1, "contexts": 2, "length": 1, "targets": 1, "fewest": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {smallest} or more")


@dataclass(frozen=True)
class Settings(PassSettings):
    """Sizes of `steering`.

    Attributes:
        strengths: factors f of the latent's 99.9th percentile.
        most_kl: mean KL in nats up to which a strength may be chosen.
    """

    strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.5, 4.0, 6.0, 10.0)
    most_kl: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"strengths is {list(self.strengths)}, expected factors above 0")
        if self.most_kl <= 0:
            raise ValueError(f"most_kl is {self.most_kl}, expected a number above 0")


@dataclass(frozen=True)
class JudgedSettings(PassSettings):
    """Sizes of `steering_judged`.

    Attributes:
        instructions: instructions answered with each latent, half to choose the factor and half to score it.
        tokens: new tokens of an answer at most.
        factors: multiples of the latent's 99.9th percentile, ascending.
        concepts: "LATENT: concept" each, latents and concepts named by the user. Empty: sampled latents, with their target
            tokens as the concept.
    """

    instructions: int = 10
    tokens: int = 128
    factors: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0)
    concepts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        instructions(self.instructions)
        if not self.factors or list(self.factors) != sorted(set(self.factors)):
            raise ValueError(f"factors {self.factors} should ascend")
        self.named()

    def named(self) -> dict[int, str]:
        """Concept by latent, of `concepts`.

        Raises:
            ValueError: an entry is not of the form "LATENT: concept", or a latent occurs twice.
        """
        found: dict[int, str] = {}
        for entry in self.concepts:
            latent, colon, concept = entry.partition(":")
            if not (colon and latent.strip().isdecimal() and concept.strip()):
                raise ValueError(f'concept {entry!r}: write "LATENT: concept", like "302: taxes"')
            if int(latent) in found:
                raise ValueError(f"latent {int(latent)} has two concepts: give it one")
            found[int(latent)] = concept.strip()
        return found
