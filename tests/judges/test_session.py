"""Replay, resume, limits and batches."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saebench.errors import SaebenchError, UsageError
from saebench.judge import BatchLost, Calls, JudgeError, Reply, Request, Usage
from saebench.judging.cache import HandedOver, ReplyCache
from saebench.judging.choose import make_judge
from saebench.judging.prices import Price, cost_bound, estimate, find_price
from saebench.judging.session import JudgeSession
from saebench.testing import FunctionJudge
from tests.conftest import REPOSITORY
from tests.judges.server import Coin, CutBody, Expired, Hang, JudgeServer, Status, always
from tests.raising import raises

APIS = ("openai", "anthropic")


def requests(n: int, **changes: Any) -> list[Request]:
    return [Request(**{"system": "s", "user": f"user {i}", "fields": {"a": "boolean", "b": "boolean"}, "prompt": "p@1",
                       "max_tokens": 20, **changes}) for i in range(n)]  # fmt: skip


def judge() -> FunctionJudge:
    return FunctionJudge(lambda r: {"a": len(r.user) % 2 == 0, "b": "3" in r.user})


# --- the file of replies ----------------------------------------------------------------------------------------------


def test_a_replay_is_what_was_recorded(tmp_path):
    odd = {
        "user 1": Reply("refused", text="no", problem="declined", model="m-1", usage=Usage(3, 4)),
        "user 2": Reply("failed", problem="server"),
        "user 3": Reply("ok", {"a": True, "b": False}, "t", probabilities={"a": 0.1 + 0.2, "b": 1e-300}),
        "user 4": Reply("malformed", {"a": True}, "\ud800 \u202e <b> \x00", "'b' is missing"),
    }
    cache = ReplyCache(tmp_path / "x" / "replies.sqlite")
    speaker = FunctionJudge(lambda r: odd.get(r.user, {"a": True, "b": True}))
    first = JudgeSession(speaker, cache).complete_all(requests(8))
    silent = FunctionJudge(lambda r: pytest.fail("it was asked"))
    session = JudgeSession(silent, cache, mode="only")
    assert session.complete_all(requests(8)) == first
    assert [first[i] for i in (1, 2, 3, 4)] == list(odd.values())
    assert session.ledger.tally.replayed == 8


def test_what_failed_is_asked_again_and_nothing_else(tmp_path):
    cache = ReplyCache(tmp_path / "replies.sqlite")
    bad = FunctionJudge(lambda r: Reply("failed", problem="x") if r.user == "user 2" else {"a": True, "b": True})
    JudgeSession(bad, cache).complete_all(requests(5))
    good = judge()
    replies = JudgeSession(good, cache).complete_all(requests(6))
    assert [r.user for r in good.asked] == ["user 2", "user 5"]
    assert {r.state for r in replies} == {"ok"}
    live = judge()
    JudgeSession(live, cache, mode="live").complete_all(requests(3))
    assert len(live.asked) == 3


def test_asking_again_keeps_what_is_said_now(tmp_path):
    """The record of a live run can be replayed like any other: its replies take the place of the old ones, one by one."""
    cache = ReplyCache(tmp_path / "replies.sqlite")
    first = JudgeSession(judge(), cache).complete_all(requests(3))
    for answer in (lambda r: Reply("failed", problem="x"), lambda r: {"a": False, "b": False}):
        live = JudgeSession(FunctionJudge(answer), cache, mode="live")
        other = live.complete_all(requests(3))
        assert other != first
        replay = JudgeSession(judge(), cache, mode="only")
        assert replay.complete_all(requests(3)) == other
        assert replay.ledger.about() == live.ledger.about()

    def until(asked: Request) -> dict[str, bool]:
        if asked.user == "user 1":
            raise Killed
        return {"a": True, "b": False}

    with pytest.raises(Killed):
        JudgeSession(FunctionJudge(until), cache, mode="live").complete_all(requests(3))
    kept = JudgeSession(judge(), cache, mode="only").complete_all(requests(3))
    assert [r.data["a"] for r in kept] == [True, False, False], "a kill loses nothing of what was answered before it"


def test_two_runs_with_one_file_use_the_same_reply(tmp_path):
    """While this run waits for its answer another one keeps its own: the record must show what a replay will."""
    cache = ReplyCache(tmp_path / "replies.sqlite")
    other = Reply("ok", {"a": False, "b": True}, "other", model="other", usage=Usage(5, 6))

    def late(request: Request) -> dict[str, bool | str]:
        cache.put(late_judge.identity, [(request.key(late_judge.identity), request, other)])
        return {"a": True, "b": True}

    late_judge = FunctionJudge(late)
    session = JudgeSession(late_judge, cache)
    assert session.complete_all(requests(2)) == [other, other]
    session.ledger.begin()
    session.complete_all(requests(2))
    replay = JudgeSession(judge(), cache, mode="only")
    assert replay.complete_all(requests(2)) == [other, other]
    assert session.ledger.about() == replay.ledger.about()
    live = JudgeSession(late_judge, cache, mode="live")
    assert live.complete_all(requests(2))[0].data == {"a": True, "b": True}, "asked for its own opinion"


# --- how it was sampled -----------------------------------------------------------------------------------------------


def plain(asked: Any) -> Any:
    """A server without temperature and log-probabilities."""
    for name in ("temperature", "logprobs"):
        if name in asked.body:
            return Status(400, param=name)
    return dict.fromkeys(asked.fields, True)


def test_how_it_was_sampled_is_recorded_and_replayed(tmp_path):
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(plain) as server:
        session = JudgeSession(server.judge("openai"), cache)
        session.complete_all(requests(4))
        replay = JudgeSession(make_judge("openai:test-model", server.url("openai")), cache, mode="only")
        replay.complete_all(requests(4))
    sampling = [{"reasoning_effort": "none", "response_format": "json_schema"}]
    assert session.ledger.about()["sampling"] == replay.ledger.about()["sampling"] == sampling
    assert JudgeSession(judge()).ledger.about()["sampling"] == []


def test_anthropic_s_sampling_is_recorded_too():
    with JudgeServer(always(True)) as server:
        session = JudgeSession(server.judge("anthropic"))
        session.complete_all(requests(1))
    assert session.ledger.about()["sampling"] == [{"format": "json_schema", "thinking": "disabled"}]


@pytest.mark.parametrize("batch", [False, True])
def test_a_run_goes_on_sampling_as_it_began(batch, tmp_path):
    """The server has learned something in between; one score is of one way of sampling all the same."""
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(plain, polls=0) as server:
        JudgeSession(server.judge("openai"), cache, batch=batch, poll=0).complete_all(requests(3))
        server.answer = always(True)
        session = JudgeSession(server.judge("openai"), cache, batch=batch, poll=0)
        session.complete_all(requests(7))
        assert len({asked.user for asked in server.asked}) == 7
        assert not any("temperature" in asked.body for asked in server.asked[-4:])
        assert session.ledger.about()["sampling"] == [{"reasoning_effort": "none", "response_format": "json_schema"}]
        session.ledger.begin()
        session.complete_all(requests(3, system="another score"))
        assert session.ledger.about()["calls"] == 3


def test_anthropic_goes_on_as_it_began(tmp_path):
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(always(True)) as server:
        server.thinking = ()
        JudgeSession(server.judge("anthropic"), cache).complete_all(requests(1))
        server.thinking = ("disabled",)
        session = JudgeSession(server.judge("anthropic"), cache)
        session.complete_all(requests(2))
        assert session.ledger.about()["sampling"] == [{"effort": "low", "format": "json_schema"}]
        assert "thinking" not in server.asked[-1].body
        assert server.asked[-1].max_tokens == 20 + 4096


def test_replies_of_two_ways_of_sampling_are_named(tmp_path):
    """As two runs on one file may leave them, before either knew of the other."""
    cache, who = ReplyCache(tmp_path / "r.sqlite"), judge()
    ways = [{"temperature": 0}, {}]
    data = {"a": True, "b": True}
    rows = [(r.key(who.identity), r, Reply("ok", data, sampling=w)) for r, w in zip(requests(2), ways, strict=True)]
    cache.put(who.identity, rows)
    session = JudgeSession(who, cache, mode="only")
    session.complete_all(requests(2))
    assert session.ledger.about()["sampling"] == [{"temperature": 0}, {}]


def test_a_miss_in_a_replay_is_an_error(tmp_path):
    session = JudgeSession(judge(), ReplyCache(tmp_path / "r.sqlite"), mode="only")
    with pytest.raises(JudgeError, match=r"3 of 3 calls are not in .*r\.sqlite \(the first: p@1\): record them"):
        session.complete_all(requests(3))


@pytest.mark.parametrize(
    "change",
    [{"system": "S"}, {"user": "x"}, {"fields": {"b": "boolean", "a": "boolean"}}, {"fields": {"a": "string", "b": "boolean"}},
     {"prompt": "p@2"}, {"max_tokens": 21}, {"repeat": 1}],
)  # fmt: skip
def test_everything_that_is_asked_is_in_the_key(change):
    [one], [other] = requests(1), requests(1, **change)
    assert one.key({"provider": "x"}) != other.key({"provider": "x"})


def test_who_is_asked_is_in_the_key():
    [one] = requests(1)
    specs = [
        ("openai:m", None),
        ("openai:n", None),
        ("anthropic:m", None),
        ("openai:m", "http://h/v1"),
        ("openai:m", "http://i/v1"),
    ]
    keys = {one.key(make_judge(*spec).identity) for spec in specs}
    assert len(keys) == len(specs)
    assert one.key(make_judge("replay:openai:m").identity) == one.key(make_judge("openai:m").identity)


def test_the_replay_judge_needs_no_key_and_no_network(tmp_path, monkeypatch):
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(Coin()) as server:
        recorded = JudgeSession(server.judge("openai"), cache).complete_all(requests(5))
        url = server.url("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    session = JudgeSession(make_judge("replay:openai:test-model", url), cache)
    assert session.complete_all(requests(5)) == recorded
    with pytest.raises(JudgeError, match="are not in"):
        session.complete_all(requests(6))


def test_a_file_that_is_no_cache(tmp_path):
    (tmp_path / "r.sqlite").write_text("not a database, but long enough to look at" * 10)
    with pytest.raises(SaebenchError, match=r"cannot be read or written.*--judge-cache") as caught:
        ReplyCache(tmp_path / "r.sqlite")
    assert len(str(caught.value).splitlines()) == 1


def test_the_file_can_be_read_by_anybody(tmp_path):
    JudgeSession(judge(), ReplyCache(tmp_path / "r.sqlite")).complete_all(requests(2))
    with sqlite3.connect(tmp_path / "r.sqlite") as db:
        rows = db.execute(
            "SELECT prompt, state, model, input_tokens, json_extract(request, '$.user') FROM replies ORDER BY 5"
        ).fetchall()
    assert rows == [("p@1", "ok", "function", 1, "user 0"), ("p@1", "ok", "function", 1, "user 1")]


# --- a kill in the middle ---------------------------------------------------------------------------------------------

_CHILD = """
import sys
from pathlib import Path
from importlib import import_module
from saebench.judge import Request
from saebench.judging.cache import HandedOver, ReplyCache
from saebench.judging.session import JudgeSession
[kind] = import_module(f"saebench.plugins.judges.{sys.argv[1]}").saebench_judges()
judge = kind("test-model", sys.argv[2])
cache = ReplyCache(Path(sys.argv[3]))
session = JudgeSession(judge, cache, batch=sys.argv[4] == "batch", poll=0.05)
fields = {"a": "boolean", "b": "boolean"}
print([dict(r.data) for r in session.complete_all([Request("s", f"user {i}", fields, "p@1", 20) for i in range(60)])])
"""


def child(api: str, server: JudgeServer, cache: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _CHILD, api, server.url(api), str(cache), how]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=env)


@pytest.mark.parametrize("api", ["anthropic"])
def test_a_killed_run_sends_only_what_is_missing(api, tmp_path):
    cache, coin = tmp_path / "r.sqlite", Coin()

    def slowly(asked: Any) -> Any:
        time.sleep(0.05)
        return coin(asked)

    with JudgeServer(slowly) as server:
        first = child(api, server, cache, "one by one")
        while len(server.asked) < 25:
            time.sleep(0.01)
            assert first.poll() is None, first.communicate()
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        before = {asked.user for asked in server.asked}
        with sqlite3.connect(cache) as db:
            kept = {row[0] for row in db.execute("SELECT json_extract(request, '$.user') FROM replies")}
        assert len(kept) >= 25 - 8 - 1, "only what was under way is lost"
        del server.asked[:]
        found = JudgeSession(server.judge(api), ReplyCache(cache)).complete_all(requests(60))
        again = {asked.user for asked in server.asked}
        assert len(server.asked) == len(again) == 60 - len(kept)
        assert not again & kept
        assert before - kept <= again
        assert len(before - kept) <= 8
    with JudgeServer(coin) as server:
        whole = JudgeSession(server.judge(api)).complete_all(requests(60))
    assert found == whole


@pytest.mark.parametrize("api", ["openai"])
def test_a_killed_run_collects_the_batch_that_it_handed_over(api, tmp_path):
    cache = tmp_path / "r.sqlite"
    with JudgeServer(Coin(), polls=10**9) as server:
        first = child(api, server, cache, "batch")
        while not (server.batches and next(iter(server.batches.values())).polls > 1):
            time.sleep(0.01)
            assert first.poll() is None, first.communicate()
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        server.polls = 0
        replies = JudgeSession(server.judge(api), ReplyCache(cache), batch=True, poll=0).complete_all(requests(60))
        assert {reply.state for reply in replies} == {"ok"}
        assert list(server.batches) == ["batch_1"], "nothing was handed over twice"
        assert len(server.asked) == 60
    assert not ReplyCache(cache).open_batches(make_judge(f"{api}:test-model", server.url(api)).identity)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
def test_what_a_batch_lacks_has_failed_and_the_rest_is_kept(api, tmp_path):
    coin = Coin()

    def answer(asked: Any) -> Any:
        return {"user 2": Expired(), "user 4": Status(500, message="odd"), "user 5": "not json"}.get(
            asked.user
        ) or coin(asked)

    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(answer) as server:
        session = JudgeSession(server.judge(api), cache, batch=True, poll=0, pause=0.01)
        replies = session.complete_all(requests(8))
        assert [r.state for r in replies] == ["ok", "ok", "failed", "ok", "failed", "malformed", "ok", "ok"]
        assert "expired" in replies[2].problem
        assert "odd" in replies[4].problem
        assert len(server.batches["batch_1"].items) == 7, "the first call goes alone, to see that it works"
        alone = [JudgeSession(server.judge(api)).complete_all([r])[0].data for r in requests(2)]
        assert [replies[0].data, replies[1].data] == alone, (
            "in the order of the requests, though they came back in another"
        )
        JudgeSession(server.judge(api), cache, batch=True, poll=0, pause=0.01).complete_all(requests(8))
        assert list(server.batches) == ["batch_1"], "the two that failed: one alone, then the other"


@pytest.mark.parametrize("api", APIS)
def test_a_line_that_is_missing_or_strange(api, tmp_path):
    with JudgeServer(always(True)) as server:
        judge = server.judge(api)
        real = server.results

        def odd(api: str, name: str) -> Any:
            lines, errors = real(api, name)
            strange = {"custom_id": lines[1]["custom_id"], "response": {"status_code": 200, "body": {"choices": []}},
                       "result": {"type": "succeeded", "message": {"content": None}}}  # fmt: skip
            return [
                {"custom_id": "somebody else's", **{k: v for k, v in lines[0].items() if k != "custom_id"}},
                strange,
                *lines[2:],
            ], errors

        server.results = odd  # type: ignore[method-assign]
        replies = JudgeSession(judge, batch=True, poll=0).complete_all(requests(6))
    assert [r.state for r in replies] == ["ok", "ok", "ok", "ok", "failed", "failed"]


@pytest.mark.parametrize("api", APIS)
def test_a_server_without_batches_is_said_to_have_none(api, tmp_path):
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(always(True)) as server:
        server.batching = False
        session = JudgeSession(server.judge(api), cache, batch=True, poll=0)
        with pytest.raises(JudgeError, match=r"takes no batches \(404\): leave --judge-batch out"):
            session.complete_all(requests(5))
        assert not cache.open_batches(session.ledger.identity), "it was not taken, so there is none to wait for"


@pytest.mark.parametrize("api", APIS)
def test_what_a_batch_says_has_failed_costs_nothing(api):
    """Providers charge for answers: also for one that cannot be read, taken at its most; not for an error or a missed day."""
    with JudgeServer(
        lambda a: {"user 1": Expired(), "user 2": Status(500)}.get(a.user) or {"a": True, "b": True}
    ) as server:
        real = server.results

        def lossy(api: str, name: str) -> Any:
            lines, errors = real(api, name)
            body = {
                "response": {"status_code": 200, "body": {}},
                "result": {"type": "succeeded", "message": {"content": None}},
            }
            return [{"custom_id": lines[0]["custom_id"], **body}, *lines[2:]], errors

        server.results = lossy  # type: ignore[method-assign]
        session = JudgeSession(server.judge(api), price=PRICE, batch=True, poll=0)
        replies = session.complete_all(requests(8))
    assert sorted(r.state for r in replies) == ["failed"] * 4 + ["ok"] * 4
    usages = [r.usage for r in replies if r.state == "ok" and r.usage]
    first, *rest = [PRICE.cost(u.input_tokens, u.output_tokens) for u in usages]
    assert session.ledger.tally.cost == pytest.approx(first + 0.5 * (sum(rest) + 2 * cost_bound(PRICE, requests(1)[0])))


@pytest.mark.parametrize("api", APIS)
def test_no_batch_is_handed_over_where_calls_alone_fail(api):
    with JudgeServer(lambda a: Status(400, message="nobody home"), polls=0) as server:
        with raises(JudgeError, "no batch", "nobody home"):
            JudgeSession(server.judge(api), batch=True, poll=0).complete_all(requests(9))
        assert not server.batches
        server.answer = lambda a: Status(400) if a.user == "user 0" else {"a": True, "b": True}
        replies = JudgeSession(server.judge(api), batch=True, poll=0).complete_all(requests(9))
        assert [r.state for r in replies] == ["failed"] + ["ok"] * 8, "one that nobody answers keeps no batch back"
        assert [len(batch.items) for batch in server.batches.values()] == [7]


@pytest.mark.parametrize("api", APIS)
def test_a_batch_that_is_gone_is_forgotten(api, tmp_path):
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(always(True)) as server:
        judge = server.judge(api)
        cache.open_batch(judge.identity, "m", {r.key(judge.identity): r for r in requests(3)}, {})
        cache.name_batch("m", "batch_77")
        with pytest.raises(BatchLost, match="batch batch_77 is no longer at"):
            JudgeSession(judge, cache, batch=True, poll=0).complete_all(requests(3))
        assert len(JudgeSession(judge, cache, batch=True, poll=0).complete_all(requests(3))) == 3


def test_somebody_else_s_batch_is_left_alone(tmp_path):
    cache = ReplyCache(tmp_path / "r.sqlite")
    [one] = requests(1)
    cache.open_batch({"provider": "other"}, "b", {"k": one}, {"x": 1})
    with JudgeServer(always(True)) as server:
        JudgeSession(server.judge("openai"), cache, batch=True, poll=0).complete_all(requests(2))
    assert cache.open_batches({"provider": "other"}) == [HandedOver("b", None, {"k": one}, {"x": 1})]


class Killed(BaseException):
    """As if the process had ended here."""


def dies(*_: Any) -> Any:
    raise Killed


@pytest.mark.parametrize("api", APIS)
def test_a_resumed_run_asks_one_call_alone_before_its_own_batch(api, tmp_path, monkeypatch):
    """That another process was answered does not show that this one will be: not with a day to lose."""
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(Coin(), polls=10**9) as server:
        with monkeypatch.context() as patch:
            patch.setattr("saebench.judging.batches.time.sleep", dies)
            with pytest.raises(Killed):
                JudgeSession(server.judge(api), cache, batch=True).complete_all(requests(5))
        assert [len(batch.items) for batch in server.batches.values()] == [4]
        server.polls = 0
        single = "/v1/chat/completions" if api == "openai" else "/v1/messages"
        server.seen.clear()
        JudgeSession(server.judge(api), cache, batch=True, poll=0).complete_all(requests(9))
        posts = [seen.path for seen in server.seen if seen.method == "POST"]
        assert [path for path in posts if path == single] == [single]
        assert posts[0] == single, "before anything else is handed over"
        assert [len(batch.items) for batch in server.batches.values()] == [4, 3]
        assert len(server.asked) == len({asked.user for asked in server.asked}) == 9


def begun_batch(server: JudgeServer, api: str, cache: ReplyCache, monkeypatch: Any) -> None:
    """A batch of four handed over by a run that then ended, and finished by now."""
    server.polls = 10**9
    with monkeypatch.context() as patch:
        patch.setattr("saebench.judging.batches.time.sleep", dies)
        with pytest.raises(Killed):
            JudgeSession(server.judge(api), cache, batch=True).complete_all(requests(5))
    server.polls = 0


@pytest.mark.parametrize("api", APIS)
def test_all_of_a_batch_is_kept_whatever_is_wanted_of_it(api, tmp_path, monkeypatch):
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(Coin()) as server:
        begun_batch(server, api, cache, monkeypatch)
        session = JudgeSession(server.judge(api), cache, batch=True, poll=0)
        session.complete_all(requests(3))
        assert session.ledger.tally.sent == 2
        assert not cache.open_batches(session.ledger.identity)
        asked = len(server.asked)
        assert len(JudgeSession(server.judge(api), cache, mode="only").complete_all(requests(5))) == 5
        assert len(server.asked) == asked == 5


def test_a_run_one_by_one_says_that_a_batch_holds_its_calls(tmp_path, monkeypatch):
    class Hears:
        def __init__(self) -> None:
            self.said: list[str] = []

        def message(self, text: str) -> None:
            self.said.append(text)

        def begin(self, *_: Any) -> None: ...

        advance = begin

        def end(self) -> None: ...

    cache, hears = ReplyCache(tmp_path / "r.sqlite"), Hears()
    with JudgeServer(Coin()) as server:
        begun_batch(server, "openai", cache, monkeypatch)
        who = server.judge("openai")
        JudgeSession(who, cache, listener=hears).complete_all(requests(2, user="other"))
        assert not hears.said
        JudgeSession(who, cache, listener=hears).complete_all(requests(4))
        assert hears.said == [hears.said[0]]
        assert hears.said[0].startswith("3 of 3 calls are in a batch")
        assert "--judge-batch" in hears.said[0]
        JudgeSession(who, cache, batch=True, poll=0).complete_all(requests(1, user="third"))
        assert cache.open_batches(who.identity), "one of its calls has no answer"
        JudgeSession(who, cache).complete_all(requests(5))
        JudgeSession(who, cache, batch=True, poll=0).complete_all(requests(1, user="fourth"))
        assert not cache.open_batches(who.identity), "each has one"


def test_a_batch_that_was_collected_alone_needs_no_call(tmp_path, monkeypatch):
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(plain, polls=10**9) as server:
        with monkeypatch.context() as patch:
            patch.setattr("saebench.judging.batches.time.sleep", dies)
            with pytest.raises(Killed):
                JudgeSession(server.judge("openai"), cache, batch=True).complete_all(requests(5))
        server.polls = 0
        server.asked.clear()
        replies = JudgeSession(server.judge("openai"), cache, batch=True, poll=0).complete_all(requests(5))
        assert len(server.asked) == 4
    assert [reply.sampling for reply in replies] == [
        {"reasoning_effort": "none", "response_format": "json_schema"}
    ] * 5, "known of the batch too"


def test_a_batch_whose_id_was_never_heard_is_found_again(tmp_path, monkeypatch):
    """The process ends, or the line, between the provider's taking it and our noting its id."""
    for way in ("kill", "line"):
        cache = ReplyCache(tmp_path / way)
        with JudgeServer(always(True), polls=0) as server:
            judge = server.judge("openai")
            server.deaf = way == "line"
            with monkeypatch.context() as patch:
                if way == "kill":
                    patch.setattr(cache, "name_batch", dies)
                expected = Killed if way == "kill" else JudgeError
                with pytest.raises(expected):
                    JudgeSession(judge, cache, batch=True, poll=0).complete_all(requests(5))
            server.deaf = False
            replies = JudgeSession(judge, cache, batch=True, poll=0).complete_all(requests(5))
            assert {reply.state for reply in replies} == {"ok"}
            assert list(server.batches) == ["batch_1"], "handed over once"
        assert not cache.open_batches(judge.identity)


