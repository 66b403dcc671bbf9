"""Whose key goes where: nowhere but to its own provider, and into no file, message, log or reply."""

import io
import logging
import traceback
from pathlib import Path
from typing import Any

import pytest

from saebench.errors import UsageError
from saebench.judge import JudgeError, NoAnswer, Request
from saebench.judging.cache import ReplyCache
from saebench.judging.choose import make_judge
from saebench.judging.session import JudgeSession
from tests.judges.server import JudgeServer, Status, always
from tests.raising import raises

APIS = ("openai", "anthropic")
CANARY = "sk-canary-0123456789abcdef"
OTHER = "sk-other-fedcba9876543210"


def request(user: str = "u") -> Request:
    return Request("system", user, {"a": "boolean", "b": "boolean"}, "test@1", 64)


def own(api: str, monkeypatch: Any) -> None:
    monkeypatch.setenv(f"{api.upper()}_API_KEY", CANARY)


def said_by(server: JudgeServer) -> str:
    return "".join(str(seen.headers) + seen.path + seen.body.decode() for seen in server.seen)


@pytest.mark.parametrize("api", APIS)
def test_no_key_is_one_line_that_names_the_variable(api, monkeypatch):
    monkeypatch.delenv(f"{api.upper()}_API_KEY", raising=False)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", CANARY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", CANARY)
    with raises(JudgeError, f"set {api.upper()}_API_KEY") as caught:
        make_judge(f"{api}:m").open()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("key", [CANARY + "\u00e9", CANARY + "\nx", f"{CANARY} x"])
def test_a_broken_key_is_not_shown(api, key, monkeypatch):
    monkeypatch.setenv(f"{api.upper()}_API_KEY", key)
    with raises(JudgeError, f"{api.upper()}_API_KEY", "characters") as caught:
        make_judge(f"{api}:m").open()
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("api", APIS)
def test_another_server_gets_nothing_of_the_provider(api, monkeypatch):
    own(api, monkeypatch)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", CANARY)
    monkeypatch.setenv("OPENAI_ORG_ID", CANARY)
    monkeypatch.setenv("OPENAI_PROJECT_ID", CANARY)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Team: {CANARY}\nAuthorization: Bearer {CANARY}")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", f"X-Team: {CANARY}\nX-Api-Key: {CANARY}")
    with JudgeServer(always(True)) as server:
        judge = server.judge(api)
        JudgeSession(judge, batch=True, poll=0).complete_all([request("1"), request("2")])
        assert len(server.seen) > 4
        assert CANARY not in said_by(server)
        assert not any({"authorization", "x-api-key"} & set(seen.headers) for seen in server.seen)


@pytest.mark.parametrize("api", APIS)
def test_another_server_gets_the_key_that_is_meant_for_it(api, monkeypatch):
    own(api, monkeypatch)
    monkeypatch.setenv("SAEBENCH_JUDGE_KEY", OTHER)
    with JudgeServer(always(True)) as server:
        JudgeSession(server.judge(api), batch=True, poll=0).complete_all([request("1"), request("2")])
        assert CANARY not in said_by(server)
        header = ("authorization", f"Bearer {OTHER}") if api == "openai" else ("x-api-key", OTHER)
        assert all(seen.headers[header[0]] == header[1] for seen in server.seen)


@pytest.mark.parametrize("api", APIS)
def test_an_address_in_the_environment_is_not_followed(api, monkeypatch):
    own(api, monkeypatch)
    with JudgeServer(always(True)) as home, JudgeServer(always(True)) as stranger:
        monkeypatch.setenv(f"{api.upper()}_BASE_URL", stranger.url(api))
        home.official(api, monkeypatch).complete(request())
        assert home.asked
        assert not stranger.seen
        assert CANARY in said_by(home), "the provider itself does get its key"


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(api, code, monkeypatch):
    own(api, monkeypatch)
    with JudgeServer(always(True)) as stranger:
        away = Status(code, location=f"{stranger.root}/v1/messages")
        with JudgeServer(lambda _: away) as home:
            judge = home.official(api, monkeypatch)
            with raises(JudgeError, home.url(api), code, "redirects"):
                judge.complete(request())
        assert not stranger.seen


def test_results_that_are_said_to_lie_elsewhere_are_not_fetched(monkeypatch):
    own("anthropic", monkeypatch)
    with JudgeServer(always(True)) as stranger, JudgeServer(always(True), polls=0) as home:
        home.results_url = f"{stranger.root}/v1/messages/batches/batch_1/results"
        judge = home.official("anthropic", monkeypatch, retries=0)
        name = judge.submit({"k": request()}, "mark")
        with raises(JudgeError, "127.0.0.1", "key"):
            judge.collect(name, {"k": request()})
        assert not stranger.seen


