"""Files beside a record, latent by latent: JSON lines with everything, and a self-contained HTML page.

The page runs no script. Its template escapes all text from the corpus and from the judge.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saebench.board.html_page import render_page

from .asking import Item
from .examples import Window
from .scores import ASPECTS, CONDITIONS, REAL, SHUFFLED, Judged, less


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
        "explained": [_place(w) | {"quantile": w.quantile} | _tokens(w, p) for w, p in one.explained],
        "windows": {aspect: [_item(item) for item in items] for aspect, items in one.items.items()},
        "top": [_place(w) | _tokens(w, p) for w, p in one.top],
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
    answered = {"answers": item.answers, "probabilities": item.probabilities}
    return _place(item.window) | about | _tokens(item.window, item.pieces) | answered


def _tokens(w: Window, pieces: list[str]) -> dict[str, Any]:
    """The text and the activation of each token; a silent window has no activations."""
    return {"pieces": pieces, "z": _short(w.z)} if w.z.any() else {"pieces": pieces}


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{v:.4g}") for v in values]


# --- the page --------------------------------------------------------------------------------------------------------


def page(judged: Sequence[Judged], details: Mapping[str, Any]) -> bytes:
    """Each sampled latent's explanation, strongest windows with highlighted tokens, scores and states."""
    text = render_page(
        __package__,
        "latents.html",
        title="Explained latents",
        states=details["states"],
        conditions=CONDITIONS,
        latents=[_shown(one) for one in sorted(judged, key=_last_without_gain)],
    )
    return text.encode(errors="replace")


def _gain(one: Judged) -> float | None:
    values = _scores(one)["detection"]
    return less(values[REAL], values[SHUFFLED])


def _last_without_gain(one: Judged) -> float:
    gain = _gain(one)
    return 2.0 if gain is None else -gain


def _shown(one: Judged) -> dict[str, Any]:
    """The values that the template needs of one latent."""
    strongest = max((float(np.abs(w.z).max()) for w, _ in one.top), default=1.0)
    scores = {key: list(values.values()) for key, values in _scores(one).items()}
    return {
        "latent": one.latent,
        "sentence": one.sentence,
        "problem": one.problem,
        "states": {aspect: one.state(aspect) for aspect in ASPECTS},
        "lacks": one.examples.lacks,
        "scores": {key: values for key, values in scores.items() if any(v is not None for v in values)},
        "windows": [_shaded(w.z, pieces, strongest) for w, pieces in one.top],
        "gain": _gain(one),
        "judged": {aspect: [_verdict(item) for item in items] for aspect, items in one.items.items()},
    }


def _verdict(item: Item) -> dict[str, Any]:
    """A judged window and the answer with the latent's own explanation: right, wrong or none."""
    answer, wanted = item.answers.get(REAL), item.kind == "positive"
    verdict = item.states.get(REAL, "not asked") if answer is None else "right" if answer == wanted else "wrong"
    return {"text": item.text.replace("\n", "⏎"), "kind": item.kind, "quantile": item.quantile, "verdict": verdict}


def _shaded(z: np.ndarray, pieces: Sequence[str], strongest: float) -> list[tuple[str, int, float]]:
    """Each token's text, shade and activation: the stronger it fires, the darker; 0 is not shaded."""
    return [
        (piece.replace("\n", "⏎"), min(10, max(1, round(10 * abs(value) / strongest))), value)
        for value, piece in zip(z.tolist(), pieces, strict=True)
    ]
