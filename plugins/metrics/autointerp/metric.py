"""Automated interpretability: can a language model tell from one sentence when a latent fires?

The pass keeps windows around activations of a random sample of live latents. Afterwards an explainer writes a sentence about
each, and a judge, which sees other documents, says with that sentence in which windows the latent fires (detection) and whether
the right tokens are highlighted (fuzzing). Both are done again with another latent's sentence (shuffled) and with none (empty):
what a judge scores with those it does not owe to the explanation. How to run it, and what it costs: docs/autointerp.md.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from saebench import SAE, Batch, Env, Metric, SaebenchError, Score, hookimpl
from saebench.judge import Calls, Reply, Request

from . import asking, collect, page, scores
from .about import ABOUT
from .asking import DETECTION, EXPLAIN, FUZZING, Item
from .examples import Examples, Pool, choose
from .scores import ASPECTS, CONDITIONS, EMPTY, REAL, SHUFFLED, Judged
from .settings import Settings
from .tables import Table, joined, size
from .text import Decoder, clean

# Below this share of the sampled latents with enough examples, nobody is asked.
_LEAST = 0.25
# Tables are cut down again when they have grown to this many times what they keep.
_SLACK = 2


class AutoInterp(Metric):
    """Balanced accuracy of detection and fuzzing with the explanation, and what it has over a shuffled one.

    `detection` sets activating windows against random silent ones, `detection_hard` against silent ones around the same tokens,
    one for one. `fuzzing` sets right highlights against the same highlights moved onto silent tokens of the same text,
    `fuzzing_silent` against the same on silent text. `…_gain` is real − shuffled, the number to look at, and `…_auroc_gain` the
    same of the area under the ROC curve, for judges that give probabilities; `…_recall` is the share of activating windows found,
    by quantile of activation; `…_coverage` the share of sampled latents that have a score.
    """

    name = "autointerp"
    version = 2
    needs = frozenset({"latents"})
    about = ABOUT
    figures = scores.FIGURES
    asks = asking.PROMPTS
    paired = False
    seeded = True
    settings: ClassVar[Settings] = Settings()

    def __init__(self, sae: SAE) -> None:
        self.seed: int | None = None
        self.live = np.zeros(sae.d_sae, dtype=bool)
        self.windows: list[Table] = []
        self.contexts: list[Table] = []
        self.firings: list[Table] = []
        self._judged: list[Judged] = []
        self._units = pd.DataFrame({"unit_id": [], "cluster_id": []})
        self._no_score: dict[str, str] = {}

    # --- the pass -----------------------------------------------------------------------------------------------------

    def update(self, batch: Batch) -> None:
        self.seed = batch.seed
        self.live |= collect.fired(batch)
        view = collect.view(batch, self._sample(), batch.seed)
        self.windows.append(collect.activating(view, self.settings, batch.seed))
        self.contexts.append(collect.pooled(view, self.settings, batch.seed))
        self.firings.append(collect.firings(view, self.contexts[-1]["context"]))
        self._cut(_SLACK)

    def merge(self, other: "AutoInterp") -> None:
        self.seed = other.seed if self.seed is None else self.seed
        self.live |= other.live
        self.windows += other.windows
        self.contexts += other.contexts
        self.firings += other.firings
        self._cut(1)

    def _sample(self) -> np.ndarray:
        order = collect.latent_order(self.seed or 0, len(self.live))
        return collect.sampled(order, self.live, self.settings.latents)

    def _cut(self, slack: int) -> None:
        """Drop what can no longer be chosen, once there is `slack` times as much as can be."""
        s, latents = self.settings, self._sample()
        if sum(map(size, self.windows)) > slack * len(latents) * (2 * s.reservoir + s.top):
            self.windows = [collect.smallest_windows(joined(self.windows), s, latents)]
        if sum(map(size, self.contexts)) > slack * s.pool:
            self.contexts = [collect.smallest_contexts(joined(self.contexts), s)]
            self.firings = [collect.only(joined(self.firings), latents, self.contexts[0]["context"])]

    def _examples(self) -> list[Examples]:
        """The windows of every sampled latent, in the order of the sample.

        Raises:
            SaebenchError: so few live latents, or so little text, that it is not worth asking anybody.
        """
        s = self.settings
        if not self.windows or self.seed is None:
            raise SaebenchError("no text was seen")
        latents = self._sample()
        if len(latents) < 2:
            raise SaebenchError(
                f"{len(latents)} of {len(self.live)} latents fire: explanations cannot be told apart; nothing was asked"
            )
        windows = collect.smallest_windows(joined(self.windows), s, latents)
        contexts = collect.smallest_contexts(joined(self.contexts), s)
        pool = Pool(contexts, collect.only(joined(self.firings), latents, contexts["context"]), s.window, self.seed)
        found = choose(latents, windows, pool, s)
        usable = sum(set(e.lacks) < set(ASPECTS) for e in found)
        if usable < max(2, _LEAST * len(found)):
            why = next(text for e in found for text in e.lacks.values())
            raise SaebenchError(
                f"the text is too small: {usable} of {len(found)} sampled latents have enough windows (latent "
                f"{next(e.latent for e in found if e.lacks)}: {why}); nothing was asked: use a task with more text, or no --limit"
            )
        return found

    # --- asking -------------------------------------------------------------------------------------------------------

    def scores(self, env: Env) -> list[Score]:
        """Explain the sampled latents, ask the judge with real, shuffled and empty explanations, and score what it said."""
        examples = self._examples()
        if env.tokenizer is None:
            raise SaebenchError(
                "a judge reads text, and this run is on token ids without a tokenizer: use a model that has one"
            )
        if env.judge is None:
            raise SaebenchError("autointerp needs a judge: pass --judge, e.g. --judge local:smollm2-135m-instruct")
        decoder = Decoder(env.tokenizer)
        self._judged = [Judged(e, top=[(w, decoder.pieces(w.tokens)) for w in e.top]) for e in examples]
        self._explain(env, decoder)
        self._judge(env, decoder)
        self._units = scores.units(self._judged, self.settings.quantiles)
        found = [scores.counted(score, self._units) for score in self.declared()]
        empty = {score.key for score in found if score.den and not self._units[score.den].any()}
        self._no_score = {key: self._why_not(key) for key in sorted(empty)}
        return [score for score in found if score.key not in empty]

    @classmethod
    def declared(cls) -> list[Score]:
        """Every score there can be; a record has those that some latent has."""
        return list(scores.declared(cls.settings.quantiles))

    def _why_not(self, key: str) -> str:
        answered = [i for one in self._judged for items in one.items.values() for i in items if i.answers]
        if "_auroc" in key and answered and not any(i.probabilities for i in answered):
            return "not available: the judge gives no log-probabilities"
        return "no latent has it"

    def _explain(self, env: Env, decoder: Decoder) -> None:
        able = [one for one in self._judged if set(one.examples.lacks) < set(ASPECTS)]
        requests = [asking.explain_request(one.examples.explained, decoder) for one in able]
        replies = env.judge.complete_all(requests, "explain")  # type: ignore[union-attr]
        for one, reply in zip(able, replies, strict=True):
            one.said = reply.state
            one.sentence = asking.explanation(reply)
            if one.sentence is None:
                one.problem = (
                    clean(f"{reply.state}: {reply.problem}")
                    if reply.state != "ok"
                    else "empty, or the prompt's own text"
                )
        explained = [one for one in self._judged if one.sentence is not None]
        if not explained:
            raise _useless(f"explained none of {len(able)} latents", replies)
        # The sample is in random order, so the next one is a random other one.
        for one, other in zip(explained, explained[1:] + explained[:1], strict=True):
            one.shuffled = other.latent if len(explained) > 1 else None

    def _judge(self, env: Env, decoder: Decoder) -> None:
        makers: dict[str, tuple[str, Callable[[Examples, Decoder], list[Item]]]] = {
            "detection": (DETECTION, asking.detection_items), "fuzzing": (FUZZING, asking.fuzzing_items),
        }  # fmt: skip
        sentence = {one.latent: one.sentence for one in self._judged}
        other = {one.latent: None if one.shuffled is None else sentence[one.shuffled] for one in self._judged}
        given: dict[str, dict[int, str | None]] = {
            REAL: sentence, SHUFFLED: other, EMPTY: {x: None if said is None else "" for x, said in sentence.items()},
        }  # fmt: skip
        questions: list[tuple[Request, str, list[Item]]] = []  # the condition, and the items in the request's order
        for aspect, (prompt, make) in makers.items():
            able = [one for one in self._judged if aspect not in one.examples.lacks]
            items = {one.latent: make(one.examples, decoder) for one in able}
            # Dealt with those that have no explanation, so that a later run which gets one asks the others as before.
            for group in asking.in_requests(items, self.settings.together, env.seed):
                for condition, texts in given.items():
                    asked = [(text, item) for x, item in group if (text := texts[x]) is not None]
                    if asked:
                        request = asking.judge_request(prompt, [(text, item.text) for text, item in asked])
                        questions.append((request, condition, [item for _, item in asked]))
            for one in able:
                if one.sentence is not None:
                    one.items[aspect] = items[one.latent]
        replies = env.judge.complete_all([request for request, _, _ in questions], "judge")  # type: ignore[union-attr]
        for (_, condition, items_asked), reply in zip(questions, replies, strict=True):
            asking.read_answers(reply, items_asked, condition)
        if replies and not any(
            item.answers for one in self._judged for items_of in one.items.values() for item in items_of
        ):
            raise _useless("answered nothing", replies)

    @classmethod
    def judge_calls(cls, d_sae: int) -> list[Calls]:
        """Calls at most: every sampled latent explained, and judged in each condition."""
        s, n = cls.settings, min(cls.settings.latents, d_sae)
        shown = 6 * s.window  # characters of a window, as it is written in a request

        def judged(name: str, windows: int) -> Calls:
            count = windows * len(CONDITIONS) * -(-n // s.together)
            each = min(n, s.together)
            return Calls(name, count, len(asking.prompt(name)) + 50 + each * (shown + 170), 6 + 5 * each)

        explain = Calls(EXPLAIN, n, len(asking.prompt(EXPLAIN)) + s.explained * (shown + 60), 40)
        return [explain, judged(DETECTION, 2 * s.judged), judged(FUZZING, 6 * s.places)]

    # --- what it found ------------------------------------------------------------------------------------------------

    def units(self) -> pd.DataFrame:
        """One row per sampled latent; `scores` makes them. Two SAEs' latents have nothing to do with each other."""
        return self._units

    def details(self) -> dict[str, Any]:
        """The sample, the states of latents, explanations and windows, and what could not be measured."""
        latents = [one.latent for one in self._judged]
        order = collect.latent_order(self.seed or 0, len(self.live))
        full = len(latents) == self.settings.latents
        passed = order[: int(np.flatnonzero(order == latents[-1])[0])] if full else order
        dead = int((~self.live[passed]).sum()) if latents else 0
        return {
            "sizes": dict(vars(self.settings)),
            "sampled": len(latents),
            "live": int(self.live.sum()),
            "states": scores.states(self._judged, dead),
            "explanations": dict(sorted(Counter(one.said for one in self._judged if one.said).items())),
            "windows": scores.item_states(self._judged),
            "no_score": self._no_score,
        }

    def files(self) -> dict[str, bytes]:
        """Every sampled latent with its windows, answers, scores and states: `jsonl` to work with, `html` to look at."""
        return {"jsonl": page.lines(self._judged), "html": page.page(self._judged, self.details())}


