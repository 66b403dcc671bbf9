"""A run killed in the middle asks only what is missing."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from saebench.judging.cache import ReplyCache
from saebench.judging.choose import make_judge
from saebench.judging.session import JudgeSession
from tests.conftest import REPOSITORY
from tests.judges.asking import requests
from tests.judges.server import Coin, JudgeServer

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
