"""Steering: adding a latent's direction raises the tokens that follow where the latent fires. No judge.

A latent's target set is the 20 tokens with the highest log-odds of being the next token where it fires. f times its 99.9th
percentile activation, times its decoder row, is added at every position of neutral contexts from other documents. The effect is
the rise in probability of the target set after the context, at the largest f with a mean KL of at most 0.5 nat: f is chosen on
half of the neutral contexts and the effect is measured on the other half.
"""

from typing import Any, ClassVar

import pandas as pd

from saebench import SAE, Env, Metric, SaebenchError, Score, hookimpl
from saebench.lens import LensWork

from ..latents import lens_of
from .measure import CEILING, LATENT, RANDOM, REVERSED, measure
from .passing import SteeringPass
from .settings import Settings


class Steering(SteeringPass):
    """Rise in probability of a latent's target tokens when its direction is added, less that of another latent's tokens.

    `gain` = `effect` − `shuffled` is the number to look at. The same gain is reported for a random direction, for the reversed
    direction, and, as a ceiling, for the difference between the mean activations where the latent fires and elsewhere; each
    direction has the same norm and its own f. Decoder scale cancels.
    """

    name = "steering"
    version = 1
    settings: ClassVar[Settings] = Settings()
    headlines = ("gain", "random_direction", "ceiling")
    about: ClassVar[dict[str, str]] = {
        "effect": "rise in probability of the tokens that follow the latent's firings",
        "shuffled": "rise in probability of another latent's tokens",
        "gain": "effect less shuffled",
        "random_direction": "gain of a random direction of equal norm",
        "reversed": "gain of the reversed direction",
        "ceiling": "gain of the difference of means",
        "strength": "chosen strength, in units of the 99.9th percentile activation",
        "kl": "KL from clean at the chosen strength, on held-out contexts",
        "coverage": "sampled latents that have a score",
    }

    def __init__(self, sae: SAE) -> None:
        super().__init__(sae)
        self._units = pd.DataFrame({"unit_id": [], "cluster_id": []})
        self._states: dict[str, int] = {}

    def scores(self, env: Env) -> list[Score]:
        """Steer with every sampled latent; the harness keeps the latents that are done when a run is killed."""
        lens, latents = lens_of(env, self.name), self._sample()
        choose, score = self._neutral()
        prepared = self._prepared(env.sae, latents)
        if len(prepared) < 2:
            raise SaebenchError(
                f"{len(prepared)} of {len(latents)} sampled latents fire {self.settings.fewest} times: use a task with more text"
            )
        by_latent = {one.latent: one for one in prepared}
        found = lens.units(
            "steering: latents", list(by_latent),
            lambda latent: measure(lens, by_latent[latent], choose, score, self.settings, self.seed),
        )  # fmt: skip
        results = dict(zip(by_latent, found, strict=True))
        units = [_unit(int(latent), results.get(int(latent))) for latent in latents]
        self._units = pd.DataFrame(units).fillna(0.0).sort_values("unit_id", ignore_index=True)
        self._states = {
            "scored": int(self._units["scored"].sum()),
            "too few firings": len(latents) - len(prepared),
            "no strength within the limit": sum(one[LATENT] is None for one in found),
            "largest strength within the limit": sum(
                one[LATENT] is not None and one[LATENT]["strength"] == max(self.settings.strengths) for one in found
            ),
        }
        if not self._states["scored"]:
            raise SaebenchError(
                f"every strength from {min(self.settings.strengths)} changes the model by more than "
                f"{self.settings.most_kl} nats for all {len(prepared)} latents: cannot choose one"
            )
        return self.declared()

    @classmethod
    def declared(cls) -> list[Score]:
        """The scores, over one row per latent."""
        unit = "probability"

        def mean(
            key: str, column: str, state: str, unit: str = unit, within: tuple[float, float] | None = (-1, 1)
        ) -> Score:
            return Score.ratio(key, column, state, unit=unit, count=state, within=within)

        return [
            Score.ratio("gain", "gain", "scored", unit=unit, direction="higher", count="scored", within=(-2, 2)),
            mean("effect", "effect", "scored"),
            mean("shuffled", "shuffled", "scored"),
            mean("random_direction", "random_gain", "has_random", within=(-2, 2)),
            mean("reversed", "reversed_gain", "has_reversed", within=(-2, 2)),
            mean("ceiling", "ceiling_gain", "has_ceiling", within=(-2, 2)),
            mean("strength", "strength", "scored", "p99.9", None),
            mean("kl", "kl", "scored", "nats", None),
            Score.ratio("coverage", "scored", "sampled", unit="fraction", count="sampled", within=(0, 1)),
        ]

    @classmethod
    def lens_work(cls, d_sae: int, length: int) -> LensWork:
        """Of three directions every strength on half of the contexts; of four, one strength on the other half."""
        s, half = cls.settings, cls.settings.contexts // 2
        choose, score = 3 * len(s.strengths) * half, 4 * half  # copies
        # A KL takes two logits a copy, the rise of each of two token sets two more.
        once = LensWork(4 * half * s.length, (choose + score) * s.length, 2 * choose + 6 * score)
        return once.times(min(s.latents, d_sae))

    def units(self) -> pd.DataFrame:
        """A row per sampled latent: effect and gain of each direction (means over held-out contexts), and whether it has them."""
        return self._units

    def details(self) -> dict[str, Any]:
        """Sizes, and the states of the sampled latents."""
        sizes = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.settings).items()}
        return {"sizes": sizes, "live": int(self.live.sum()), "states": self._states}


def _unit(latent: int, found: dict[str, Any] | None) -> dict[str, float]:
    row: dict[str, float] = {"unit_id": latent, "cluster_id": latent, "sampled": 1.0}
    for name, result in (found or {}).items():
        if result is None:
            continue
        gain = result["own"] - result["other"]
        if name == LATENT:
            row |= {"scored": 1.0, "effect": result["own"], "shuffled": result["other"], "gain": gain}
            row |= {"strength": result["strength"], "kl": result["kl"]}
        else:
            row |= {f"has_{name}": 1.0, f"{name}_gain": gain}
    for column in ("scored", "effect", "shuffled", "gain", "strength", "kl"):
        row.setdefault(column, 0.0)
    for name in (RANDOM, CEILING, REVERSED):
        row.setdefault(f"has_{name}", 0.0)
        row.setdefault(f"{name}_gain", 0.0)
    return row


class SteeringSmall(Steering):
    """`steering` with fewer latents and contexts: minutes on two cores."""

    name = "steering_small"
    settings = Settings(latents=16, contexts=16)


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    return [Steering, SteeringSmall]
