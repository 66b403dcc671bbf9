"""A small world in which it is known when every latent fires: words, latents that respond to them, and judges of every kind.

Latent i fires on word i after a word with an even number, with a strength that depends on that word. So the same word also stands
where the latent is silent (hard negatives), and the rule can be told from the text alone.
"""

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from saebench.plugins.metrics.autointerp.metric import AutoInterp
from saebench.plugins.metrics.autointerp.settings import Settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from saebench import SAE, Batch, Env, Latents
from saebench.judge import Request
from saebench.judging.session import JudgeSession
from saebench.metric import get_state, set_state
from saebench.testing import random_sae

WORDS, LATENTS, LENGTH = 60, 24, 80
_LETTERS = "bcdfghjk"
SIZES = Settings(
    latents=16, window=16, quantiles=2, explained=4, judged=6, places=4, reservoir=24, top=3, pool=80, together=4
)


class Small(AutoInterp):
    """The metric with sizes for this world."""

    settings = SIZES


class Few(AutoInterp):
    """The same with few latents, for judges behind HTTP."""

    settings = replace(SIZES, latents=6)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every word is one token, and a character may be several."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator([word(i) for i in range(WORDS)] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>")


def word(i: int) -> str:
    """A word of three letters, since the splitter keeps digits apart."""
    return f" x{_LETTERS[i // 8]}{_LETTERS[i % 8]}"


def number(word: str) -> int:
    return 8 * _LETTERS.index(word[-2]) + _LETTERS.index(word[-1])


@cache
def ids() -> np.ndarray:
    """[WORDS] the token of each word."""
    found = [tokenizer()(word(i), add_special_tokens=False).input_ids for i in range(WORDS)]
    assert all(len(one) == 1 for one in found)
    return np.array([one[0] for one in found])


class World:
    """Contexts with BOS, four to a document, and what every latent does in them.

    Attributes:
        words: [N, T − 1] numbers of the words after BOS.
        z: [N, T, LATENTS]
    """

    def __init__(self, contexts: int = 240, seed: int = 0, outliers: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.words = rng.integers(0, WORDS, (contexts, LENGTH - 1))
        self.z = np.zeros((contexts, LENGTH, LATENTS), dtype=np.float32)
        before = np.concatenate([np.full((contexts, 1), 1), self.words[:, :-1]], 1)
        n, t = np.nonzero((self.words < LATENTS - 2) & (before % 2 == 0))  # the last two latents never fire
        self.z[n, t + 1, self.words[n, t]] = 1 + before[n, t] / 10
        self.outlier = rng.random((contexts, LENGTH)) < outliers
        self._seen: dict[tuple[str, int], dict[str, Any]] = {}

    @property
    def sae(self) -> SAE:
        return random_sae(8, LATENTS)

    def batch(self, rows: np.ndarray, seed: int = 0) -> Batch:
        special = torch.zeros(len(rows), LENGTH, dtype=torch.bool)
        special[:, 0] = True
        tokens = np.concatenate([np.zeros((len(rows), 1), dtype=np.int64), ids()[self.words[rows]]], 1)
        tokens[:, 0] = tokenizer().bos_token_id
        scored = ~special & ~torch.from_numpy(self.outlier[rows])
        z = Latents.from_dense(torch.from_numpy(self.z[rows]))
        return Batch(
            torch.from_numpy(tokens), special, scored, rows, rows // 4, torch.arange(LENGTH), _latents=z, seed=seed
        )

    def seen(self, metric: type[AutoInterp] = Small, seed: int = 0) -> AutoInterp:
        """A metric that has seen everything."""
        made = metric(self.sae)
        key = (metric.__name__, seed)
        if key not in self._seen:
            for rows in np.array_split(np.arange(len(self.words)), 4):
                made.update(self.batch(rows, seed))
            self._seen[key] = get_state(made)
        set_state(made, deepcopy(self._seen[key]))
        return made


def env(world: World, judge: JudgeSession, seed: int = 0) -> Env:
    return Env(world.sae, tokenizer(), seed, judge=judge)


# --- judges: they know nothing but the text of a request ----------------------------------------------------------------

Answers = dict[str, bool | str]
Judging = Callable[[Request], Answers]


def parsed(text: str) -> Iterator[tuple[int, bool]]:
    """(number, highlighted) of each word of a window."""
    inside = False
    for part in re.findall(r"<<|>>|x[b-k]{2}", text):
        if part in ("<<", ">>"):
            inside = part == "<<"
        else:
            yield number(part), inside


def places(text: str, wanted: int) -> list[bool]:
    """At each place of the window, whether the latent of that word fires there; a window's first word is never sure."""
    words = [n for n, _ in parsed(text)]
    return [i > 0 and n == wanted and words[i - 1] % 2 == 0 for i, n in enumerate(words)]


def explain(request: Request) -> Answers:
    """The word that is highlighted in every window, found by counting."""
    counts: dict[int, int] = {}
    for window in json.loads(request.user)["windows"]:
        for n, inside in parsed(window["text"]):
            counts[n] = counts.get(n, 0) + inside
    return {"explanation": f"word {max(counts, key=lambda n: counts[n])} after an even one"}


def true_answer(explanation: str, text: str) -> bool:
    """What follows from the explanation; without one, False."""
    found = re.search(r"\d+", explanation)
    if not found:
        return False
    fires = places(text, int(found[0]))
    if "<<" not in text:
        return any(fires)
    (first, sure), *rest = parsed(text)
    return [inside for _, inside in rest] == fires[1:] and (not sure or first == int(found[0]))


def judging(answer: Callable[[str, str, int], bool]) -> Judging:
    """A judge that explains rightly and says of each window what `answer(explanation, text, number in the request)` says."""

    def judge(request: Request) -> Answers:
        if "explanation" in request.fields:
            return explain(request)
        asked = json.loads(request.user)["windows"]
        return {f: answer(asked[f]["explanation"], asked[f]["text"], i) for i, f in enumerate(request.fields)}

    return judge


def coin(seed: int) -> Callable[[str, str, int], bool]:
    """A fair coin for each window and explanation."""
    import hashlib

    return lambda sentence, text, i: hashlib.sha256(f"{seed}|{sentence}|{text}".encode()).digest()[0] % 2 == 0
