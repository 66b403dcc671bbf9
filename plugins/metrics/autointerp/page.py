"""What is worth keeping of a run, latent by latent: JSON lines with everything, and one HTML page to look at.

The page needs nothing else and runs no script. All text from the corpus and from the judge is escaped.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from saebench.board.html_page import html_page

from .asking import Item
from .examples import Window
from .scores import ASPECTS, CONDITIONS, REAL, SHUFFLED, Judged


def lines(judged: Sequence[Judged]) -> bytes:
    """One JSON object per sampled latent and line, in the order of the sample."""
    # Half a surrogate pair, which a model may well say, has no bytes: it must not lose what was paid for.
    text = "".join(json.dumps(_latent(one), ensure_ascii=False) + "\n" for one in judged)
    return text.encode(errors="replace")


def _latent(one: Judged) -> dict[str, Any]:
    return {
        "latent": one.latent,
        "states": {aspect: one.state(aspect) for aspect in ASPECTS},
        "lacks": one.examples.lacks,
        "explanation": one.sentence,
        "problem": one.problem,
        "shuffled_with": one.shuffled,
        "scores": _scores(one),
        "explained": [_place(w) | {"quantile": w.quantile} for w in one.examples.explained],
        "windows": {aspect: [_item(item) for item in items] for aspect, items in one.items.items()},
        "top": [_place(w) | {"pieces": p, "z": _short(w.z)} for w, p in one.top],
    }


def _scores(one: Judged) -> dict[str, dict[str, float | None]]:
    return {
        key: {c: one.accuracy(aspect, key, c) for c in CONDITIONS} for aspect, keys in ASPECTS.items() for key in keys
    }


def _place(w: Window) -> dict[str, Any]:
    return {"context": w.context, "document": w.document, "start": w.start}


def _item(item: Item) -> dict[str, Any]:
    about: dict[str, Any] = {"kind": item.kind, "quantile": item.quantile, "text": item.text, "states": item.states}
    if item.matched:
        about["matched"] = True
    return _place(item.window) | about | {"answers": item.answers, "probabilities": item.probabilities}


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{v:.4g}") for v in values]


# --- the page --------------------------------------------------------------------------------------------------------


def page(judged: Sequence[Judged], details: Mapping[str, Any]) -> bytes:
    """Each sampled latent's explanation, strongest windows with highlighted tokens, scores and states."""
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    order = sorted(judged, key=_last_without_gain)
    strongest = {one.latent: max((float(np.abs(w.z).max()) for w, _ in one.top), default=1.0) for one in judged}
    sections = "\n".join(_section(one, strongest[one.latent]) for one in order)
    return html_page("Explained latents", style, _BODY.format(states=_states(details), sections=sections)).encode(
        errors="replace"
    )


_BODY = """<h1>Explained latents</h1>
<p>Balanced accuracy of a judge with the latent's own explanation, with another latent's (shuffled) and with none; a half is
chance. Latents are sorted by what their own explanation adds in detection. The windows are the strongest in all of the text.</p>
{states}
{sections}"""


def _states(details: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(aspect)}</th><td>"
        + ", ".join(f"{n} {escape(state)}" for state, n in counts.items() if n)
        + "</td></tr>"
        for aspect, counts in details["states"].items()
    )
    return f"<table>{rows}</table>"


def _gain(one: Judged) -> float | None:
    values = _scores(one)["detection"]
    real, shuffled = values[REAL], values[SHUFFLED]
    return None if real is None or shuffled is None else real - shuffled


def _last_without_gain(one: Judged) -> float:
    gain = _gain(one)
    return 2.0 if gain is None else -gain


def _section(one: Judged, strongest: float) -> str:
    said = escape(one.sentence) if one.sentence is not None else f"<i>no explanation</i> {escape(one.problem)}"
    states = ", ".join(f"{aspect}: {one.state(aspect)}" for aspect in ASPECTS)
    lacks = "".join(f"<p class=note>{escape(aspect)}: {escape(why)}</p>" for aspect, why in one.examples.lacks.items())
    windows = "".join(f"<li>{_shaded(w.z, pieces, strongest)}</li>" for w, pieces in one.top)
    return (
        f'<section><h2 id="latent-{one.latent}">Latent {one.latent}</h2><p class=said>{said}</p>'
        f"<p class=note>{escape(states)}</p>{lacks}{_table(one)}<ol>{windows}</ol></section>"
    )


def _table(one: Judged) -> str:
    rows = ""
    for key, values in _scores(one).items():
        if any(v is not None for v in values.values()):
            cells = "".join("<td>–" if v is None else f"<td>{v:.3f}" for v in values.values())
            rows += f"<tr><th>{escape(key)}{cells}</tr>"
    head = "".join(f"<th>{c}" for c in CONDITIONS)
    return f"<table><tr><th>{head}</tr>{rows}</table>" if rows else ""


def _shaded(z: np.ndarray, pieces: Sequence[str], strongest: float) -> str:
    """The text, each firing token the darker the stronger it fires."""
    out = ""
    for value, piece in zip(z.tolist(), pieces, strict=True):
        text = escape(piece).replace("\n", "⏎")
        level = min(10, max(1, round(10 * abs(value) / strongest)))
        out += f'<mark class=a{level} title="{value:.4g}">{text}</mark>' if value else text
    return out
