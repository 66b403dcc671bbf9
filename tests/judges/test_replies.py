"""What came back becomes the right state, through the vendors' real SDKs: nothing dropped, nothing made up."""

import json
import math
import threading
import time
from email.utils import formatdate
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from saebench.plugins.judges.chat import probabilities
from saebench.plugins.judges.openai import _refused

from saebench.errors import UsageError
from saebench.judge import JudgeError, NoAnswer, Reply, Request, read_reply, value_places
from saebench.judging.cache import ReplyCache
from saebench.judging.session import JudgeSession
from saebench.testing import judge_session
from tests.judges.server import (
    Coin,
    CutBody,
    Hang,
    JudgeServer,
    Refusal,
    Said,
    Status,
    Truncated,
    always,
)  # fmt: skip
from tests.raising import raises

APIS = ("openai", "anthropic")
session = partial(JudgeSession, pause=0.01)


def request(user: str = "u", **fields: str) -> Request:
    return Request("system", user, fields or {"a": "boolean", "b": "boolean"}, "test@1", 64)  # type: ignore[arg-type]


def ask(api: str, answer: object, *requests: Request) -> list[Reply]:
    with JudgeServer(answer) as server:  # type: ignore[arg-type]
        return session(server.judge(api)).complete_all(requests or [request()])


# --- what was said ----------------------------------------------------------------------------------------------------


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


def patience(fault: object) -> float:
    """Seconds for an attempt: few only where the server is to be too slow."""
    return 0.5 if isinstance(fault, Hang) else 5.0


# --- what went wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "fault", [Status(429, "0.05"), Status(429), Status(500), Status(502), Status(529), Hang(1), CutBody()], ids=repr
)
def test_what_passes_is_asked_again(api, fault):
    with JudgeServer(lambda asked: fault if asked.attempt == 1 else {"a": True, "b": False}) as server:
        [reply] = session(server.judge(api, timeout=patience(fault))).complete_all([request()])
        assert reply.state == "ok"
        assert [asked.attempt for asked in server.asked] == [1, 2]


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("fault", [Status(429, "0.05"), Status(500), Hang(1), CutBody()], ids=repr)
def test_what_does_not_pass_has_failed(api, fault):
    with JudgeServer(lambda asked: fault if "bad" in asked.user else {"a": True, "b": False}) as server:
        requests = [request("good 1"), request("bad"), request("good 2")]
        replies = session(server.judge(api, timeout=patience(fault), retries=1)).complete_all(requests)
    assert [reply.state for reply in replies] == ["ok", "failed", "ok"]
    assert replies[1].problem
    assert not replies[1].data


@pytest.mark.parametrize("api", APIS)
def test_retry_after_is_waited_for(api):
    """For as long as the server says, which is longer than we would wait on our own."""
    begin = time.monotonic()
    with JudgeServer(lambda asked: Status(429, "0.7") if asked.attempt == 1 else {"a": True, "b": True}) as server:
        [reply] = session(server.judge(api)).complete_all([request()])
    assert reply.state == "ok"
    assert time.monotonic() - begin > 0.7


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_nobody_waits_for_a_day(api, form):
    wait = "86400" if form == "seconds" else formatdate(time.time() + 86400, usegmt=True)
    with JudgeServer(lambda _: Status(429, wait)) as server:
        [reply] = JudgeSession(server.judge(api)).complete_all([request()])
        assert reply.state == "failed"
        assert len(server.asked) == 1


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Status(401), "does not accept the key in SAEBENCH_JUDGE_KEY"),
        (Status(403), "does not accept the key"),
        (Status(404), "has no model 'test-model'"),
        (Status(402), "no money left"),
    ],
)
def test_what_will_meet_every_call_ends_the_asking(api, fault, words, monkeypatch):
    monkeypatch.setenv("SAEBENCH_JUDGE_KEY", "sk-somebody")
    met = threading.Event()

    def answer(asked: Any) -> Any:
        if asked.user == "7":
            met.set()
            return fault
        if met.is_set():
            time.sleep(0.3)  # long enough to take in what was met, on a machine that is busy too
        return {"a": True, "b": True}

    with JudgeServer(answer) as server:
        session = JudgeSession(server.judge(api))
        with pytest.raises(JudgeError, match=words) as caught:
            session.complete_all([request(str(i)) for i in range(100)])
        assert len(str(caught.value).splitlines()) == 1
        assert len(server.asked) < 30
        assert session.ledger.tally.sent == len(server.asked) - 1, "what was answered is kept"


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("code", [401, 403])
def test_a_server_that_wants_a_key_and_got_none(api, code, monkeypatch):
    monkeypatch.delenv("SAEBENCH_JUDGE_KEY", raising=False)
    wanted = pytest.raises(JudgeError, match="wants a key: set SAEBENCH_JUDGE_KEY")
    with JudgeServer(lambda _: Status(code)) as server, wanted:
        server.judge(api).complete(request())


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(("code", "then"), [(429, "later"), (500, "later"), (400, "check --judge and --judge-url")])
def test_a_provider_that_does_not_list_its_models_was_reached(api, code, then, monkeypatch):
    monkeypatch.setenv(f"{api.upper()}_API_KEY", "sk-test")
    with JudgeServer(always(True)) as server:
        server.listing = Status(code, retry_after="0.01")
        with raises(JudgeError, server.url(api), code, "an error on purpose", then):
            server.official(api, monkeypatch)


