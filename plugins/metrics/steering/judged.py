"""Steering with a judge: a language model rates answers written while a latent's direction is added (AxBench).

Ten instructions are answered with f · m · d added at every position, for factors f from 0.2 to 5; m is the latent's 99.9th
percentile activation. A judge rates concept, instruction and fluency of each answer with 0, 1 or 2 (three requests). The overall
rating is their harmonic mean, 0 where any is 0. The best factor is chosen on half of the instructions and scored on the other
half (Wu et al. 2025, arXiv 2501.17148). A reply without a rating leaves its answer without a value and is counted in `parsed`.

The concept of a latent is named by the user (`--set 'steering_judged.concepts=["302: taxes"]'`), or else its target tokens.
"""

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from saebench import SAE, Env, Metric, SaebenchError, Score, hookimpl
from saebench.judge import Calls, Reply, Request
from saebench.lens import LensWork

from ..autointerp.text import Decoder
from ..latents import lens_of
from .measure import Steered
from .passing import SteeringPass
from .rating import (
    ASPECTS,
    PROMPTS,
    best_factor,
    harmonic,
    instructions,
    mean,
    rating,
    rating_request,
    read_text,
)  # fmt: skip
from .settings import JudgedSettings
from .writing import Writer, prompts

# About the length of an instruction in a chat template, for the estimate of the cost.
PROMPT_TOKENS = 48
# Target tokens in the concept of a sampled latent.
_SHOWN = 10
# Units are latents; these columns are 0 for a latent without a score.
_COLUMNS = (
    "scored", "score", "concept", "instruction", "fluency", "factor", "unsteered", "has_unsteered", "shuffled", "has_shuffled",
    "gain", "picked", "picked_score", "ratings", "parsed",
)  # fmt: skip


