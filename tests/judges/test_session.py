"""The file of replies: replay, keys, and what a run keeps and asks again."""

import sqlite3

import pytest

from saebench.errors import SaebenchError
from saebench.judge import JudgeError, Reply, Request, Usage
from saebench.judging.cache import ReplyCache
from saebench.judging.choose import make_judge
from saebench.judging.session import JudgeSession
from saebench.testing import FunctionJudge
from tests.judges.asking import Killed, judge, requests
from tests.judges.server import Coin, JudgeServer
from tests.raising import raises


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


def test_a_miss_in_a_replay_is_an_error(tmp_path):
    session = JudgeSession(judge(), ReplyCache(tmp_path / "r.sqlite"), mode="only")
    with raises(JudgeError, "3 of 3", "r.sqlite", "p@1"):
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
    with raises(JudgeError, "1 of 6", "r.sqlite"):
        session.complete_all(requests(6))


def test_a_file_that_is_no_cache(tmp_path):
    (tmp_path / "r.sqlite").write_text("not a database, but long enough to look at" * 10)
    with raises(SaebenchError, "r.sqlite", "--judge-cache") as caught:
        ReplyCache(tmp_path / "r.sqlite")
    assert len(str(caught.value).splitlines()) == 1


def test_the_file_can_be_read_by_anybody(tmp_path):
    JudgeSession(judge(), ReplyCache(tmp_path / "r.sqlite")).complete_all(requests(2))
    with sqlite3.connect(tmp_path / "r.sqlite") as db:
        rows = db.execute(
            "SELECT prompt, state, model, input_tokens, json_extract(request, '$.user') FROM replies ORDER BY 5"
        ).fetchall()
    assert rows == [("p@1", "ok", "function", 1, "user 0"), ("p@1", "ok", "function", 1, "user 1")]


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
