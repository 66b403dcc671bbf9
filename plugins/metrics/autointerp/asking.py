"""What is put to the judge, and what its replies say: the explainer's request, and questions about windows in requests of a few.

System messages are the files in prompts/, which are read as they are; a changed prompt is a new file with a new version. The
user's message is data only, as JSON.
"""

import json
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import count
from typing import Literal

import numpy as np

from saebench.judge import Reply, Request
from saebench.judge import State as ReplyState

from .examples import Examples, Window
from .hashing import Purpose, hashed
from .text import Decoder, clean, highlighted, plain, runs

EXPLAIN, DETECTION, FUZZING = "explain@1", "detection@2", "fuzzing@2"
PROMPTS = (EXPLAIN, DETECTION, FUZZING)
# What a judged window is: an activating one; silent, chosen at random; silent around a token that activates elsewhere; an
# activating one with its highlights moved; a silent one with the highlights of an activating one.
Kind = Literal["positive", "random", "hard", "moved", "silent"]
# A sentence, and one key with its value; generous, since a reply that is cut short has no answers.
_SENTENCE, _ANSWER = 96, 16
# Words for a sentence, from the forms of other prompts and from schemas.
_PLACEHOLDERS = ("", "string", "str", "sentence", "explanation", "your explanation", "true or false")


@cache
def prompt(name: str) -> str:
    """The system message of that name and version."""
    return files(__package__).joinpath(f"prompts/{name}.txt").read_text(encoding="utf-8")


@dataclass
class Item:
    """One window in front of the judge, and what came back.

    Attributes:
        text: as the judge sees it.
        kind, quantile: see `Kind` and `Window`.
        window: the window itself.
        marks: [W] the tokens that are highlighted.
        pieces: [W] the text of each token.
        matched: whether this activating window has a hard one around the same token.
        answers, probabilities, states: by the explanation it was judged with. An item without an answer has none.
    """

    text: str
    kind: Kind
    window: Window
    marks: np.ndarray
    pieces: list[str] = field(default_factory=list)
    matched: bool = False
    answers: dict[str, bool] = field(default_factory=dict)
    probabilities: dict[str, float] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)

    @property
    def quantile(self) -> int:
        return self.window.quantile


def _user(body: object) -> str:
    return json.dumps(body, ensure_ascii=False)


# --- explaining ------------------------------------------------------------------------------------------------------


def explain_request(windows: Sequence[Window], decoder: Decoder) -> Request:
    """Highlighted windows with activations from 1 to 10, where 10 is the strongest among them."""
    strongest = max(float(np.abs(w.z).max()) for w in windows)
    body = []
    for w in windows:
        scaled = np.clip(np.rint(10 * np.abs(w.z) / strongest), 1, 10).astype(int)
        text = highlighted(decoder.pieces(w.tokens), w.fires)
        body.append({"text": text, "activations": [scaled[a:b].tolist() for a, b in runs(w.fires)]})
    return Request(prompt(EXPLAIN), _user({"windows": body}), {"explanation": "string"}, EXPLAIN, _SENTENCE)


def explanation(reply: Reply) -> str | None:
    """The sentence, on one line; None if there is none. A truncated reply counts for its first sentence if that is whole.

    A copy of the prompt is no explanation: neither the placeholder that shows the form of the reply, nor an instruction.
    """
    text: object = None
    if reply.state == "ok":
        text = reply.data.get("explanation")
    elif reply.state == "truncated":
        text = _first_sentence(reply.text)
    return " ".join(clean(text).split()) if isinstance(text, str) and not _copied(text) else None


def _copied(text: str) -> bool:
    """Whether a text has no words, or only those of a placeholder, or four and more in a row of the prompt."""
    words = _words(text)
    shown = _words(prompt(EXPLAIN))
    held = _words(re.findall(r'"explanation": "(.*?)"', prompt(EXPLAIN))[-1])
    short = len(words) <= len(held) + 2 and f" {' '.join(held)} " in f" {' '.join(words)} "
    quoted = len(words) > 3 and f" {' '.join(words)} " in f" {' '.join(shown)} "
    return short or quoted or " ".join(words) in _PLACEHOLDERS


