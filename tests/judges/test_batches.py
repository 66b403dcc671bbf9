"""Batches: what they lack, and what becomes of them when a run ends early."""

from dataclasses import replace
from typing import Any

import pytest

from saebench.judge import BatchLost, JudgeError
from saebench.judging.cache import HandedOver, ReplyCache
from saebench.judging.prices import cost_bound
from saebench.judging.session import JudgeSession
from tests.judges.asking import APIS, PRICE, Killed, begun_batch, dies, plain, requests
from tests.judges.server import Coin, Expired, JudgeServer, Status, always
from tests.raising import raises


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
        with raises(JudgeError, 404, "--judge-batch"):
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
        with raises(BatchLost, "batch_77"):
            JudgeSession(judge, cache, batch=True, poll=0).complete_all(requests(3))
        assert len(JudgeSession(judge, cache, batch=True, poll=0).complete_all(requests(3))) == 3


def test_somebody_else_s_batch_is_left_alone(tmp_path):
    cache = ReplyCache(tmp_path / "r.sqlite")
    [one] = requests(1)
    cache.open_batch({"provider": "other"}, "b", {"k": one}, {"x": 1})
    with JudgeServer(always(True)) as server:
        JudgeSession(server.judge("openai"), cache, batch=True, poll=0).complete_all(requests(2))
    assert cache.open_batches({"provider": "other"}) == [HandedOver("b", None, {"k": one}, {"x": 1})]


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
        with raises(JudgeError, "batch", "may have been taken"):
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
