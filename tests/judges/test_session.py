"""Replay, resume, limits and batches."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from saebench.errors import SaebenchError, UsageError
from saebench.judge import BatchLost, Calls, JudgeError, Reply, Request, Usage, make_judge
from saebench.judge_cache import ReplyCache
from saebench.judge_session import JudgeSession
from saebench.prices import Price, cost_bound, estimate, find_price
from saebench.testing import FunctionJudge
from tests.conftest import REPOSITORY
from tests.judges.server import Coin, Expired, JudgeServer, Status, always

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
    assert session.tally.replayed == 8


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


def test_asking_again_leaves_what_was_kept(tmp_path):
    """A record must stay replayable: neither a later failure nor another opinion takes a reply's place."""
    cache = ReplyCache(tmp_path / "replies.sqlite")
    first = JudgeSession(judge(), cache).complete_all(requests(3))
    for answer in (lambda r: Reply("failed", problem="x"), lambda r: {"a": False, "b": False}):
        other = JudgeSession(FunctionJudge(answer), cache, mode="live").complete_all(requests(3))
        assert other != first
        assert JudgeSession(judge(), cache, mode="only").complete_all(requests(3)) == first


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
from saebench.judge_cache import ReplyCache
from saebench.judge_session import JudgeSession
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
        out, error = child(api, server, cache, "one by one").communicate(timeout=60)
        assert out, error
        again = {asked.user for asked in server.asked}
        assert len(server.asked) == len(again) == 60 - len(kept)
        assert not again & kept
        assert before - kept <= again
        assert len(before - kept) <= 8
    with JudgeServer(coin) as server:
        whole = JudgeSession(server.judge(api)).complete_all(requests(60))
    assert out.strip() == str([dict(r.data) for r in whole])


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
        out, error = child(api, server, cache, "batch").communicate(timeout=60)
        assert out, error
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
        session = JudgeSession(server.judge(api), cache, batch=True, poll=0)
        replies = session.complete_all(requests(8))
        assert [r.state for r in replies] == ["ok", "ok", "failed", "ok", "failed", "malformed", "ok", "ok"]
        assert "expired" in replies[2].problem
        assert "odd" in replies[4].problem
        assert len(server.batches["batch_1"].items) == 7, "the first call goes alone, to see that it works"
        alone = [JudgeSession(server.judge(api)).complete_all([r])[0].data for r in requests(2)]
        assert [replies[0].data, replies[1].data] == alone, (
            "in the order of the requests, though they came back in another"
        )
        JudgeSession(server.judge(api), cache, batch=True, poll=0).complete_all(requests(8))
        assert len(server.batches["batch_2"].items) == 1, "the two that failed: one alone, one in a batch"


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
def test_a_batch_that_is_gone_is_forgotten(api, tmp_path):
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(always(True)) as server:
        judge = server.judge(api)
        keys = [r.key(judge.identity) for r in requests(3)]
        cache.open_batch(judge.identity, "batch_77", keys)
        with pytest.raises(BatchLost, match="batch batch_77 is no longer at"):
            JudgeSession(judge, cache, batch=True, poll=0).complete_all(requests(3))
        assert len(JudgeSession(judge, cache, batch=True, poll=0).complete_all(requests(3))) == 3


def test_somebody_else_s_batch_is_left_alone(tmp_path):
    cache = ReplyCache(tmp_path / "r.sqlite")
    cache.open_batch({"provider": "other"}, "b", ["k"])
    with JudgeServer(always(True)) as server:
        JudgeSession(server.judge("openai"), cache, batch=True, poll=0).complete_all(requests(2))
    assert cache.open_batches({"provider": "other"}) == {"b": ["k"]}


# --- what it costs ----------------------------------------------------------------------------------------------------

PRICE = Price(10.0, 100.0, 0.5, "2026-01-01")


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("limit", [0.0, 0.05])
def test_no_limit_is_passed(limit, batch, tmp_path):
    """What was really spent is counted by the server; it never passes the limit, and stops close to it."""
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(always(True), polls=0) as server:
        session = JudgeSession(server.judge("openai"), cache, price=PRICE, max_cost=limit, batch=batch, poll=0)
        with pytest.raises(
            JudgeError, match=f"stopped before passing --max-cost {limit:g}: .* what was answered is kept"
        ):
            session.complete_all(requests(200))
        singles = 1 if batch else len(server.asked)
        usages = [r.usage for r in session._answers.values() if r.usage]
        costs = [PRICE.cost(u.input_tokens, u.output_tokens) for u in usages]
        spent = sum(costs[:singles]) + 0.5 * sum(costs[singles:])
        assert spent == pytest.approx(session.tally.cost)
        assert spent <= limit
        assert len(usages) == len(server.asked)
        bound = cost_bound(PRICE, requests(1)[0]) * (0.5 if batch else 1)
        assert limit - spent < 2 * bound + 1e-9, "it does not stop long before"
        more = JudgeSession(server.judge("openai"), cache, price=PRICE, max_cost=100)
        assert len(more.complete_all(requests(200))) == 200
        assert len(server.asked) == 200, "the next run asks the rest"


def test_a_call_without_a_count_is_taken_at_its_most():
    speaker = FunctionJudge(lambda r: Reply("failed", problem="timeout"))
    session = JudgeSession(speaker, price=PRICE)
    session.complete_all(requests(2))
    assert session.tally.cost == pytest.approx(2 * cost_bound(PRICE, requests(1)[0]))


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
        session.begin()
        session.complete_all(requests(4))
        abouts.append(session.about())
    assert abouts[0] == abouts[1]
    assert abouts[0]["calls"] == 4
    assert abouts[0]["states"] == {"ok": 4}
    assert (one.tally.sent, one.tally.replayed, two.tally.sent, two.tally.replayed) == (9, 0, 0, 9)
