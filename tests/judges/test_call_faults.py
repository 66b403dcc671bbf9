"""Calls that fail: which are repeated, which fail alone, and which end the session."""

import math
import threading
import time
from email.utils import formatdate
from typing import Any

import pytest

from saebench.errors import UsageError
from saebench.judge import JudgeError, NoAnswer, Request
from saebench.judging.session import JudgeSession
from saebench.testing import judge_session
from tests.judges.asking import APIS, patience, request, session
from tests.judges.server import (
    CutBody,
    Hang,
    JudgeServer,
    Status,
    always,
)  # fmt: skip
from tests.raising import raises


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
        with raises(JudgeError, words) as caught:
            session.complete_all([request(str(i)) for i in range(100)])
        assert len(str(caught.value).splitlines()) == 1
        assert len(server.asked) < 30
        assert session.ledger.tally.sent == len(server.asked) - 1, "what was answered is kept"


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("code", [401, 403])
def test_a_server_that_wants_a_key_and_got_none(api, code, monkeypatch):
    monkeypatch.delenv("SAEBENCH_JUDGE_KEY", raising=False)
    wanted = raises(JudgeError, "wants a key", "SAEBENCH_JUDGE_KEY")
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
        with raises(JudgeError, "SAEBENCH_JUDGE_KEY"):
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
    with raises(JudgeError, url, "cannot be reached"):
        make_judge(f"{api}:m", url).open()
    assert time.monotonic() - begin < 30
