"""Metric `steering_judged` with judges whose ratings are known, on a model whose steered text is known."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from saebench.plugins.metrics.steering import rating
from saebench.plugins.metrics.steering.judged import PROMPT_TOKENS, SteeringJudged
from saebench.plugins.metrics.steering.settings import JudgedSettings

from saebench.errors import SaebenchError, UsageError
from saebench.judge import Reply, Request
from saebench.metric import Env, get_state, set_state
from saebench.running.settings import configure
from saebench.stats import ratio_interval
from saebench.testing import FunctionJudge, judge_session
from tests.planted_model import batch_of, rescaled
from tests.raising import raises
from tests.test_steering import N, world

SETTINGS = JudgedSettings(latents=4, contexts=8, length=5, fewest=4, instructions=4, tokens=6, factors=(0.1, 4.0, 8.0))


class Few(SteeringJudged):
    settings = SETTINGS


class Tokenizer:
    """Token i is the text "<i> "; every prompt is two fillers."""

    all_special_ids = (0,)
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}
    eos_token_id = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        ids = [2 * N + 1 + len(text) % 7, 2 * N + 2]
        return type("Encoded", (dict,), {"input_ids": ids})(input_ids=ids)

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(f"t{i} " for i in ids)


WORLD = world()
Answer = Callable[[str, dict[str, str]], str]


def measured(
    answer: Answer, kind: type[SteeringJudged] = Few, sae: Any = None, **lens: Any
) -> tuple[dict, SteeringJudged, Any]:
    """Scores by key, the metric and its judge; `answer` gives the rating of (aspect, the request's data)."""
    model, plain, ids = WORLD
    sae = plain if sae is None else sae
    metric = kind(sae)
    metric.update(batch_of(model, sae, ids, list(range(120))))
    restored = kind(sae)
    set_state(restored, get_state(metric))

    def reply(request: Request) -> Any:
        aspect = request.prompt.removeprefix("steering-").partition("@")[0]
        given = answer(aspect, json.loads(request.user))
        return given if isinstance(given, Reply) else {"reason": "", "rating": given}

    judge = FunctionJudge(reply)
    env = Env(sae, tokenizer=Tokenizer(), judge=judge_session(judge), lens=model.lens(**lens))  # type: ignore[arg-type]
    scores = restored.scores(env)
    units = restored.units()
    found = {s.key: ratio_interval(units, s).value for s in scores if s.den and units[s.den].sum()}
    return found, restored, judge


def test_a_judge_that_always_gives_the_best_or_the_worst_rating():
    best, _, judge = measured(lambda aspect, data: "2")
    assert best["score"] == best["picked"] == best["unsteered"] == best["concept"] == 2
    assert best["gain"] == 0  # another latent's concept is rated alike
    assert best["factor"] == SETTINGS.factors[0]  # the smallest of equals
    assert best["parsed"] == best["coverage"] == 1
    worst, *_ = measured(lambda aspect, data: "0" if aspect == "fluency" else "2")
    assert worst["score"] == worst["picked"] == 0
    assert worst["concept"] == 2
    planned = {call.prompt: call.count for call in Few.judge_calls(N + 1)}
    asked = {name: sum(r.prompt == name for r in judge.asked) for name in planned}
    assert all(0 < asked[name] <= planned[name] for name in planned)  # equal requests are sent once


def test_an_oracle_finds_the_concept_at_the_factor_that_writes_it_and_not_another_latents():
    def oracle(aspect: str, data: dict[str, str]) -> str:
        if aspect != "concept":
            return "2"
        wanted = json.loads(f"[{data['concept'].removeprefix('words and word parts like ')}]")
        words = data["text"].split()
        return "2" if sum(word == wanted[0] for word in words) > len(words) / 2 else "0"

    found, metric, _ = measured(oracle)
    assert found["score"] == found["concept"] == 2
    assert found["shuffled"] == found["unsteered"] == 0
    assert found["gain"] == 2
    assert set(metric.units().factor) <= {4.0, 8.0}  # 0.1 leaves the text as it is
    [line, *_] = metric.files()["jsonl"].decode().splitlines()
    assert len(json.loads(line)["answers"]) == SETTINGS.instructions
    _, sae, _ = world()
    again, *_ = measured(oracle, sae=rescaled(sae), batch_size=1)
    assert again == pytest.approx(found, rel=1e-5)


def test_replies_without_a_rating_are_counted_and_never_zero():
    number = 0

    def sometimes(aspect: str, data: dict[str, str]) -> Any:
        nonlocal number
        number += 1
        return ["2", "two", Reply("refused"), "3", " 1 "][number % 5] if aspect == "fluency" else "2"

    found, metric, _ = measured(sometimes)
    states = metric.details()["states"]
    assert 0 < found["parsed"] < 1
    assert states["ratings"] < states["requests"]
    assert found["score"] >= 1.5  # ratings of 2, 2 and 1 give 1.5: nothing was taken for 0
    with raises(SaebenchError, "holds a rating", "--replay live"):
        measured(lambda aspect, data: "excellent")


def test_the_factor_is_chosen_on_one_half_and_scored_on_the_other():
    ratings = np.zeros((3, 4, 3))
    ratings[1, ::2], ratings[2, 1::2] = 2, 2  # factor 1 shines where it is chosen, factor 2 where it is scored
    overall = rating.harmonic(ratings)
    best = rating.best_factor(overall)
    assert best == 1
    assert rating.mean(overall[best, 1::2]) == 0
    assert rating.harmonic(np.array([[2, 1, 1], [2, 2, 0], [np.nan, 0, 2]])) == pytest.approx(
        [1.2, 0, np.nan], nan_ok=True
    )
    assert rating.best_factor(np.full((3, 4), np.nan)) is None


def test_latents_and_concepts_named_by_the_user():
    kind = configure(Few, {"concepts": ["3: birds", "5: ships"]})
    found, metric, judge = measured(lambda aspect, data: "2", kind)
    assert list(metric.units().unit_id) == [3, 5]
    assert {json.loads(r.user).get("concept") for r in judge.asked} - {None} == {"birds", "ships"}
    assert found["coverage"] == 1
    assert metric.units().picked.sum() == 1
    for concepts, parts in (
        (["birds"], ("birds", "LATENT: concept")), (["3: a", "3: b"], ("latent 3", "two concepts")),
    ):  # fmt: skip
        with raises(UsageError, *parts):
            configure(Few, {"concepts": concepts})
    with raises(UsageError, "instructions 11"):
        configure(Few, {"instructions": 11})
    _, sae, _ = world()
    with raises(SaebenchError, "latent 99", N + 1):
        configure(Few, {"concepts": ["99: birds"]})(sae)


def test_the_declared_work_bounds_the_work_done():
    WORLD[0].work = dict.fromkeys(WORLD[0].work, 0)
    measured(lambda aspect, data: "2")
    declared = vars(Few.lens_work(N + 1, 13))
    per_prompt = PROMPT_TOKENS - 2 + 1  # prompts of two tokens here, and the last new token runs nowhere
    prompts = (4 * len(SETTINGS.factors) + 1) * SETTINGS.instructions
    assert WORLD[0].work == {**declared, "whole": declared["whole"] - per_prompt * prompts}


def test_a_factor_that_breaks_the_model_is_left_out():
    class Strong(SteeringJudged):
        settings = replace(SETTINGS, factors=(4.0, 1e38, 1e39))

    found, metric, _ = measured(lambda aspect, data: "2", Strong)
    assert found["score"] == 2
    assert found["parsed"] == 1
    assert set(metric.units().factor) == {4.0}


def test_finished_latents_survive_a_kill(tmp_path, monkeypatch):
    whole, *_ = measured(lambda aspect, data: "2" if aspect != "concept" else str(len(data["text"]) % 3))
    from saebench.plugins.metrics.steering.writing import Writer

    plain, calls = Writer.steered, []

    def steered(self: Writer, one: Any, neutral: Any) -> Any:
        calls.append(one.latent)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, one, neutral)

    monkeypatch.setattr(Writer, "steered", steered)
    answer = lambda aspect, data: "2" if aspect != "concept" else str(len(data["text"]) % 3)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        measured(answer, work=tmp_path)
    again, *_ = measured(answer, work=tmp_path)
    assert again == whole
    assert len(calls) == len(set(calls)) + 1  # only the interrupted latent is written again