class SteeringJudged(SteeringPass):
    """Harmonic mean of concept, instruction and fluency ratings of steered answers, 0 to 2, at each latent's best factor.

    `score` is the mean over all latents: those named by the user, or a random sample. `picked` is the mean over the half of them
    with the highest output score (rise in probability of their target tokens at factor 1, which needs no judge); picking
    accounts for half of published results. Floors: `unsteered` rates answers without steering, and `shuffled` is the concept
    rating of the same answers with another latent's concept. Decoder scale cancels.
    """

    name = "steering_judged"
    version = 1
    asks = PROMPTS
    seeded = True
    settings: ClassVar[JudgedSettings] = JudgedSettings()
    headlines = ("score", "picked", "gain")
    about: ClassVar[dict[str, str]] = {
        "score": "overall rating at the best factor, 0 to 2",
        "picked": "overall rating of the latents picked by output score",
        "gain": "concept rating less shuffled",
        "concept": "concept rating at the best factor",
        "shuffled": "concept rating with another latent's concept",
        "instruction": "instruction rating at the best factor",
        "fluency": "fluency rating at the best factor",
        "unsteered": "overall rating without steering",
        "factor": "best factor, in units of the 99.9th percentile activation",
        "parsed": "requests whose reply holds a rating",
        "coverage": "latents that have a score",
    }

    def __init__(self, sae: SAE) -> None:
        """Raises SaebenchError where the user named a latent that the SAE lacks."""
        super().__init__(sae)
        beyond = [latent for latent in self.settings.named() if latent >= sae.d_sae]
        if beyond:
            raise SaebenchError(
                f"latent {beyond[0]} of --set {self.name}.concepts is outside the SAE's {sae.d_sae} latents"
            )
        self._units = pd.DataFrame({"unit_id": [], "cluster_id": []})
        self._rows: list[dict[str, Any]] = []
        self._states: dict[str, int] = {}

    def _sample(self) -> np.ndarray:
        named = self.settings.named()
        return np.array(sorted(named), dtype=np.int64) if named else super()._sample()

    def scores(self, env: Env) -> list[Score]:
        """Write the answers of each latent (finished latents survive a kill), then have all of them rated."""
        lens, s = lens_of(env, self.name), self.settings
        if env.judge is None or env.tokenizer is None:
            raise SaebenchError(
                f"{self.name} needs a judge and a tokenizer: pass --judge, and a model that has a tokenizer"
            )
        latents, (neutral, _) = self._sample(), self._neutral()
        prepared = self._prepared(env.sae, latents)
        if not prepared:
            raise SaebenchError(f"none of {len(latents)} latents fires {s.fewest} times: use a task with more text")
        asked = instructions(s.instructions)
        writer = Writer(lens, env.tokenizer, prompts(env.tokenizer, asked), s, self.seed)
        by_latent = {one.latent: one for one in prepared}
        written = lens.units(
            "steering: answers", list(by_latent), lambda latent: writer.steered(by_latent[latent], neutral)
        )
        [clean] = lens.units("steering: unsteered answers", [0], lambda _: writer.answers(None))
        concepts = self._concepts(prepared, env.tokenizer)
        self._rows = [
            {"latent": one.latent, "concept": concepts[one.latent], **found}
            for one, found in zip(prepared, written, strict=True)
        ]
        self._rate(env, asked, clean or [])
        self._units = self._table(latents)
        self._states["too few firings"] = len(latents) - len(prepared)
        return self.declared()

    def _concepts(self, prepared: Sequence[Steered], tokenizer: Any) -> dict[int, str]:
        decoder, named = Decoder(tokenizer), self.settings.named()

        def described(one: Steered) -> str:
            words = [piece.strip() for piece in decoder.pieces(one.targets[:_SHOWN])]
            return "words and word parts like " + ", ".join(json.dumps(w, ensure_ascii=False) for w in words if w)

        return {one.latent: named.get(one.latent) or described(one) for one in prepared}

    # --- ratings ------------------------------------------------------------------------------------------------------

    def _rate(self, env: Env, asked: list[str], clean: list[str]) -> None:
        """Fill in ratings, best factors and floors of every row."""
        half = range(1, len(asked), 2)
        places: list[tuple[np.ndarray, tuple[int, ...]]] = []
        requests: list[Request] = []

        def add(into: np.ndarray, at: tuple[int, ...], concept: str, text: str) -> None:
            for i, aspect in enumerate(ASPECTS[: into.shape[-1]]):
                requests.append(rating_request(aspect, concept=concept, instruction=asked[at[-1]], text=text))
                places.append((into, (*at, i)))

        for row in self._rows:
            row["ratings"] = np.full((len(row["answers"]), len(asked), len(ASPECTS)), np.nan)
            row["clean"] = np.full((len(asked), len(ASPECTS)), np.nan)
            for f, answers in enumerate(row["answers"]):
                for i, text in enumerate(answers or []):
                    add(row["ratings"], (f, i), row["concept"], text)
            for i in half if clean else ():
                add(row["clean"], (i,), row["concept"], clean[i])
        self._complete(env, requests, places, "rate")
        for row in self._rows:
            row["best"] = best_factor(harmonic(row["ratings"]))
        requests.clear()
        places.clear()
        rated = [row for row in self._rows if row["best"] is not None]
        for row, other in zip(rated, rated[1:] + rated[:1], strict=True):
            row["other"] = np.full((len(asked), 1), np.nan)
            if other is not row:
                for i in half:
                    add(row["other"], (i,), other["concept"], row["answers"][row["best"]][i])
        self._complete(env, requests, places, "rate with another concept")

    def _complete(
        self, env: Env, requests: list[Request], places: list[tuple[np.ndarray, tuple[int, ...]]], label: str
    ) -> None:
        """Put each request's rating into its place, and count the states.

        Raises:
            SaebenchError: no reply holds a rating.
        """
        assert env.judge is not None
        replies = env.judge.complete_all(list(requests), label)
        for (into, at), reply in zip(places, replies, strict=True):
            into[at] = rating(reply)
        found = sum(not np.isnan(into[at]) for into, at in places)
        if replies and not found:
            raise _unrated(replies)
        for key, count in (("requests", len(replies)), ("ratings", found)):
            self._states[key] = self._states.get(key, 0) + count

    def _table(self, latents: np.ndarray) -> pd.DataFrame:
        """One row per latent."""
        rows = {int(latent): dict.fromkeys(_COLUMNS, 0.0) for latent in latents}
        for row in self._rows:
            rows[row["latent"]] |= _measured(row, self.settings.factors)
        scored = [r for r in self._rows if rows[r["latent"]]["scored"] and r["output_score"] is not None]
        for row in sorted(scored, key=lambda r: -r["output_score"])[: (len(scored) + 1) // 2]:
            unit = rows[row["latent"]]
            unit |= {"picked": 1.0, "picked_score": unit["score"]}
        self._states["scored"] = int(sum(unit["scored"] for unit in rows.values()))
        return pd.DataFrame(
            [{"unit_id": latent, "cluster_id": latent, "sampled": 1.0, **unit} for latent, unit in sorted(rows.items())]
        )

    # --- results ------------------------------------------------------------------------------------------------------

    @classmethod
    def declared(cls) -> list[Score]:
        """The scores, over one row per latent."""

        def over(key: str, num: str, den: str, unit: str = "rating", up: bool = False) -> Score:
            least = {"gain": -2.0}.get(key, 0.0)
            within = None if unit == "p99.9" else (least, 2.0 if unit == "rating" else 1.0)
            return Score.ratio(key, num, den, unit=unit, direction="higher" if up else None, count=den, within=within)

        return [
            over("score", "score", "scored", up=True),
            over("picked", "picked_score", "picked", up=True),
            over("gain", "gain", "has_shuffled", up=True),
            *(over(aspect, aspect, "scored") for aspect in ASPECTS),
            over("shuffled", "shuffled", "has_shuffled"),
            over("unsteered", "unsteered", "has_unsteered"),
            over("factor", "factor", "scored", "p99.9"),
            over("parsed", "parsed", "ratings", "fraction"),
            over("coverage", "scored", "sampled", "fraction"),
        ]

    @classmethod
    def judge_calls(cls, d_sae: int) -> list[Calls]:
        """Calls at most: every answer rated in each aspect, and the floors."""
        s, half = cls.settings, cls.settings.instructions // 2
        n = len(s.named()) or min(s.latents, d_sae)
        answers, characters = n * len(s.factors) * s.instructions, 5 * s.tokens
        counts = {"concept": answers + 2 * n * half, "instruction": answers + half, "fluency": answers + half}
        return [
            Calls(f"steering-{aspect}@1", count, len(read_text(f"steering-{aspect}@1")) + characters + 100, 40)
            for aspect, count in counts.items()
        ]

    @classmethod
    def lens_work(cls, d_sae: int, length: int) -> LensWork:
        """Answers of full length at every factor, and the output score on half of the neutral contexts."""
        s, half = cls.settings, cls.settings.contexts // 2
        answers = len(s.factors) * s.instructions
        once = LensWork(
            answers * (PROMPT_TOKENS + s.tokens) + half * s.length, half * s.length, answers * s.tokens + 2 * half
        )
        clean = LensWork(s.instructions * (PROMPT_TOKENS + s.tokens), 0, s.instructions * s.tokens)
        work = once.times(len(s.named()) or min(s.latents, d_sae))
        return LensWork(work.whole + clean.whole, work.above, work.logits + clean.logits)

    def units(self) -> pd.DataFrame:
        """One row per latent: its ratings at its best factor, on the instructions that did not choose it, and its floors."""
        return self._units

    def details(self) -> dict[str, Any]:
        """Sizes, and counts of latents, requests and ratings."""
        sizes = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.settings).items()}
        return {"sizes": sizes, "live": int(self.live.sum()), "states": self._states}

    def files(self) -> dict[str, bytes]:
        """JSON lines: each latent with its concept, best factor and output score, and the answers and ratings at that factor."""
        lines = []
        for row in self._rows:
            line = {key: row[key] for key in ("latent", "concept", "output_score")}
            if (best := row.get("best")) is not None:
                ratings = [[None if np.isnan(r) else r for r in own] for own in row["ratings"][best].tolist()]
                line |= {"factor": self.settings.factors[best], "answers": row["answers"][best], "ratings": ratings}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        return {"jsonl": "".join(lines).encode()}


