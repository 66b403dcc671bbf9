"""How replies were sampled is kept with them, recorded, and taken up by a run that resumes."""

import pytest

from saebench.judge import Reply
from saebench.judging.cache import ReplyCache
from saebench.judging.choose import make_judge
from saebench.judging.session import JudgeSession
from tests.judges.asking import judge, plain, requests
from tests.judges.server import JudgeServer, always


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