def _useless(deed: str, replies: Sequence[Reply]) -> SaebenchError:
    """The error of a judge without a single usable reply, rather than a coverage of 0 in a finished record.

    `failed` replies are sent again by the next run, the others stay cached. The commonest state decides the advice, and a judge
    that failed at the end has gone away, however it began.
    """
    states = Counter(reply.state for reply in replies)
    counts = ", ".join(f"{n} {state}" for state, n in states.most_common())
    last = f"; the last: {clean(replies[-1].problem)}" if replies[-1].problem else ""
    if replies[-1].state == "failed" or 2 * states["failed"] >= len(replies):
        advice = "run the same command again when the judge answers"
    else:
        advice = {
            "truncated": "turn the model's thinking off, or reserve tokens for it with --judge-thinking TOKENS",
            "refused": "take another judge",
            "ok": "its replies are empty or repeat the prompt, so take a larger judge",
        }.get(states.most_common(1)[0][0], "turn the model's thinking off, or take another judge")
        advice += ", and add --replay live, since these replies are cached"
    return SaebenchError(f"the judge {deed} ({counts}{last}): {advice}")


class AutoInterpSmall(AutoInterp):
    """The same with fewer latents and windows, one window a request: for a small judge on this machine, and for trying out."""

    name = "autointerp_small"
    settings = Settings(latents=8, quantiles=2, explained=4, judged=4, places=2, reservoir=32, pool=512, together=1)


@hookimpl
def saebench_metrics() -> list[type[Metric]]:
    return [AutoInterp, AutoInterpSmall]
