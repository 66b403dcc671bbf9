"""A reply becomes the right state, through the vendors' real SDKs: nothing dropped, nothing made up."""

import json
import math
import time

import pytest
from saebench.plugins.judges.chat import probabilities

from saebench.judge import Reply, Request, read_reply, value_places
from saebench.judging.session import JudgeSession
from tests.judges.asking import APIS, ask, request
from tests.judges.server import (
    Coin,
    JudgeServer,
    Refusal,
    Said,
    Truncated,
)  # fmt: skip


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("said", "state", "data", "problem"),
    [
        ('{"a": true, "b": false}', "ok", {"a": True, "b": False}, ""),
        ('  {"b": false,\n"a": true}\n', "ok", {"a": True, "b": False}, ""),
        ('```json\n{"a": true, "b": false}\n```', "ok", {"a": True, "b": False}, ""),
        ('```\n{"a": true, "b": false}```', "ok", {"a": True, "b": False}, ""),
        ('{"a": true, "b": fal', "malformed", {}, "not JSON"),
        ('Sure! {"a": true, "b": false}', "malformed", {}, "not JSON"),
        ("", "malformed", {}, "not JSON"),
        ("[true, false]", "malformed", {}, "not an object"),
        ("true", "malformed", {}, "not an object"),
        ('{"a": true, "b": NaN}', "malformed", {}, "not JSON"),
        ('{"a": true, "c": false}', "malformed", {"a": True}, "'b' is missing; 'c' was not asked for"),
        ('{"a": true}', "malformed", {"a": True}, "'b' is missing"),
        ('{"a": true, "b": false, "b": false}', "malformed", {"a": True}, "'b' is there twice"),
        ('{"a": true, "a": false, "b": false}', "malformed", {"b": False}, "'a' is there twice"),
        ('{"a": "true", "b": 1}', "malformed", {}, "'a' is no boolean; 'b' is no boolean"),
        ('{"a": null, "b": true}', "malformed", {"b": True}, "'a' is no boolean"),
        ('{"a": {"a": true}, "b": true}', "malformed", {"b": True}, "'a' is no boolean"),
        ("[" * 100_000, "malformed", {}, "not JSON"),
        (Refusal(), "refused", {}, ""),
        (Truncated('{"a": true'), "truncated", {}, "cut"),
        (Truncated('{"a": true, "b": true}'), "truncated", {}, "cut"),
    ],
)
def test_each_reply_has_its_state(api, said, state, data, problem):
    [reply] = ask(api, lambda _: said)
    assert (reply.state, dict(reply.data)) == (state, data)
    assert problem in reply.problem
    assert (reply.problem == "") == (state == "ok")
    assert reply.model == "test-model-2026-01-01"
    assert reply.usage is not None
    assert reply.usage.input_tokens > 0
    if isinstance(said, str):
        assert reply.text == said


def test_strings_are_text_and_nothing_else():
    reply = read_reply('{"a": "it fires on \\"ships\\"", "b": true}', request(a="string", b="boolean"))
    assert reply.data == {"a": 'it fires on "ships"', "b": True}
    assert read_reply('{"a": true, "b": true}', request(a="string", b="boolean")).data == {"b": True}


@pytest.mark.parametrize("api", APIS)
def test_replies_are_in_order_whatever_the_order_of_answers(api):
    coin = Coin()

    def slowly(asked: object) -> object:
        time.sleep(hash(asked.user) % 7 / 200)  # type: ignore[attr-defined]
        return coin(asked)  # type: ignore[arg-type]

    requests = [request(f"user {i}") for i in range(60)]
    with JudgeServer(slowly) as server:  # type: ignore[arg-type]
        found = JudgeSession(server.judge(api)).complete_all([*requests, *requests])
        assert 1 < server.most_at_once <= 8
        assert len(server.asked) == 60, "equal requests are asked once"
        assert server.asked[0].user == "user 0"
    with JudgeServer(coin) as server:
        one = server.judge(api)
        alone = [one.complete(r) for r in requests]
    assert [r.data for r in found] == [r.data for r in alone] * 2
    assert len({tuple(r.data.items()) for r in found}) == 4


def test_a_repeat_is_asked_again():
    with JudgeServer(Coin()) as server:
        session = JudgeSession(server.judge("openai"))
        session.complete_all([request(), Request(**{**vars(request()), "repeat": 1})])
        assert len(server.asked) == 2


def test_probabilities_are_those_of_the_tokens():
    text = '{"why": "\\"a\\": true", "a": true, "b":false}'
    cut = ['{"', "why", '": "\\"', "a", '\\": true"', ', "a":', " true", ', "b', '":', "false", "}"]
    assert "".join(cut) == text
    likely = {token: {token: -0.1} for token in cut}
    likely[" true"] = {w: math.log(p) for w, p in ((" true", 0.6), (" false", 0.2), (" maybe", 0.1), ("true", 0.05))}
    likely["false"] = {w: math.log(p) for w, p in (("false", 0.9), ("tr", 0.03), (" null", 0.05))}
    tokens = tuple((token, likely[token]) for token in cut)
    with JudgeServer(lambda _: Said(text, tokens)) as server:
        [reply] = JudgeSession(server.judge("openai")).complete_all([request(why="string", a="boolean", b="boolean")])
    assert reply.state == "ok"
    assert reply.data["why"] == '"a": true'
    assert reply.probabilities == {
        "a": pytest.approx((0.6 + 0.05) / (0.6 + 0.05 + 0.2), rel=1e-12),
        "b": pytest.approx(0.03 / 0.93, rel=1e-12),
    }


def test_tokens_that_are_not_the_text_give_no_probabilities():
    reply = Reply("ok", {"a": True})
    assert probabilities('{"a": true}', [('{"a":', {}), ("true}", {})], reply) == {}
    assert probabilities('{"a": true}', [('{"a": true}', {'{"a": true}': -0.1})], reply) == {}, "no bound of false"
    two = {'{"a": true}': math.log(0.9), '{"a": fa': math.log(0.1)}
    assert probabilities('{"a": true}', [('{"a": true}', two)], reply) == {"a": pytest.approx(0.9)}


@pytest.mark.parametrize(
    "text", ['{"a": 1, "b" : [true, {"c": 2}], "d": "x, \\"e\\": 1"}', "{}", '{"a', "", "[1]", '{"a": 1']
)
def test_places_of_values(text):
    places = value_places(text)
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict):
        assert list(places) == list(whole)
        for name, place in places.items():
            assert json.JSONDecoder().raw_decode(text, place)[0] == whole[name]
