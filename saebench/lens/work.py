"""The work of a metric's experiments, for the cost model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LensWork:
    """Tokens of a metric's experiments for one SAE, at most.

    Attributes:
        whole: tokens that run through every layer: contexts (once per call of `fork`), prompts and generated tokens.
        above: tokens of edited copies (contexts × copies × tokens), which share the layers below the hook point.
        logits: positions at which the logits of the whole vocabulary are computed.
    """

    whole: int = 0
    above: int = 0
    logits: int = 0

    def times(self, count: int) -> "LensWork":
        """The same work for so many latents."""
        return LensWork(count * self.whole, count * self.above, count * self.logits)
