"""How much is sampled and asked. Another size is another metric: its numbers do not stand in one column with these."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes; windows are per latent.

    Attributes:
        latents: how many live latents are sampled.
        window: tokens a window.
        quantiles: bins of activation that windows are spread over; divides explained, judged and places.
        explained: activating windows that the explainer sees.
        judged: activating windows in detection, and as many silent ones, half of them hard where there are enough.
        places: activating places in fuzzing, each of which gives two windows.
        reservoir: windows kept of each latent and each side of the split.
        top: strongest windows kept for the page; nobody is asked about them.
        pool: contexts kept for silent windows.
        together: windows a request, each of another latent.
    """

    latents: int = 100
    window: int = 32
    quantiles: int = 5
    explained: int = 10
    judged: int = 20
    places: int = 10
    reservoir: int = 64
    top: int = 10
    pool: int = 1024
    together: int = 5