def _measured(row: dict[str, Any], factors: Sequence[float]) -> dict[str, float]:
    """A latent's values on the held-out instructions (odd ones), at its best factor."""
    given = row["ratings"][[answers is not None for answers in row["answers"]]]
    out = {"ratings": float(given.size), "parsed": float((~np.isnan(given)).sum())}
    best = row["best"]
    held_out = None if best is None else row["ratings"][best][1::2]
    if held_out is None or np.isnan(score := mean(harmonic(held_out))):
        return out
    whole = held_out[~np.isnan(held_out).any(1)]
    out |= {"scored": 1.0, "score": score, "factor": factors[best]}
    out |= dict(zip(ASPECTS, whole.mean(0).tolist(), strict=True))
    if not np.isnan(unsteered := mean(harmonic(row["clean"][1::2]))):
        out |= {"has_unsteered": 1.0, "unsteered": unsteered}
    both = np.isnan(row["other"][1::2, 0]) | np.isnan(held_out[:, 0])
    if not both.all():
        other, own = (values[~both].mean() for values in (row["other"][1::2, 0], held_out[:, 0]))
        out |= {"has_shuffled": 1.0, "shuffled": float(other), "gain": float(own - other)}
    return out


def _unrated(replies: Sequence[Reply]) -> SaebenchError:
    states = ", ".join(sorted({reply.state for reply in replies}))
    return SaebenchError(
        f"none of {len(replies)} replies holds a rating (states: {states}): take another judge, or run the same command again "
        "with --replay live, since these replies are cached"
    )


class SteeringJudgedSmall(SteeringJudged):
    """`steering_judged` with few latents, instructions and factors, for a small judge on this machine."""

    name = "steering_judged_small"
    settings = JudgedSettings(latents=4, contexts=16, instructions=4, tokens=32, factors=(0.5, 1.0, 2.0))


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    return [SteeringJudged, SteeringJudgedSmall]