@pytest.mark.parametrize("api", APIS)
def test_the_key_is_nowhere(api, monkeypatch, tmp_path, capfd):
    """A server that sends the key back in replies and errors, everything logged, tracebacks printed."""
    own(api, monkeypatch)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    root = logging.getLogger()
    root.addHandler(handler)
    before = root.level
    root.setLevel(logging.DEBUG)
    echo = {
        "ok": '{"a": true, "b": true}', "not json": f"you sent {CANARY}", "extra": f'{{"a": true, "b": true, "{CANARY}": 1}}',
        "400": Status(400, message=f"bad key {CANARY}"), "500": Status(500, message=f"bad key {CANARY}"),
        "401": Status(401, message=f"Incorrect API key provided: {CANARY}"),
    }  # fmt: skip
    shown = ""
    try:
        with JudgeServer(lambda asked: echo[asked.user]) as server:
            judge = server.official(api, monkeypatch, retries=1)
            session = JudgeSession(judge, ReplyCache(tmp_path / "replies.sqlite"))
            try:
                session.complete_all([request(name) for name in echo])
            except JudgeError:
                shown = traceback.format_exc()
            assert CANARY in said_by(server)
            ledger = session.ledger
            held = [vars(part) for part in (session, ledger, session.calls, session.batches)]
            everything = f"{ledger.about()}{ledger.spent()}{held}{judge!r}"
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
    assert "does not accept the key" in shown
    assert CANARY not in shown
    assert CANARY not in everything
    assert "[key]" in everything
    assert "POST" in log.getvalue(), "the SDK logged"
    assert CANARY not in log.getvalue()
    assert CANARY not in "".join(capfd.readouterr())
    for path in Path(tmp_path).rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:8000", "is no address"),
        ("ftp://host/v1", "is no address"),
        ("http://", "is no address"),
        ("http://host/v1?key=1", "is no address"),
        ("http://host:99999", "is no address"),
        ("http://host:abc", "is no address"),
        ("http://[::1", "is no address"),
        (f"http://me:{CANARY}@host:abc", "may hold no password"),
        (f"http://me:{CANARY}@host/v1", "may hold no password"),
    ],
)
def test_bad_addresses(url, words):
    with raises(UsageError, words) as caught:
        make_judge("openai:m", url)
    assert CANARY not in str(caught.value)


def test_the_provider_s_own_address_is_its_own():
    assert make_judge("openai:m", "https://api.openai.com/v1/").identity == make_judge("openai:m").identity
    assert make_judge("openai:m", "http://localhost:1/v1/").identity["url"] == "http://localhost:1/v1"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("opnai:m", "unknown judge 'opnai': did you mean 'openai'"),
        ("openai", "names no model"),
        ("openai:", "names no model"),
    ],
)
def test_bad_names(spec, words):
    with raises(UsageError, words):
        make_judge(spec)


@pytest.mark.parametrize("api", APIS)
def test_no_part_of_a_key_stays_where_an_error_is_cut(api, monkeypatch):
    """Wherever the line is cut: the key is taken out before."""
    own(api, monkeypatch)
    part = CANARY[:6]  # nothing but a key begins so
    asked = [request(str(n)) for n in range(215, 300, 3)]
    with JudgeServer(lambda a: Status(400, message="x" * int(a.user) + CANARY + " y" * 200)) as server:
        judge = server.official(api, monkeypatch)
        said = []
        for one in asked:
            with pytest.raises(NoAnswer) as caught:
                judge.complete(one)
            said.append(str(caught.value))
        name = judge.submit({one.user: one for one in asked}, "mark")
        server.polls = 0
        said += [reply.problem for reply in judge.collect(name, {one.user: one for one in asked}).values()]
    assert len(said) == 2 * len(asked)
    assert any(text.endswith("…") for text in said)
    assert not [text for text in said if part in text]


def test_a_word_too_short_for_a_key_mutilates_nothing(monkeypatch):
    monkeypatch.setenv("SAEBENCH_JUDGE_KEY", "1")
    with JudgeServer(lambda _: '{"a": true, "b": 1}') as server:
        reply = server.judge("openai").complete(request())
        assert server.seen[-1].headers["authorization"] == "Bearer 1"
    assert reply.text == '{"a": true, "b": 1}'