@pytest.mark.parametrize("api", APIS)
def test_a_batch_that_was_not_heard_is_handed_over_again(api, tmp_path, monkeypatch):
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(always(True), polls=0) as server:
        judge = server.judge(api)
        with monkeypatch.context() as patch:
            patch.setattr(judge, "submit", dies)
            with pytest.raises(Killed):
                JudgeSession(judge, cache, batch=True, poll=0).complete_all(requests(5))
        assert len(JudgeSession(judge, cache, batch=True, poll=0).complete_all(requests(5))) == 5
        assert list(server.batches) == ["batch_1"]
    assert not cache.open_batches(judge.identity)


@pytest.mark.parametrize("api", APIS)
def test_a_batch_is_not_handed_over_twice_by_trying_again(api, tmp_path):
    with JudgeServer(always(True), polls=0) as server:
        server.deaf = True
        with pytest.raises(JudgeError, match=r"the batch was not taken: .*it may have been taken all the same"):
            JudgeSession(server.judge(api), batch=True, poll=0).complete_all(requests(5))
        assert len(server.batches) == 1


@pytest.mark.parametrize("api", APIS)
def test_a_batch_s_lines_end_at_line_feeds_only(api):
    """U+2028, U+2029, U+0085 and a form feed end lines for Python, not for JSON lines."""
    text = "one\u2028two\u2029three\u0085four\x7f"
    with JudgeServer(lambda asked: f'{{"why": "{text}"}}', polls=0) as server:
        asked = requests(3, fields={"why": "string"})
        asked = [replace(r, user=f"{r.user} {text}") for r in asked]
        replies = JudgeSession(server.judge(api), batch=True, poll=0).complete_all(asked)
        assert [a.user for a in sorted(server.asked, key=lambda a: a.user)] == [r.user for r in asked]
    assert [reply.data for reply in replies] == [{"why": text}] * 3


