"""Write docs/reliability.md from the cards in results/reliability/.

Run by `make docs`; a test fails where the page is not what this would write.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from saebench.reliability import Card, ScoreCard, read_cards

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"

# The page's introduction; everything below it is computed from the cards.
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


def page(cards: Sequence[Card]) -> str:
    """The page of these cards."""
    parts = [_INTRODUCTION, *_findings(cards), *_truth_table(cards), "## The cards\n"]
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
    """Values of the planted scores by recipe, and each proxy's agreement with the truth."""
    rows = [(n, s) for n, s in _named([(c, s) for c in cards for s in c.scores]) if s.truth is not None and s.direction]
    if rows:
        yield "## Agreement with planted F1\n"
        yield "| score | τ, whole panel | τ, at matched L0 |\n| --- | --- | --- |"
        for name, score in sorted(rows, key=lambda row: -(row[1].truth_matched or -1)):
            yield f"| {name} | {_number(score.truth)} | {_number(score.truth_matched)} |"
        yield ""
    planted = {s.key: s for card in cards if card.metric == "planted" for s in card.scores}
    for key in ("f1", "mcc"):
        if key in planted:
            yield from _recipes(key, planted[key])


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
