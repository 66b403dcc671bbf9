"""Effects of single latents: how much the model's output depends on one latent, and on how few tokens.

The pass keeps firings of a random sample of live latents. Afterwards the contribution z·d of the latent is removed from the
activation at each of these tokens (the rest of the activation, the SAE's error included, stays), and the logits of this and the
next 15 positions are compared with the clean ones. Beside it, a random direction of equal norm is removed at the same token.
"""

from typing import Any, ClassVar

import numpy as np
import pandas as pd

from saebench import SAE, Batch, Env, Metric, SaebenchError, Score, hookimpl
from saebench.lens import LensWork

from ..autointerp.tables import Table, joined, rank_within, rows, size
from ..latents import fired, firings, hashed, lens_of, sampled
from .measure import Firing, ablate
from .settings import Settings

# The table of firings is cut again when it has grown to this many times its final size.
_SLACK = 4
_MEASURES = ("kl", "sparsity", "top10_share")


class Effects(Metric):
    """KL and sparsity of the logit change when one latent is removed at one token where it fires.

    `ablation_kl` is KL(clean ‖ ablated) a position, over 16 positions. `ablation_sparsity` is the effective share of logits that
    move, (‖D‖₁/‖D‖₂)²/(T·V), D the logit change less its median over V (Gao et al. 2024, arXiv 2406.04093, §4.5).
    `top10_share` is the share of the KL in each position's ten most moved tokens. Each is the mean over a latent's firings, then
    over latents; `random_…` are the same for a random direction, and `…_ratio` and `…_gap` compare the two.
    """

    name = "effects"
    version = 1
    needs = frozenset({"latents"})
    paired = False
    uses_lens = True
    settings: ClassVar[Settings] = Settings()
    headlines = ("ablation_kl", "ablation_sparsity", "top10_share", "random_kl")
    about: ClassVar[dict[str, str]] = {
        "ablation_kl": "KL from clean with one latent removed, per position",
        "ablation_sparsity": "effective share of logits that move; 2/π for a Gaussian change",
        "top10_share": "share of that KL in the ten most moved tokens",
        "random_kl": "ablation_kl of a random direction of equal norm",
        "random_sparsity": "ablation_sparsity of a random direction of equal norm",
        "random_top10_share": "top10_share of a random direction of equal norm",
        "kl_ratio": "ablation_kl over random_kl",
        "sparsity_gap": "ablation_sparsity less random_sparsity",
        "coverage": "sampled latents with enough firings",
    }

    def __init__(self, sae: SAE) -> None:
        self.seed = 0
        self.live = np.zeros(sae.d_sae, dtype=bool)
        self.firings: list[Table] = []
        self._units = pd.DataFrame({"unit_id": [], "cluster_id": []})
        self._states: dict[str, int] = {}

    # --- the pass -----------------------------------------------------------------------------------------------------

    def update(self, batch: Batch) -> None:
        """Sample firings of every latent; see `Metric.update`."""
        self.seed = batch.seed
        self.live |= fired(batch, batch.scored)
        found = firings(batch, batch.scored, self._sample())
        end = found["position"] + self.settings.horizon
        found = rows(found, end <= batch.token_ids.shape[1])
        row, end = found["row"], found["position"] + self.settings.horizon
        tokens = batch.token_ids.cpu().numpy()[row]
        context = np.asarray(batch.context_id)[row]
        # Tokens after the horizon are of no use; a padded row ends before it and has no firing there.
        tokens = np.where(np.arange(tokens.shape[1]) < end[:, None], tokens, 0).astype(np.int32)
        self.firings.append(
            {
                "latent": found["latent"],
                "context": context,
                "position": found["position"],
                "hash": hashed("effects/firings", batch.seed, found["latent"], context, found["position"]),
                "tokens": tokens,
            }
        )
        self._cut(_SLACK)

    def merge(self, other: "Effects") -> None:
        self.seed = max(self.seed, other.seed)
        self.live |= other.live
        self.firings += other.firings
        self._cut(1)

    def _sample(self) -> np.ndarray:
        return sampled(self.name, self.seed, self.live, self.settings.latents)

    def _cut(self, slack: int) -> None:
        """Keep of each sampled latent the firings with the smallest hashes, once there are `slack` times as many."""
        if sum(map(size, self.firings)) > slack * self.settings.latents * self.settings.firings:
            self.firings = [self._chosen()]

    def _chosen(self) -> Table:
        table = joined(self.firings)
        table = rows(table, np.isin(table["latent"], self._sample()))
        return rows(table, rank_within(table["latent"], table["hash"]) < self.settings.firings)

    # --- after the pass -----------------------------------------------------------------------------------------------

    def scores(self, env: Env) -> list[Score]:
        """Ablate every sampled latent at its firings; the harness keeps the latents that are done when a run is killed."""
        lens, s = lens_of(env, self.name), self.settings
        latents = self._sample()
        if not len(latents):
            raise SaebenchError(f"none of {len(self.live)} latents fires in this text: use a task with more text")
        table = self._chosen()
        by_latent = {int(latent): self._firings(rows(table, table["latent"] == latent)) for latent in latents}
        usable = [latent for latent, found in by_latent.items() if len(found) >= s.fewest]
        self._states = {"scored": len(usable), "too few firings": len(latents) - len(usable)}
        if not usable:
            raise SaebenchError(
                f"no sampled latent fires {s.fewest} times with {s.horizon - 1} tokens after it: use a task with more text"
            )
        found = lens.units(
            "effects: latents",
            usable,
            lambda latent: ablate(lens, env.sae, latent, by_latent[latent], s.horizon, self.seed),
        )
        records = [self._unit(latent, one) for latent, one in zip(usable, found, strict=True)]
        records += [
            {"unit_id": latent, "cluster_id": latent, "sampled": 1.0} for latent in by_latent if latent not in usable
        ]
        self._units = pd.DataFrame(records).fillna(0.0).sort_values("unit_id", ignore_index=True)
        return self.declared()

    def _firings(self, table: Table) -> list[Firing]:
        order = np.argsort(table["hash"], kind="stable")
        ends = table["position"] + self.settings.horizon
        return [
            Firing(table["tokens"][i, : ends[i]].tolist(), int(table["position"][i]), int(table["context"][i]))
            for i in order
        ]

    def _unit(self, latent: int, found: dict[str, list[Any]]) -> dict[str, float]:
        """A latent's row: the mean of each measure over its firings, and whether it has one."""
        row: dict[str, float] = {"unit_id": latent, "cluster_id": latent, "sampled": 1.0, "scored": 1.0}
        for who in ("", "random_"):
            kl = np.array(found[f"{who}kl"]) / self.settings.horizon
            shares = np.array([t / k for t, k in zip(found[f"{who}top10"], found[f"{who}kl"], strict=True) if k > 0])
            moved = np.array([v for v in found[f"{who}sparsity"] if v is not None])
            for key, values in zip(_MEASURES, (kl, moved, shares), strict=True):
                row[f"{who}{key}"] = float(values.mean()) if len(values) else 0.0
                row[f"has_{who}{key}"] = float(len(values) > 0)
        both = row["has_sparsity"] * row["has_random_sparsity"]
        row |= {"has_gap": both, "gap": both * (row["sparsity"] - row["random_sparsity"])}
        return row

    @classmethod
    def declared(cls) -> list[Score]:
        """The scores, over one row per latent."""
        nats, share = "nats/position", "fraction"

        def mean(key: str, column: str, unit: str) -> Score:
            return Score.ratio(key, column, f"has_{column}", unit=unit, count=f"has_{column}")

        return [
            mean("ablation_kl", "kl", nats),
            mean("ablation_sparsity", "sparsity", share),
            mean("top10_share", "top10_share", share),
            mean("random_kl", "random_kl", nats),
            mean("random_sparsity", "random_sparsity", share),
            mean("random_top10_share", "random_top10_share", share),
            Score.ratio("kl_ratio", "kl", "random_kl", unit="ratio", count="scored"),
            mean("sparsity_gap", "gap", share),
            Score.ratio("coverage", "scored", "sampled", unit=share, count="sampled", within=(0, 1)),
        ]

    @classmethod
    def lens_work(cls, d_sae: int, length: int) -> LensWork:
        """Each firing's context once, with two copies, whose logits and clean logits are compared over the horizon."""
        s = cls.settings
        once = LensWork(s.firings * length, 2 * s.firings * length, 4 * s.firings * s.horizon)
        return once.times(min(s.latents, d_sae))

    def units(self) -> pd.DataFrame:
        """One row per sampled latent: its means over firings, and whether it has them."""
        return self._units

    def details(self) -> dict[str, Any]:
        """Sizes, and the states of the sampled latents."""
        return {"sizes": dict(vars(self.settings)), "live": int(self.live.sum()), "states": self._states}


class EffectsSmall(Effects):
    """`effects` with fewer latents and firings: minutes on two cores."""

    name = "effects_small"
    settings = Settings(latents=24, firings=4, fewest=2)


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    return [Effects, EffectsSmall]