@pytest.mark.parametrize("code", [400, 422])
def test_a_server_that_knows_no_output_config_is_asked_in_words(code, tmp_path):
    def answer(asked: Any) -> Any:
        if "output_config" in asked.body:
            return Status(code, message="output_config: Extra inputs are not permitted")
        return {"a": True, "b": True}

    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(answer) as server:
        judge = server.judge("anthropic")
        replies = JudgeSession(judge, cache).complete_all([request(str(i)) for i in range(9)])
        assert [r.state for r in replies] == ["ok"] * 9
        assert [r.sampling for r in replies] == [{"thinking": "disabled"}] * 9
        assert len(server.asked) == 10
        assert not judge.capabilities.structured
        server.answer = lambda _: Status(code, message="thinking: unknown")
        with pytest.raises(JudgeError, match=r"no longer takes thinking, .*--judge-cache"):
            JudgeSession(server.judge("anthropic"), cache).complete_all([request(str(i)) for i in range(20)])
        assert len(server.asked) == 11


def test_a_server_of_anthropic_s_protocol_that_knows_no_thinking(tmp_path):
    """It is asked without, from the first call on, and so is a run that goes on."""
    cache = ReplyCache(tmp_path / "r.sqlite")

    def answer(asked: Any) -> Any:
        return Status(400, message="thinking: not supported") if "thinking" in asked.body else {"a": True, "b": True}

    with JudgeServer(answer) as server:
        replies = JudgeSession(server.judge("anthropic"), cache).complete_all([request(str(i)) for i in range(9)])
        assert [r.state for r in replies] == ["ok"] * 9
        assert [r.sampling for r in replies] == [{"format": "json_schema", "thinking": "unsaid"}] * 9
        assert len(server.asked) == 10
        more = JudgeSession(server.judge("anthropic"), cache).complete_all([request(str(i)) for i in range(11)])
        assert [r.state for r in more] == ["ok"] * 11
        assert len(server.asked) == 12
        assert {asked.max_tokens for asked in server.asked} == {64}


def test_a_call_that_waits_is_not_sent_when_the_asking_ends(monkeypatch):
    monkeypatch.setenv("SAEBENCH_JUDGE_KEY", "sk-somebody")

    def answer(asked: Any) -> Any:
        if asked.user == "busy":
            return Status(429, "30")
        if asked.user == "first":
            return {"a": True, "b": True}
        while not any(other.user == "busy" for other in server.asked):
            time.sleep(0.01)
        time.sleep(0.1)
        return Status(401)

    with JudgeServer(answer) as server:
        judge, begin = server.judge("openai"), time.monotonic()
        with pytest.raises(JudgeError, match="does not accept the key"):
            JudgeSession(judge).complete_all([request("first"), request("busy"), request("no key")])
        assert time.monotonic() - begin < 15
        assert sorted(asked.user for asked in server.asked) == ["busy", "first", "no key"]


@pytest.mark.parametrize("api", APIS)
def test_a_server_that_never_answers_is_given_up(api):
    with JudgeServer(lambda asked: Status(400) if int(asked.user) > 4 else {"a": True, "b": True}) as server:
        session = JudgeSession(server.judge(api))
        with raises(JudgeError, "20 calls in a row"):
            session.complete_all([request(str(i)) for i in range(200)])
        assert len(server.asked) < 60


def test_a_judge_that_raises_costs_only_that_call():
    def answer(asked: Request) -> dict[str, bool]:
        if asked.user == "3":
            raise ValueError("a bug")
        return {"a": True, "b": True}

    replies = judge_session(answer).complete_all([request(str(i)) for i in range(5)])
    assert [reply.state for reply in replies] == ["ok", "ok", "ok", "failed", "ok"]
    assert replies[3].problem == "ValueError: a bug"


