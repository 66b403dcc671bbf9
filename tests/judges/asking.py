"""Requests, judges and faults that the tests of judging share."""

from functools import partial
from typing import Any

import pytest

from saebench.judge import Reply, Request
from saebench.judging.cache import ReplyCache
from saebench.judging.prices import Price
from saebench.judging.session import JudgeSession
from saebench.testing import FunctionJudge
from tests.judges.server import Hang, JudgeServer, Status

APIS = ("openai", "anthropic")
PRICE = Price(10.0, 100.0, 0.5, "2026-01-01")
# A session that repeats failed calls at once.
session = partial(JudgeSession, pause=0.01)


def request(user: str = "u", **fields: str) -> Request:
    """One request, of two boolean fields where none are given."""
    return Request("system", user, fields or {"a": "boolean", "b": "boolean"}, "test@1", 64)  # type: ignore[arg-type]


def requests(n: int, **changes: Any) -> list[Request]:
    """`n` requests that differ in their user message, "user 0" …"""
    return [Request(**{"system": "s", "user": f"user {i}", "fields": {"a": "boolean", "b": "boolean"}, "prompt": "p@1",
                       "max_tokens": 20, **changes}) for i in range(n)]  # fmt: skip


def judge() -> FunctionJudge:
    """A judge that answers by the user message, and needs no server."""
    return FunctionJudge(lambda r: {"a": len(r.user) % 2 == 0, "b": "3" in r.user})


def ask(api: str, answer: object, *requests: Request) -> list[Reply]:
    """The replies of a server that answers with `answer`."""
    with JudgeServer(answer) as server:  # type: ignore[arg-type]
        return session(server.judge(api)).complete_all(requests or [request()])


def patience(fault: object) -> float:
    """Seconds an attempt may take: few only where the server is to be too slow."""
    return 0.5 if isinstance(fault, Hang) else 5.0


def plain(asked: Any) -> Any:
    """Answer as a server without temperature and log-probabilities."""
    for name in ("temperature", "logprobs"):
        if name in asked.body:
            return Status(400, param=name)
    return dict.fromkeys(asked.fields, True)


class Killed(BaseException):
    """Raised where the process ends, in tests that stay in their own."""


def dies(*_: Any) -> Any:
    raise Killed


def begun_batch(server: JudgeServer, api: str, cache: ReplyCache, monkeypatch: Any) -> None:
    """Hand over a batch of four in a run that is then killed; the batch is finished when the next run asks."""
    server.polls = 10**9
    with monkeypatch.context() as patch:
        patch.setattr("saebench.judging.batches.time.sleep", dies)
        with pytest.raises(Killed):
            JudgeSession(server.judge(api), cache, batch=True).complete_all(requests(5))
    server.polls = 0
