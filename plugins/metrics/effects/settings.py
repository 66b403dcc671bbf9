"""Sizes of the metric `effects`. Another size is another metric: its numbers do not share a column with these."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Settings:
    """Sizes.

    Attributes:
        latents: live latents sampled.
        firings: firings of each latent.
        fewest: firings below which a latent is not scored.
        horizon: positions whose logits are compared, the ablated one first.
    """

    latents: int = 100
    firings: int = 8
    fewest: int = 4
    horizon: int = 16

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}, expected 1 or more")