class Stopped(BaseException):
    """As of a thread that is told to end."""


@pytest.mark.timeout(20)
def test_a_worker_that_dies_is_heard_of():
    def answer(asked: Request) -> dict[str, bool]:
        if asked.user == "3":
            raise Stopped("here")
        return {"a": True, "b": True}

    asking = judge_session(answer)
    with pytest.raises(Stopped, match="here"):
        asking.complete_all([request(str(i)) for i in range(5)])
    assert asking.ledger.tally.sent == 3, "what was answered is kept"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("wait", [math.inf, math.nan, 1e300, -1.0])
def test_a_wait_that_is_no_number_of_seconds(wait, monkeypatch):
    monkeypatch.setattr("saebench.judging.calls.LONGEST_WAIT", 0.01)
    left = [NoAnswer("busy", wait)]

    def answer(asked: Request) -> dict[str, bool]:
        if left:
            raise left.pop()
        return {"a": True, "b": True}

    asking = judge_session(answer)
    asking.calls.pause = 0.01
    assert [r.state for r in asking.complete_all([request()])] == ["ok"]


# --- many at once -----------------------------------------------------------------------------------------------------


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


# --- what each vendor is asked for ------------------------------------------------------------------------------------


def test_openai_is_held_to_the_schema(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with JudgeServer(always(True)) as server:
        judge = server.official("openai", monkeypatch)
        judge.complete(request("hello", first="boolean", why="string"))
        body = server.asked[0].body
    schema = {"type": "object", "properties": {"first": {"type": "boolean"}, "why": {"type": "string"}},
              "required": ["first", "why"], "additionalProperties": False}  # fmt: skip
    assert body == {
        "model": "test-model", "temperature": 0, "logprobs": True, "top_logprobs": 20, "reasoning_effort": "none",
        "max_completion_tokens": 64,
        "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}},
        "messages": [{"role": "system", "content": "system"}, {"role": "user", "content": "hello"}],
    }  # fmt: skip


def test_anthropic_is_held_to_the_schema(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    with JudgeServer(always(True)) as server:
        judge = server.official("anthropic", monkeypatch)
        judge.complete(request("hello", first="boolean"))
        body = dict(server.asked[0].body)
    assert body.pop("output_config")["format"]["schema"]["required"] == ["first"]
    assert body == {"model": "test-model", "max_tokens": 64, "system": "system", "thinking": {"type": "disabled"},
                    "messages": [{"role": "user", "content": "hello"}]}  # fmt: skip
    assert not judge.capabilities.temperature
    assert not judge.capabilities.probabilities


def test_an_anthropic_model_without_schemas_is_asked_in_words_and_checked(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    said = iter(['{"a": true, "b": false}', '{"a": true}'])
    with JudgeServer(lambda _: next(said)) as server:
        server.structured = False
        judge = server.official("anthropic", monkeypatch)
        replies = JudgeSession(judge).complete_all([request("1"), request("2")])
        assert "output_config" not in server.asked[0].body
        assert server.asked[0].system.endswith('of exactly this form: {"a": true or false, "b": true or false}')
    assert [reply.state for reply in replies] == ["ok", "malformed"]
    assert replies[0].sampling == {"thinking": "disabled"}
    assert not judge.capabilities.structured


@pytest.mark.parametrize(
    ("ways", "thinking", "most"), [(("between_tools",), {"type": "between_tools"}, 64), ((), None, 64 + 4096)]
)
def test_a_model_that_thinks_is_kept_from_it_or_given_room(ways, thinking, most):
    with JudgeServer(always(True)) as server:
        server.thinking = ways
        judge = server.judge("anthropic")
        judge.complete(request())
        assert server.asked[0].body.get("thinking") == thinking
        assert server.asked[0].max_tokens == most
        assert judge.headroom == most - 64


REFUSED = {
    "temperature": Status(400, message="Unsupported parameter", param="temperature"),
    "reasoning_effort": Status(400, message="Unsupported value: 'reasoning_effort' does not support 'none'"),
    "logprobs": Status(403, message="You are not allowed to request logprobs from this model"),
}


def picky(asked: Any) -> Any:
    """A model that thinks, and has neither temperature nor log-probabilities."""
    for name, status in REFUSED.items():
        if asked.body.get(name) not in (None, "low"):
            return status
    return {"a": True, "b": True}


def test_what_openai_does_not_know_is_not_asked_for_again(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with JudgeServer(picky) as server:
        judge = server.official("openai", monkeypatch)
        replies = JudgeSession(judge).complete_all([request(str(i)) for i in range(30)])
        assert {reply.state for reply in replies} == {"ok"}
        assert len(server.asked) == 30 + 4, "settled by the first call, before the others"
        last = server.asked[-1].body
        assert last["reasoning_effort"] == "low"
        assert last["max_completion_tokens"] == 64 + 4096, "a model that thinks gets room for it"
        assert not {"temperature", "logprobs", "top_logprobs"} & set(last)
    assert judge.capabilities.structured
    assert not judge.capabilities.probabilities
    assert not judge.capabilities.temperature
    assert [r.sampling for r in replies] == [{"reasoning_effort": "low", "response_format": "json_schema"}] * 30


@pytest.mark.parametrize(
    ("message", "room", "sampling"),
    [
        ("Unsupported parameter: 'reasoning_effort' is not supported with this model.", 0, {}),
        ("Unrecognized request argument supplied: reasoning_effort", 0, {}),
        ("Unsupported value: 'reasoning_effort' does not support this", 4096, {"thinking": 4096}),
    ],
)
def test_only_a_model_that_thinks_gets_room_for_it(message, room, sampling, monkeypatch, tmp_path):
    """One that does not know the parameter does not think; one that takes none of our values may."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    cache = ReplyCache(tmp_path / "r.sqlite")

    def answer(asked: Any) -> Any:
        return Status(400, message=message) if "reasoning_effort" in asked.body else Truncated()

    with JudgeServer(answer) as server:
        for n in (1, 2):  # the second goes on as the first began
            judge = server.official("openai", monkeypatch)
            [*_, reply] = JudgeSession(judge, cache).complete_all([request(str(i)) for i in range(n)])
            assert server.asked[-1].max_tokens == 64 + room
            assert judge.headroom == room
            assert reply.problem == f"cut at {64 + room} tokens"
            usual = {"temperature": 0, "logprobs": 20, "response_format": "json_schema"}
            assert reply.sampling == usual | sampling
        assert len(server.asked) == (3 if not room else 5), "asked once whether it knows it"


@pytest.mark.parametrize(
    "message",
    [
        "body.reasoning_effort: Input should be 'low', 'medium' or 'high'",
        "Unrecognized request argument: reasoning_effort",
    ],
)
def test_a_model_of_another_server_is_asked_not_to_think(message):
    """Thinking would fill a reply that has room for its form only. A server that does not know of it is asked without."""
    for refusing in (False, True):

        def answer(asked: Any, refusing: bool = refusing) -> Any:
            return (
                Status(400, message=message)
                if refusing and "reasoning_effort" in asked.body
                else {"a": True, "b": True}
            )

        with JudgeServer(answer) as server:
            judge = server.judge("openai")
            replies = JudgeSession(judge).complete_all([request(str(i)) for i in range(5)])
            assert [reply.state for reply in replies] == ["ok"] * 5
            assert len(server.asked) == 5 + refusing
            assert server.asked[-1].body.get("reasoning_effort") == (None if refusing else "none")
            assert (server.asked[-1].max_tokens, judge.headroom) == (64, 0)


@pytest.mark.parametrize("code", [400, 403])
def test_what_is_no_longer_taken_is_named(code, tmp_path, monkeypatch):
    """A run goes on as it began; where the provider has come to refuse that, every call would fail."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(always(True)) as server:
        JudgeSession(server.official("openai", monkeypatch), cache).complete_all([request("1")])
        server.answer = lambda a: Status(code, message="You are not allowed to set temperature for this model")
        with raises(JudgeError, "no longer takes temperature", "--judge-cache"):
            JudgeSession(server.official("openai", monkeypatch), cache).complete_all(
                [request(str(i)) for i in range(9)]
            )
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("status", "text", "dropped"),
    [
        (Status(400, message="bad value", param="temperature"), "", {"temperature"}),
        (Status(400, message="bad value", param="top_logprobs"), "", {"logprobs"}),
        (Status(422, message="body.logprobs: extra inputs are not permitted"), "", {"logprobs"}),
        (Status(400, message="logprobs cannot go with response_format"), "", {"logprobs"}),
        (Status(400, message="failed to parse grammar"), "", {"response_format"}),
        # The error quotes what was sent, or is about something else that the words only sound like.
        (Status(400, message="flagged: 'the temperature rose'"), "the temperature rose", set()),
        (Status(400, message="invalid text: temperature", param="messages[0].content"), "", set()),
        (Status(400, message="our reasoning: structured text about temperatures is forbidden"), "", set()),
        (Status(500, message="temperature"), "", set()),
    ],
)
def test_only_a_named_parameter_is_left_out(status, text, dropped):
    def answer(asked: Any) -> Any:
        whole = dropped <= set(asked.body)
        return status if whole else {"a": True, "b": True}

    with JudgeServer(answer) as server:
        judge = server.judge("openai", retries=0)
        session(judge).complete_all([request(text)])
        ignored = set() if status.code == 500 or not dropped else {"logprobs"}  # the server returns none
        assert {"temperature", "logprobs", "response_format"} - set(judge.sampling) == dropped | ignored
        assert len(server.asked) == 1 + len(dropped) + (status.param == "top_logprobs"), "fewer alternatives are tried"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"detail": [{"loc": ["body", "logprobs"], "msg": "Extra inputs", "input": True}]}, "logprobs"),
        ({"detail": [{"loc": ["body", "prompt"], "msg": "Field required", "input": {"temperature": 0}}]}, None),
        ({"detail": "temperature must be above 0"}, "temperature"),
        ({"object": "error", "message": "guided_json is not supported"}, "response_format"),
        ({"message": None}, None),
        ("temperature", None),
        (None, None),
    ],
)
def test_errors_of_other_servers_are_read_where_they_speak(body, named):
    assert _refused(SimpleNamespace(param=None, body=body), request()) == named


