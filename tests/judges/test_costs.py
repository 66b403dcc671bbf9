"""What calls cost: limits, prices and estimates."""

from typing import Any

import pytest

from saebench.errors import UsageError
from saebench.judge import Calls, JudgeError, Reply
from saebench.judging.cache import ReplyCache
from saebench.judging.choose import make_judge
from saebench.judging.prices import Price, cost_bound, estimate, find_price
from saebench.judging.session import JudgeSession
from saebench.testing import FunctionJudge
from tests.judges.asking import APIS, PRICE, judge, requests
from tests.judges.server import CutBody, Hang, JudgeServer, Status, always
from tests.raising import raises


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("limit", [0.0, 0.025])
def test_no_limit_is_passed(limit, batch, tmp_path):
    """What was really spent is counted by the server; it never passes the limit, and stops close to it."""
    cache = ReplyCache(tmp_path / "r.sqlite")
    with JudgeServer(always(True), polls=0) as server:
        session = JudgeSession(server.judge("openai"), cache, price=PRICE, max_cost=limit, batch=batch, poll=0)
        with raises(JudgeError, f"--max-cost {limit:g}", "kept"):
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
            with raises(JudgeError, "--max-cost"):
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
        with raises(UsageError, "p.toml"):
            find_price(make_judge("openai:m"))


def test_an_estimate():
    calls = [Calls("p@1", 10, 402, 5), Calls("q@1", 3, 40, 20)]
    assert estimate(calls, PRICE) == (10 * 101 + 30, 110, pytest.approx((1040 * 10 + 110 * 100) / 1e6))
    assert estimate(calls, PRICE, batch=True)[2] == pytest.approx((1040 * 10 + 110 * 100) / 2e6)
    assert estimate(calls, None) == (1040, 110, None)
