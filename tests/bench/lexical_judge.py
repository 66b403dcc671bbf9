"""Gains by activation quantile with a lexical judge: can auto-interp tell a trained SAE from a random one?

    python tests/bench/lexical_judge.py NAME=CHECKPOINT … [--contexts 320] [--latents 100] [--out gains.json]

A random SAE of the first checkpoint's shape is added as `random`; a frozen-decoder control is a checkpoint like any other. The
judge is a rule without a language model: it explains a latent by the highlighted words that are most over-represented in the
explainer's windows, and takes a window for an activating one (or a highlight for right) if one of these words is in it. Averaged
over quantiles, its gain in fuzzing does not separate a trained SAE from a random one; by quantile it does.
"""

import argparse
import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import saebench
from saebench.judge import Capabilities, Judge, Reply, Request, Usage
from saebench.registry import installed
from saebench.testing import random_sae

WORDS = 5  # of an explanation
_WORD = re.compile(r"[^\W_]+")


class Lexical(Judge):
    """Words of the explanation against words of the window."""

    name = "lexical"
    concurrency = 1
    sends = False
    capabilities = Capabilities(structured=True)

    def complete(self, request: Request) -> Reply:
        """Explain, or judge each window by the words it shares with its explanation."""
        windows = json.loads(request.user)["windows"]
        data: dict[str, Any]
        if "explanation" in request.fields:
            data = {"explanation": " ".join(telling_words([w["text"] for w in windows])) or "nothing"}
        else:
            data = {name: overlaps(w["explanation"], w["text"]) for name, w in windows.items()}
        return Reply("ok", data, json.dumps(data), model="lexical", usage=Usage(0, 0))


def telling_words(texts: list[str]) -> list[str]:
    """The words whose share of the highlighted text most exceeds their share of the rest, in texts with << >> marks."""
    inside: Counter[str] = Counter()
    outside: Counter[str] = Counter()
    for text in texts:
        for i, part in enumerate(re.split(r"<<|>>", text)):
            (inside if i % 2 else outside).update(set(words(part)))
    return sorted(inside, key=lambda w: (outside[w] - inside[w], w))[:WORDS]


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def overlaps(explanation: str, text: str) -> bool:
    """Whether a word of the explanation is highlighted, or in the text if nothing is highlighted."""
    marked = " ".join(re.split(r"<<|>>", text)[1::2]) if "<<" in text else text
    return bool(set(words(explanation)) & set(words(marked)))


def measure(saes: dict[str, Any], model: str | None, hook: str | None, contexts: int) -> list[dict[str, Any]]:
    """Gains by quantile of each SAE, with 95 % intervals over latents."""
    installed().judges["lexical"] = Lexical
    found = []
    with tempfile.TemporaryDirectory() as folder:
        records = saebench.run(
            list(saes.values()), names=list(saes), task="autointerp", judge="lexical:words", model=model, hook=hook,
            limit=contexts, results=Path(folder) / "results", judge_cache=Path(folder) / "replies.sqlite",
        )  # fmt: skip
        for record in records:
            keys = ("detection_gain", "fuzzing_gain", "detection_gain_by_quantile", "fuzzing_gain_by_quantile")
            found += [
                {"sae": record.sae["name"], **{k: score[k] for k in ("key", "at", "value", "low", "high", "n")}}
                for score in record.scores
                if score["key"] in keys
            ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("saes", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--contexts", type=int, default=320)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    saes: dict[str, Any] = dict(one.split("=", 1) for one in given.saes)
    first = saebench.load_sae(next(iter(saes.values())))
    saes["random"] = random_sae(first.d_in, first.d_sae, k=32, seed=7)
    rows = measure(saes, first.metadata.model, first.metadata.hook, given.contexts)
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        at = "all" if row["at"] is None else f"q{row['at']:.0f}"
        interval = "no interval" if row["low"] is None else f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        print(f"{row['sae']:<24} {row['key']:<28} {at:>4}  {row['value']:+.3f} {interval} n {row['n']}")


if __name__ == "__main__":
    main()
