"""Write docs/reliability.md from the cards in results/reliability/.

Run by `make docs`; a test fails where the page is not what this would write.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from saebench.reliability import Card, ScoreCard, read_cards

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"

# The page's introduction; everything below it but `_READING` is computed from the cards.
_INTRODUCTION = """# How far each score can be trusted

```
saebench audit --metric geometry --small     # the card of one metric
saebench audit --small                       # of every metric that needs no judge
saebench audit --metric my_metric --small    # of your own
```

The audit measures SAEs whose order is known. On a *planted* model the features themselves are known: the panel has
six recipes at three L0 with three training seeds, snapshots of one run, half-frozen SAEs, principal components and
random directions. *Degraded copies* of one SAE of each recipe are worse by construction: 2, 5 and 10 % noise on every
decoder row, permuted rows, a tenth of the latents removed. Metrics that need a language model are measured on the
SAEs of `results/baselines` and their degraded copies; these have one training seed each, so their training-seed noise
is unknown.

| column | meaning |
| --- | --- |
| reseed CV | spread over five seeds of the metric's own randomness, relative to the mean |
| smallest difference | half-width of the 95 % interval of the difference between two SAEs, one run each |
| seed sd | standard deviation over training seeds of one recipe |
| recipes told apart | share of pairs of recipes at matched L0; seeds are replicates; 95 %, Holm over the pairs of a level |
| copies told apart | share of degraded copies told from their original, as worse where the score has a direction |
| noise | the smallest decoder noise from which on most copies are told apart |
| with training | Kendall's τ with training time along one run |
| truth, matched | Kendall's τ with planted F1 over the whole panel, and within a level of L0 |
| floor | the score of a random SAE |

A score without units (read off the weights) has no interval; its copies count as told apart where they differ by two seed sd.
The audit does not measure the score of a language model with random weights.

## Architectures

```
saebench compare --by architecture --task fidelity --l0 32
```

An architecture is compared through its training seeds, never through one checkpoint. Its score is interpolated at the
matched L0 between the two levels around it; the interval holds the noise of seeds and of documents, and Holm corrects
over all scores and pairs shown. By simulation (six equal architectures, two levels of three seeds each, seeds that
scatter unequally) 2.4 % of the boards have a false finding. Pairs that lie 3 standard deviations between seeds apart
are told apart in 53 % of the cases, at 5 in 91 %, at 10 in all.
"""


# Written by hand after the small audit of 2026-11.
_READING = """In words: explained variance and the cosine separate most recipes at matched L0 and see 2 % noise on the decoder,
but among trained recipes they agree with planted F1 only by a τ of .5: a better reconstruction is no proof of a
better dictionary. Planted F1 and MCC follow training, and separate two thirds of the pairs; 10 % noise on the
decoder, which leaves the latents as they are, is smaller than their interval at 64 contexts. The scores of
`geometry` have no direction, and the card shows why: noise on the decoder moves effective rank and neighbours by
less than two standard deviations between training seeds. `dead_fraction` reports the health of a run, not the
quality of a dictionary; few latents die on this panel. No headline is demoted on this evidence: the small panel
trains on 300,000 samples instead of 3,000,000, so its recipes are under-trained. On the language model KL sees
5 % noise on the decoder, where cross-entropy and loss recovered miss 10 %: they are the blunt ones of the
headlines, at a quarter of the task's contexts. Effects, steering and probing have no committed card yet.
"""


def page(cards: Sequence[Card]) -> str:
    """The page of these cards."""
    parts = [_INTRODUCTION, *_findings(cards), _READING, *_truth_table(cards), "## The cards\n"]
    for card in cards:
        parts.append(_card(card))
    return "\n".join(parts).rstrip() + "\n"


def _findings(cards: Sequence[Card]) -> Iterator[str]:
    yield "## What the cards show\n"
    directed = [(card, s) for card in cards for s in card.scores if s.direction is not None]
    good = [n for n, s in _named(directed) if (s.discriminability or 0) >= 0.8]
    weak = [n for n, s in _named(directed) if s.discriminability is not None and s.discriminability < 0.2]
    blind = [n for n, s in _named(directed) if s.ladder == "none"]
    wrong = [n for n, s in _named(directed) if (s.wrong_way or 0) >= 0.2]
    against = [n for n, s in _named(directed) if s.truth_matched is not None and s.truth_matched < 0.2]
    yield f"- **Separate recipes at matched L0** (80 % of the pairs or more): {_list(good)}."
    yield f"- **Hardly separate recipes at matched L0** (less than 20 % of the pairs): {_list(weak)}."
    yield f"- **Do not separate a decoder with 10 % noise from its original**: {_list(blind)}."
    yield f"- **Call a fifth of the degraded copies better, or more**: {_list(wrong)}."
    yield f"- **Do not follow planted F1 at matched L0** (τ below .2): {_list(against)}.\n"


def _named(scores: Sequence[tuple[Card, ScoreCard]]) -> Iterator[tuple[str, ScoreCard]]:
    for card, score in scores:
        yield f"`{card.metric}.{score.key}`", score


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _truth_table(cards: Sequence[Card]) -> Iterator[str]:
    """Each proxy's agreement with the truth, and the planted scores by recipe."""
    planted = {s.key: s for card in cards if card.metric == "planted" for s in card.scores}
    rows = [(n, s) for n, s in _named([(c, s) for c in cards for s in c.scores]) if s.truth is not None and s.direction]
    if rows and "f1" in planted:
        yield "## Agreement with planted F1\n"
        yield (
            "Kendall's τ over the whole panel, over all its SAEs of one L0 (averaged over L0), and over the trained\n"
            "recipes of one L0 alone: the last is the ranking of architectures.\n"
        )
        yield "| score | whole panel | one L0 | trained recipes, one L0 |\n| --- | --- | --- | --- |"
        for name, score in sorted(rows, key=lambda row: -(row[1].truth_matched or -1)):
            recipes = _number(_among_recipes(score, planted["f1"]))
            yield f"| {name} | {_number(score.truth)} | {_number(score.truth_matched)} | {recipes} |"
        yield ""
    for key in ("f1", "mcc"):
        if key in planted:
            yield from _recipes(key, planted[key])