def test_nothing_is_left_out_any_more_once_a_call_was_answered():
    def answer(asked: Any) -> Any:
        return Status(400, message="no", param="temperature") if "bad" in asked.user else {"a": True, "b": True}

    with JudgeServer(answer) as server:
        judge = server.judge("openai")
        replies = JudgeSession(judge).complete_all([request("good"), request("bad"), request("good too")])
        assert [r.state for r in replies] == ["ok", "failed", "ok"]
        assert len(server.asked) == 3
        assert all("temperature" in asked.body for asked in server.asked)


def test_an_official_model_without_structured_output_ends_the_asking(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    refusal = Status(400, message="'response_format' of type 'json_schema' is not supported", param="response_format")
    with JudgeServer(lambda _: refusal) as server:
        with pytest.raises(JudgeError, match="'test-model' of judge openai takes no structured output") as caught:
            JudgeSession(server.official("openai", monkeypatch)).complete_all([request(str(i)) for i in range(30)])
        assert len(str(caught.value).splitlines()) == 1
        assert len(server.asked) == 1


def test_a_local_server_without_schemas_is_asked_in_words():
    def plain(asked: object) -> object:
        if "response_format" in asked.body:  # type: ignore[attr-defined]
            return Status(400, message="response_format json_schema is not supported")
        return '```json\n{"a": false, "b": true}\n```'

    with JudgeServer(plain) as server:  # type: ignore[arg-type]
        judge = server.judge("openai")
        assert judge.capabilities.structured
        replies = JudgeSession(judge).complete_all([request(str(i)) for i in range(5)])
        assert [dict(reply.data) for reply in replies] == [{"a": False, "b": True}] * 5
        assert len(server.asked) == 6
        assert server.asked[-1].system.endswith('of exactly this form: {"a": true or false, "b": true or false}')
        assert server.asked[-1].max_tokens == 64
    assert not judge.capabilities.structured


def test_a_request_that_is_wrong_has_failed_and_is_not_repeated():
    with JudgeServer(lambda _: Status(400, message="the prompt is too long")) as server:
        [reply] = JudgeSession(server.judge("openai")).complete_all([request()])
        assert (reply.state, len(server.asked)) == ("failed", 1)
        assert "the prompt is too long" in reply.problem


@pytest.mark.parametrize("api", APIS)
def test_an_unknown_model_is_named_before_anything_is_asked(api, monkeypatch):
    monkeypatch.setenv(f"{api.upper()}_API_KEY", "sk-test")
    with JudgeServer(always(True), models=("gpt-big", "gpt-small")) as server:
        with raises(UsageError, "gpt-smal", "gpt-small"):
            server.official(api, monkeypatch, model="gpt-smal")
        assert not server.asked


def test_a_server_with_one_model_takes_any_name_for_it():
    with JudgeServer(always(True), models=("/models/llama.gguf",)) as server:
        assert server.judge("openai", model="whatever").complete(request()).state == "ok"


@pytest.mark.parametrize("api", APIS)
def test_nothing_there(api):
    with JudgeServer(always(True)) as server:
        url = server.url(api)
    from saebench.judging.choose import make_judge

    begin = time.monotonic()
    with pytest.raises(JudgeError, match="cannot be reached"):
        make_judge(f"{api}:m", url).open()
    assert time.monotonic() - begin < 30


# --- probabilities ----------------------------------------------------------------------------------------------------


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
