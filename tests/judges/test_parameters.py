"""What each vendor is asked for, and which parameters are left out where a server refuses them."""

from types import SimpleNamespace
from typing import Any

import pytest
from saebench.plugins.judges.openai import _refused

from saebench.judge import JudgeError
from saebench.judging.cache import ReplyCache
from saebench.judging.session import JudgeSession
from tests.judges.asking import request, session
from tests.judges.server import (
    JudgeServer,
    Status,
    Truncated,
    always,
)  # fmt: skip
from tests.raising import raises


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
        with raises(JudgeError, "thinking", "--judge-cache"):
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
        with raises(JudgeError, "'test-model'", "openai", "structured output") as caught:
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
