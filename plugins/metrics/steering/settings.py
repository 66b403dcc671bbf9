"""Sizes of the metric `steering`. Another size is another metric: its numbers do not share a column with these."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes.

    Attributes:
        latents: live latents sampled.
        contexts: neutral contexts, half to choose the strength and half to score it.
        length: tokens of a neutral context; the token after the last is predicted.
        strengths: factors f of the latent's 99.9th percentile.
        most_kl: mean KL in nats up to which a strength may be chosen.
        targets: tokens of a target set at most.
        fewest: firings below which a latent has no target set.
    """

    latents: int = 100
    contexts: int = 64
    length: int = 24
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.5, 4.0, 6.0, 10.0)
    most_kl: float = 0.5
    targets: int = 20
    fewest: int = 16