# --- what it costs ----------------------------------------------------------------------------------------------------

PRICE = Price(10.0, 100.0, 0.5, "2026-01-01")


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("limit", [0.0, 0.025])
def test_no_limit_is_passed(limit, batch, tmp_path):
    """What was really spent is counted by the server; it never passes the limit, and stops close to it."""
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(always(True), polls=0) as server:
        session = JudgeSession(server.judge("openai"), cache, price=PRICE, max_cost=limit, batch=batch, poll=0)
        with pytest.raises(
            JudgeError, match=f"stopped before passing --max-cost {limit:g}: .* what was answered is kept"
        ):
            session.complete_all(requests(50))
        singles = 1 if batch else len(server.asked)
        usages = [r.usage for r in session.ledger.answers.values() if r.usage]
        costs = [PRICE.cost(u.input_tokens, u.output_tokens) for u in usages]
        spent = sum(costs[:singles]) + 0.5 * sum(costs[singles:])
        assert spent == pytest.approx(session.ledger.tally.cost)
        assert spent <= limit
        assert len(usages) == len(server.asked)
        bound = cost_bound(PRICE, requests(1)[0]) * (0.5 if batch else 1)
        assert limit - spent < 2 * bound + 1e-9, "it does not stop long before"
        more = JudgeSession(server.judge("openai"), cache, price=PRICE, max_cost=100)
        assert len(more.complete_all(requests(50))) == 50
        assert len(server.asked) == 50, "the next run asks the rest"


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("fault", "billed"),
    [(Status(429, "0.01"), 0), (Status(500), 0), (Status(529), 0), (Status(504), 1), (CutBody(), 1), (Hang(1), 1)],
    ids=repr,
)
def test_an_attempt_that_may_be_billed_is_counted_at_its_most(api, fault, billed):
    """Two of three attempts go wrong. What was refused costs nothing; what was sent and lost may have been answered."""
    with JudgeServer(lambda asked: fault if asked.attempt < 3 else {"a": True, "b": True}) as server:
        timeout = 0.5 if isinstance(fault, Hang) else 5.0
        session = JudgeSession(server.judge(api, timeout=timeout), price=PRICE, max_cost=1, pause=0.01)
        [reply] = session.complete_all(requests(1))
        assert len(server.asked) == 3
    assert reply.usage is not None
    own = PRICE.cost(reply.usage.input_tokens, reply.usage.output_tokens)
    assert session.ledger.tally.cost == pytest.approx(own + 2 * billed * cost_bound(PRICE, requests(1)[0]))