def _words(text: str) -> list[str]:
    """The words of a text, in lower case, without punctuation."""
    return re.findall(r"\w+", clean(text).casefold())


def _first_sentence(cut: str) -> str | None:
    """The first whole sentence of a JSON string whose end is missing: one that others follow."""
    begun = re.match(r'\s*\{\s*"explanation"\s*:\s*"((?:[^"\\]|\\.)*)', cut)
    sentence = begun and re.match(r"(.*?[.!?])\s+\S", begun[1], re.DOTALL)
    try:
        return str(json.loads(f'"{sentence[1]}"')) if sentence else None
    except ValueError:
        return None


# --- judging ---------------------------------------------------------------------------------------------------------


def detection_items(e: Examples, decoder: Decoder) -> list[Item]:
    """Activating and silent windows, without highlights."""
    kinds: list[tuple[Kind, list[Window]]] = [("positive", e.judged), ("random", e.random), ("hard", e.hard)]
    none = np.zeros(0, dtype=bool)
    return [
        Item(plain(pieces), kind, w, none, pieces, kind == "positive" and i in e.matched)
        for kind, windows in kinds
        for i, w in enumerate(windows)
        for pieces in (decoder.pieces(w.tokens),)
    ]


def fuzzing_items(e: Examples, decoder: Decoder) -> list[Item]:
    """Each of a pair of twins with its own highlights and with the other's; silent windows with the highlights of both."""
    out = []
    for i, twins in enumerate(e.twins):
        one, two = twins.first, twins.second
        shown: list[tuple[Kind, Window, np.ndarray]] = [
            ("positive", one, one.fires), ("positive", two, two.fires), ("moved", one, two.fires), ("moved", two, one.fires),
        ]  # fmt: skip
        if e.silent:
            shown += [("silent", e.silent[2 * i], one.fires), ("silent", e.silent[2 * i + 1], two.fires)]
        for kind, w, marks in shown:
            pieces = decoder.pieces(w.tokens)
            out.append(Item(highlighted(pieces, marks), kind, w, marks, pieces))
    return out


def in_requests(items: Mapping[int, Sequence[Item]], together: int, seed: int) -> list[list[tuple[int, Item]]]:
    """(latent, item) in a random order, so many a request, and never two of one latent in one request.

    Windows of one latent would give each other away: what several of them have in common is what it fires on, explanation or
    not.

    Args:
        items: of each latent.
    """
    waiting = {
        latent: deque(
            mine[i] for i in np.argsort(hashed(seed, Purpose.ORDER, latent, np.arange(len(mine))), kind="stable")
        )
        for latent, mine in items.items()
    }
    groups: list[list[tuple[int, Item]]] = []
    for turn in count():
        left = np.array([latent for latent, mine in waiting.items() if mine], dtype=np.int64)
        if not len(left):
            return groups
        order = left[np.argsort(hashed(seed, Purpose.TURN, turn, left), kind="stable")].tolist()
        for first in range(0, len(order), together):
            groups.append([(latent, waiting[latent].popleft()) for latent in order[first : first + together]])
    return groups


def judge_request(name: str, asked: Sequence[tuple[str, str]]) -> Request:
    """One question about a few (explanation, text); each answers to an id of its own."""
    windows = {f"w{i}": {"explanation": sentence, "text": text} for i, (sentence, text) in enumerate(asked, 1)}
    return Request(
        prompt(name), _user({"windows": windows}), dict.fromkeys(windows, "boolean"), name, 32 + _ANSWER * len(asked)
    )


def read_answers(reply: Reply, items: Sequence[Item], condition: str) -> None:
    """Give each item its answer, id by id; one that has none gets the state that says why."""
    for i, item in enumerate(items, 1):
        answer = reply.data.get(f"w{i}") if reply.state in ("ok", "malformed") else None
        state: ReplyState = reply.state
        if isinstance(answer, bool):
            item.answers[condition] = answer
            state = "ok"
            if (likely := reply.probabilities.get(f"w{i}")) is not None:
                item.probabilities[condition] = float(likely)
        item.states[condition] = state
