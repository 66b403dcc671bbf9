"""Answers -> numbers per latent -> declared scores, with states and coverage. Nothing is imputed.

Balanced accuracy is ½·(share of activating windows called true + share of silent or moved ones called false), over the windows
that were answered; a latent of which fewer than half of either were answered has no number and counts as `judge failed`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from saebench import Score
from saebench.metric import Direction
from saebench.presentation import Figure, Reference

from .asking import Item, Kind
from .examples import Examples, Window

# The explanations that windows are judged with: the latent's own, another latent's, none.
REAL, SHUFFLED, EMPTY = "real", "shuffled", "empty"
CONDITIONS = (REAL, SHUFFLED, EMPTY)
# What is asked, and the scores that come of it: which windows stand against the activating ones.
ASPECTS: dict[str, dict[str, Kind]] = {
    "detection": {"detection": "random", "detection_hard": "hard"},
    "fuzzing": {"fuzzing": "moved", "fuzzing_silent": "silent"},
}
_KEYS = [key for keys in ASPECTS.values() for key in keys]
# The curves of the gains over the quantiles, each score over its control, and each gain over nothing.
FIGURES = (
    *(
        Figure(
            f"{aspect}_gain_by_quantile",
            "at",
            "activation quantile",
            f"{aspect} gain",
            worthless=0.0,
            worthless_label="no better than the control",
        )
        for aspect in ASPECTS
    ),
    *(Figure(f"{aspect}_gain_top", worthless=0.0, worthless_label="no better than the control") for aspect in ASPECTS),
    *(Figure(key, references=(Reference(f"{key}_{SHUFFLED}", "with another latent's"),)) for key in _KEYS),
    *(
        Figure(f"{key}_{gain}", worthless=0.0, worthless_label="no better than the control")
        for key in _KEYS
        for gain in ("gain", "auroc_gain")
    ),
)
SCORED, FEW, UNEXPLAINED, UNJUDGED = "scored", "too few examples", "explanation failed", "judge failed"


@dataclass
class Judged:
    """One sampled latent and everything that was said about it.

    Attributes:
        sentence: its explanation, if there is one.
        problem: why there is none.
        said: how the explainer's reply ended; of one that was cut the first sentence counts if it is whole.
        shuffled: whose explanation stood in for its own in the control.
        items: by what was asked: "detection", "fuzzing".
        top, explained: the strongest windows, and those of the explainer, with their tokens as text.
    """

    examples: Examples
    sentence: str | None = None
    problem: str = ""
    said: str = ""
    shuffled: int | None = None
    items: dict[str, list[Item]] = field(default_factory=dict)
    top: list[tuple[Window, list[str]]] = field(default_factory=list)
    explained: list[tuple[Window, list[str]]] = field(default_factory=list)

    @property
    def latent(self) -> int:
        return self.examples.latent

    def state(self, aspect: str) -> str:
        """scored, too few examples, explanation failed or judge failed."""
        if aspect in self.examples.lacks:
            return FEW
        if self.sentence is None:
            return UNEXPLAINED
        return SCORED if self.accuracy(aspect, aspect, REAL) is not None else UNJUDGED

    def shown(self, aspect: str, key: str, quantile: int | None = None) -> tuple[list[Item], list[Item]]:
        """The windows that one score sets against each other: (activating or rightly highlighted, the others).

        Hard windows are set against the activating ones around the same tokens, so that the token carries no signal. With a
        quantile, only activating windows of it are taken; silent windows have none and all count.
        """
        items, other = self.items.get(aspect, []), ASPECTS[aspect][key]
        if quantile is not None:
            items = [i for i in items if i.quantile in (0, quantile)]
        positive = [i for i in items if i.kind == "positive" and (other != "hard" or i.matched)]
        return positive, [i for i in items if i.kind == other]

    def accuracy(self, aspect: str, key: str, condition: str, quantile: int | None = None) -> float | None:
        """Balanced accuracy of one score; None if nothing was asked, or fewer than half of either kind were answered."""
        shares = []
        for items in self.shown(aspect, key, quantile):
            answers = [item.answers[condition] for item in items if condition in item.answers]
            if not items or len(answers) < len(items) / 2:
                return None
            shares.append(sum(answers) / len(answers))
        return (shares[0] + 1 - shares[1]) / 2

    def auroc(self, aspect: str, key: str, condition: str = REAL) -> float | None:
        """Chance that P(true) of an activating window is above that of another; None where the judge gives no probabilities."""
        positive, other = ([i for i in items if condition in i.answers] for items in self.shown(aspect, key))
        both = positive + other
        if self.accuracy(aspect, key, condition) is None or not all(condition in i.probabilities for i in both):
            return None
        from scipy.stats import rankdata  # half a second that every other command would wait for

        n, m = len(positive), len(other)
        place = rankdata([i.probabilities[condition] for i in both])
        return float((place[:n].sum() - n * (n + 1) / 2) / (n * m))


def units(judged: Sequence[Judged], quantiles: int) -> pd.DataFrame:
    """One row per sampled latent: each score with a column beside it that is 1 where the latent has it, and its states."""
    return pd.DataFrame([_unit(one, quantiles) for one in judged])


def _unit(one: Judged, quantiles: int) -> dict[str, object]:
    row: dict[str, object] = {"unit_id": one.latent, "cluster_id": one.latent, "one": 1.0}
    for aspect, keys in ASPECTS.items():
        items = one.items.get(aspect, [])
        row[f"{aspect}_state"] = state = one.state(aspect)
        row[f"{aspect}_scored"] = float(state == SCORED)
        row[f"{aspect}_asked"] = float(sum(len(item.states) for item in items))
        row[f"{aspect}_answered"] = float(sum(len(item.answers) for item in items))
        for key in keys:
            values = {c: one.accuracy(aspect, key, c) for c in CONDITIONS}
            gain = less(values[REAL], values[SHUFFLED])
            areas = {c: one.auroc(aspect, key, c) for c in (REAL, SHUFFLED)}
            named = {key: values[REAL], f"{key}_gain": gain, f"{key}_auroc": areas[REAL]}
            named[f"{key}_auroc_gain"] = less(areas[REAL], areas[SHUFFLED])
            named |= {f"{key}_{c}": values[c] for c in (SHUFFLED, EMPTY)}
            for name, value in named.items():
                row[name], row[f"{name}_n"] = value or 0.0, float(value is not None)
        for q in range(1, quantiles + 1):
            said = [i.answers[REAL] for i in items if i.kind == "positive" and i.quantile == q and REAL in i.answers]
            name = f"{aspect}_recall_{q}"
            row[name], row[f"{name}_n"], row[f"{name}_has"] = float(sum(said)), float(len(said)), float(bool(said))
            gain = less(*(one.accuracy(aspect, aspect, c, q) for c in (REAL, SHUFFLED)))
            name = f"{aspect}_gain_{q}"
            row[name], row[f"{name}_n"] = gain or 0.0, float(gain is not None)
    return row


def less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def declared(quantiles: int) -> Iterator[Score]:
    """Every score there can be."""
    for aspect, keys in ASPECTS.items():
        for key in keys:
            yield _mean(f"{key}_gain", (-1, 1), direction="higher")
            yield _mean(key, (0, 1), direction="higher")
            yield _mean(f"{key}_{SHUFFLED}", (0, 1))
            yield _mean(f"{key}_{EMPTY}", (0, 1))
            yield _mean(f"{key}_auroc", (0, 1), unit="area")
            yield _mean(f"{key}_auroc_gain", (-1, 1), unit="area", direction="higher")
        for q in range(1, quantiles + 1):
            name = f"{aspect}_gain_{q}"
            yield Score.ratio(
                f"{aspect}_gain_by_quantile", name, f"{name}_n", unit="balanced accuracy", at=float(q), count=f"{name}_n",
                within=(-1, 1),
            )  # fmt: skip
        top = f"{aspect}_gain_{quantiles}"
        yield Score.ratio(
            f"{aspect}_gain_top",
            top,
            f"{top}_n",
            unit="balanced accuracy",
            direction="higher",
            count=f"{top}_n",
            within=(-1, 1),
        )
        yield _count(f"{aspect}_coverage")
        yield _count(f"{aspect}_answered")
        for q in range(1, quantiles + 1):
            name = f"{aspect}_recall_{q}"
            yield Score.ratio(
                f"{aspect}_recall", name, f"{name}_n", unit="fraction", at=float(q), count=f"{name}_has", within=(0, 1)
            )


# Scores that count what became of this sample: of which column of the units, and out of which.
_COUNTS = {
    f"{aspect}_{what}": (f"{aspect}_{num}", den.format(aspect))
    for aspect in ASPECTS
    for what, num, den in (("coverage", "scored", "one"), ("answered", "answered", "{}_asked"))
}


def _count(key: str) -> Score:
    return Score.plain(key, 0.0, n=0, no_interval="it counts this sample", unit="fraction")


def counted(score: Score, units: pd.DataFrame) -> Score:
    """The score with its value, if it is one that counts."""
    if score.key not in _COUNTS:
        return score
    num, den = (float(units[column].sum()) for column in _COUNTS[score.key])
    return replace(score, value=num / den if den else 0.0, n=int(den))


def _mean(
    key: str, within: tuple[float, float], direction: Direction | None = None, unit: str = "balanced accuracy"
) -> Score:
    """The mean over the latents that have it."""
    return Score.ratio(key, key, f"{key}_n", unit=unit, direction=direction, count=f"{key}_n", within=within)


def states(judged: Sequence[Judged], dead: int) -> dict[str, dict[str, int]]:
    """How many latents are in which state, by what was asked; `dead` were passed over before the sample was full."""
    out = {}
    for aspect in ASPECTS:
        counts = Counter(one.state(aspect) for one in judged)
        out[aspect] = {SCORED: counts[SCORED], "dead": dead} | {s: counts[s] for s in (FEW, UNEXPLAINED, UNJUDGED)}
    return out


def item_states(judged: Sequence[Judged]) -> dict[str, dict[str, int]]:
    """How the windows that were asked about ended, by what was asked, over all explanations."""
    return {
        aspect: dict(
            sorted(Counter(s for one in judged for i in one.items.get(aspect, []) for s in i.states.values()).items())
        )
        for aspect in ASPECTS
    }