def _among_recipes(score: ScoreCard, truth: ScoreCard) -> float | None:
    """Kendall's τ over the seeds of trained recipes at one level, averaged over levels."""
    sign = -1 if score.direction == "lower" else 1
    taus = []
    for level in sorted({level for own in truth.values.values() for level in own}):
        names = [name for name, own in truth.values.items() if len(own.get(level, ())) > 1]
        pairs = [(score.values.get(name, {}).get(level, ()), truth.values[name][level]) for name in names]
        if pairs and all(len(a) == len(b) for a, b in pairs):
            first, second = [sign * x for a, _ in pairs for x in a], [x for _, b in pairs for x in b]
            taus.append(float(kendalltau(first, second).statistic))
    return float(np.mean(taus)) if taus and not np.isnan(taus).any() else None


def _recipes(key: str, score: ScoreCard) -> Iterator[str]:
    levels = sorted({level for own in score.values.values() for level in own}, key=float)
    yield f"## planted {key} by recipe\n\nMean over training seeds ± their standard deviation, by L0.\n"
    yield f"| recipe | {' | '.join(levels)} |\n| --- |{' --- |' * len(levels)}"
    for recipe, own in score.values.items():
        yield f"| {recipe} | {' | '.join(_spread(own.get(level, ())) for level in levels)} |"
    yield ""


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


_COLUMNS = {
    "reseed CV": "reseed_cv", "smallest difference": "smallest_difference", "seed sd": "seed_sd",
    "recipes told apart": "discriminability", "copies told apart": "degraded", "noise": "ladder", "with training": "monotone",
    "truth": "truth", "matched": "truth_matched", "floor": "floor",
}  # fmt: skip


def _card(card: Card) -> str:
    panels = "; ".join(
        f"{name} ({', '.join(f'{k} {v}' for k, v in about.items())})" for name, about in card.panels.items()
    )
    lines = [
        f"### {card.metric}, version {card.version}\n\n`{card.command}` on {panels}. Headlines in bold.\n",
        f"| score | {' | '.join(_COLUMNS)} |",
        f"| --- |{' --- |' * len(_COLUMNS)}",
    ]
    for score in card.scores:
        name = f"**{score.key}**" if score.headline else score.key
        lines.append(f"| {name} | {' | '.join(_number(getattr(score, field)) for field in _COLUMNS.values())} |")
    return "\n".join(lines) + "\n"


def _number(value: float | str | None) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:.3g}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(list(read_cards(ROOT / "results").values())))


if __name__ == "__main__":
    main()
