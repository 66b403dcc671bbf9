"""Write docs/metrics/: a page for each built-in metric, from its own docstrings and the scores that it declares.

Run by `make docs`; a test fails where a page is not what this would write.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from saebench.labels import Labels
from saebench.metric import Env, Metric, Score, Truth
from saebench.registry import installed
from saebench.testing import SyntheticText, random_sae

FOLDER = Path(__file__).resolve().parent / "metrics"
_ARROWS = {"higher": "higher is better", "lower": "lower is better", None: ""}


def pages() -> dict[str, str]:
    """Every page by file name."""
    ours = {p.name for p in installed().plugins if p.distribution == "saebench"}
    names = [what.removeprefix("metric ") for p in installed().plugins if p.name in ours for what in p.provides]
    metrics = {name: installed().metrics[name] for name in sorted(names) if name in installed().metrics}
    return {"README.md": _index(metrics)} | {f"{name}.md": _page(metric) for name, metric in metrics.items()}


def _index(metrics: dict[str, type[Metric]]) -> str:
    lines = ["# Metrics", "", "A page each, written from the code by `make docs`.", ""]
    lines += [f"- [{name}]({name}.md): {_first(metric)}" for name, metric in metrics.items()]
    return "\n".join(lines) + "\n"


def _first(metric: type[Metric]) -> str:
    return (inspect.getmodule(metric).__doc__ or "").strip().split("\n")[0]  # type: ignore[union-attr]


def _page(metric: type[Metric]) -> str:
    module = inspect.getmodule(metric)
    assert module is not None
    needs = ", ".join(f"`{need}`" for need in sorted(metric.needs)) or "the weights alone"
    parts = [
        f"# {metric.name}",
        _paragraphs(module.__doc__),
        _paragraphs(metric.__doc__),
        f"Version {metric.version}. Reads {needs}. Code: `plugins/{module.__name__.split('plugins.')[-1].replace('.', '/')}.py`.",
        "## Scores",
    ]
    if metric.name == "probing":
        parts += ["Above; which k there are depends on the task: `saebench run` lists them all."]
    else:
        what = "documents" if metric.paired else "the SAE's own sampled latents"
        parts += [_table(_scores(metric), metric.about), f"An interval is over {what}; a score that says why has none."]
    if "units" in vars(metric):
        parts += ["## Units", _paragraphs(metric.units.__doc__)]
    notes = [
        f"- `{name}`: {' '.join(inspect.getdoc(item).split())}"  # type: ignore[union-attr]
        for name, item in vars(module).items()
        if inspect.isfunction(item) and item.__module__ == module.__name__ and inspect.getdoc(item) and name[0] != "_"
    ]
    if notes:
        parts += ["## How some of it is computed", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def _paragraphs(doc: str | None) -> str:
    return inspect.cleandoc(doc or "")


def _scores(metric: type[Metric]) -> list[Score]:
    """The declared scores, the first point of each curve, on made-up contexts where neither judge nor model is needed."""
    if metric.asks or metric.uses_lens:
        return _first_points(metric.declared())  # type: ignore[attr-defined]
    text, sae = SyntheticText(), random_sae(16, 48)
    instance = metric(sae)
    if metric.needs:
        batch = text.batch(sae, range(len(text.x)))
        instance.update(replace(batch, _truth=_truth(batch.x), _grid=(3, 3), _labels=_labels(len(batch.x))))
    return _first_points(instance.scores(Env(sae)))


def _labels(n: int) -> Labels:
    """Made-up labels of n documents, two classes, the last third held out."""
    at = np.arange(n)
    return Labels(("a", "b"), at % 2, at >= n - n // 3, at)


def _truth(x: torch.Tensor) -> Truth:
    """Made-up planted features: the positive coordinates, each the parent of the next."""
    d = x.shape[-1]
    return Truth(x.relu(), torch.eye(d), torch.arange(-1, d - 1))


def _first_points(scores: list[Score]) -> list[Score]:
    return list({score.key: score for score in reversed(scores)}.values())[::-1]


def _table(scores: list[Score], about: Mapping[str, str]) -> str:
    lines = ["| score | what it says | unit | | computed as |", "| --- | --- | --- | --- | --- |"]
    for score in scores:
        meaning = about.get(score.key, "").replace("{n:,} tokens", "the tokens that were scored").replace("|", r"\|")
        curve = " (a curve)" if score.at is not None else ""
        cells = (f"`{score.key}`{curve}", meaning, score.unit, _ARROWS[score.direction], _formula(score))
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def _formula(score: Score) -> str:
    if score.num is None:
        return f"no interval: {score.no_interval}"
    ratio = f"Σ {score.num} / Σ {score.den}"
    if (score.offset, score.scale) == (0, 1):
        return f"`{ratio}`"
    sign = "−" if score.scale < 0 else "+"
    factor = "" if abs(score.scale) == 1 else f"{abs(score.scale):g} · "
    return f"`{score.offset:g} {sign} {factor}{ratio}`"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.md"):
        old.unlink()
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