@pytest.mark.parametrize("fault", [CutBody(), Status(500)], ids=repr)
def test_no_limit_is_passed_by_trying_again(fault):
    """Room for two attempts and a half: what may be billed stops there, what is not goes on to its last attempt."""
    with JudgeServer(lambda _: fault) as server:
        bound = cost_bound(PRICE, requests(1)[0])
        session = JudgeSession(server.judge("openai", retries=3), price=PRICE, max_cost=2.5 * bound, pause=0.01)
        if isinstance(fault, CutBody):
            with pytest.raises(JudgeError, match="stopped before passing --max-cost"):
                session.complete_all(requests(1))
            assert (len(server.asked), session.ledger.tally.cost) == (2, pytest.approx(2 * bound))
        else:
            assert session.complete_all(requests(1))[0].state == "failed"
            assert (len(server.asked), session.ledger.tally.cost) == (4, 0)


def test_what_could_not_be_sent_costs_nothing(monkeypatch):
    with JudgeServer(always(True)) as server:
        url = server.url("openai")
    nowhere: Any = make_judge("openai:test-model", url)
    monkeypatch.setattr(nowhere, "_find_model", lambda: None)
    monkeypatch.setattr(nowhere, "retries", 1)
    session = JudgeSession(nowhere, price=PRICE, pause=0.01)
    assert session.complete_all(requests(1))[0].state == "failed"
    assert session.ledger.tally.cost == 0


def test_a_call_without_a_count_is_taken_at_its_most():
    speaker = FunctionJudge(lambda r: Reply("failed", problem="timeout"))
    session = JudgeSession(speaker, price=PRICE)
    session.complete_all(requests(2))
    assert session.ledger.tally.cost == pytest.approx(2 * cost_bound(PRICE, requests(1)[0]))


def test_bounds_are_bounds():
    for text in ("", "plain words", "\u4e2d\u6587 \U0001f600" * 50):
        [one] = requests(1, user=text, max_tokens=7)
        bytes_in = len((one.system + text).encode())
        assert cost_bound(Price(1e6, 0), one) > bytes_in
        assert cost_bound(Price(0, 1e6), one, headroom=5) == 12


def test_prices(tmp_path, monkeypatch):
    known = find_price(make_judge("openai:gpt-4o-mini"))
    assert known == Price(0.15, 0.6, 0.5, "2026-04-30")
    assert find_price(make_judge("openai:gpt-4o-mini", "http://localhost:1/v1")) is None, (
        "another server's price is not known"
    )
    assert find_price(make_judge("openai:who-knows")) is None
    assert find_price(judge()) == Price(0, 0)
    (tmp_path / "p.toml").write_text('[openai."who-knows"]\ninput = 1\noutput = 2\ndate = 2026-11-01\n')
    monkeypatch.setenv("SAEBENCH_PRICES", str(tmp_path / "p.toml"))
    assert find_price(make_judge("openai:who-knows")) == Price(1, 2, 1, "2026-11-01")
    for broken in (
        "[openai]\nx = 1",
        '[openai."m"]\ninput = -1\noutput = 1\ndate = 2026-01-01',
        "not toml",
        '[openai."m"]\ninput=1',
    ):
        (tmp_path / "p.toml").write_text(broken)
        with pytest.raises(UsageError, match=r"p\.toml"):
            find_price(make_judge("openai:m"))


def test_an_estimate():
    calls = [Calls("p@1", 10, 402, 5), Calls("q@1", 3, 40, 20)]
    assert estimate(calls, PRICE) == (10 * 101 + 30, 110, pytest.approx((1040 * 10 + 110 * 100) / 1e6))
    assert estimate(calls, PRICE, batch=True)[2] == pytest.approx((1040 * 10 + 110 * 100) / 2e6)
    assert estimate(calls, None) == (1040, 110, None)


def test_about_is_the_same_for_a_run_and_its_replay(tmp_path):
    cache = ReplyCache(tmp_path / "r.sqlite")
    one, two = JudgeSession(judge(), cache), JudgeSession(judge(), cache, mode="only")
    abouts = []
    for session in (one, two):
        session.complete_all(requests(9))
        session.ledger.begin()
        session.complete_all(requests(4))
        abouts.append(session.ledger.about())
    assert abouts[0] == abouts[1]
    assert abouts[0]["calls"] == 4
    assert abouts[0]["states"] == {"ok": 4}
    assert (one.ledger.tally.sent, one.ledger.tally.replayed, two.ledger.tally.sent, two.ledger.tally.replayed) == (
        9,
        0,
        0,
        9,
    )
