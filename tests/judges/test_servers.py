"""Servers of one's own, as they are: without a list of models, with thoughts, with odd numbers, without an end."""

import gzip
import json
import math
import time
from functools import partial
from typing import Any

import pytest
from saebench.plugins.judges.chat import probabilities
from saebench.plugins.judges.vendor import reason_in

from saebench.errors import UsageError
from saebench.judge import JudgeError, NoAnswer, Reply, Request, read_reply
from saebench.judging.cache import ReplyCache
from saebench.judging.choose import make_judge
from saebench.judging.session import JudgeSession
from saebench.testing import judge_session
from tests.judges.server import JudgeServer, Raw, Said, Status, Truncated, always
from tests.raising import raises

APIS = ("openai", "anthropic")
session = partial(JudgeSession, pause=0.01)


def request(user: str = "u") -> Request:
    return Request("system", user, {"a": "boolean", "b": "boolean"}, "test@1", 64)


class Hears:
    """A listener that collects messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def begin(self, *_: Any) -> None: ...

    advance = begin

    def end(self) -> None: ...


# --- the list of models is advice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "listing", [Status(500), Status(400), Status(403), Status(405), Status(307, location="/x"), Raw(b"[]")]
)
def test_a_server_that_lists_no_models_is_called(api, listing):
    with JudgeServer(always(True)) as server:
        server.listing = listing
        assert server.judge(api).complete(request()).state == "ok"


@pytest.mark.parametrize("api", APIS)
def test_a_model_that_is_not_listed_is_called_with_a_warning(api):
    """`transformers serve` lists the models of its cache, and loads others when they are called."""
    hears = Hears()
    with JudgeServer(always(True), models=("gpt-big", "gpt-small")) as server:
        judge = make_judge(f"{api}:gpt-smal", server.url(api))
        [reply] = JudgeSession(judge, listener=hears).complete_all([request()])
        assert reply.state == "ok"
        [line] = hears.messages
        assert "'gpt-smal'" in line
        assert "'gpt-small'" in line
        server.answer = lambda _: Status(404, message="no such model")
        with raises(JudgeError, "'gpt-smal'", "no such model", "'gpt-small'"):
            judge.complete(request("2"))


@pytest.mark.parametrize("api", APIS)
def test_a_server_that_wants_a_key_for_its_list_is_not_called(api, monkeypatch):
    monkeypatch.delenv("SAEBENCH_JUDGE_KEY", raising=False)
    with JudgeServer(always(True)) as server:
        server.listing = Status(401)
        with raises(JudgeError, "SAEBENCH_JUDGE_KEY"):
            server.judge(api)


# --- reasons ------------------------------------------------------------------------------------------------------------

REASON = "the model needs 80 GB and the card has 24"


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "body",
    [{"detail": REASON}, {"detail": [{"loc": ["body"], "msg": REASON, "input": "secret"}]}, {"error": REASON},
     {"error": {"detail": REASON}}, {"message": REASON}, f"<html><h1>{REASON}</h1></html>", REASON],
)  # fmt: skip
@pytest.mark.parametrize("code", [200, 400, 500])
def test_the_servers_own_reason_reaches_the_user(api, body, code):
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    if code == 200 and isinstance(body, str):
        pytest.skip("no JSON with status 200 is another error")
    with JudgeServer(lambda _: Raw(data, code=code)) as server:
        [reply] = session(server.judge(api, retries=0)).complete_all([request()])
    assert reply.state == "failed"
    assert REASON in reply.problem
    assert "secret" not in reply.problem


def test_a_reason_has_bounds():
    deep: Any = "x"
    for _ in range(5000):
        deep = {"error": deep}
    assert reason_in(deep) == ""
    assert reason_in({"detail": [{"msg": "m", "loc": 1}] * 10**5}).count("m") == 5


# --- thoughts -----------------------------------------------------------------------------------------------------------

ANSWER = '{"a": true, "b": false}'


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "text",
    [f"<think>Is it {{a}}?</think>\n\n{ANSWER}", f"It may be.</think>{ANSWER}", f"<think></think>```json\n{ANSWER}\n```",
     f"<THINKING>hm</THINKING> {ANSWER}", f"[THINK]hm[/THINK]{ANSWER}"],
)  # fmt: skip
def test_thoughts_in_the_text_are_read_past(api, text):
    with JudgeServer(lambda _: text) as server:
        reply = server.judge(api).complete(request())
    assert (reply.state, dict(reply.data)) == ("ok", {"a": True, "b": False})
    assert "think" not in reply.text.lower()


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize(
    ("content", "apart", "state"),
    [(ANSWER, "it may be", "ok"), ("", ANSWER, "ok"), (None, f"<think>hm</think>{ANSWER}", "ok"), ("", "it may be", "malformed"),
     ("<think>no end", "", "malformed")],
)  # fmt: skip
def test_thoughts_in_a_field_of_their_own(name, content, apart, state):
    message = {"role": "assistant", "content": content, name: apart}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}  # fmt: skip
    with JudgeServer(lambda _: Raw(json.dumps(body).encode())) as server:
        reply = server.judge("openai").complete(request())
    assert reply.state == state
    assert (reply.problem == "thoughts without an answer") == (state == "malformed")


def test_an_explanation_may_speak_of_tags():
    text = '{"why": "text after </think> and <think>"}'
    with JudgeServer(lambda _: text) as server:
        reply = server.judge("openai").complete(Request("s", "u", {"why": "string"}, "p@1"))
    assert reply.data == {"why": "text after </think> and <think>"}


@pytest.mark.parametrize("api", APIS)
def test_tokens_for_thoughts_are_reserved_and_recorded(api):
    with JudgeServer(always(True)) as server:
        judge = make_judge(f"{api}:test-model", server.url(api), 1000)
        plain = make_judge(f"{api}:test-model", server.url(api))
        [reply] = JudgeSession(judge).complete_all([request()])
        asked = server.asked[-1]
    assert asked.max_tokens == 64 + 1000
    assert not {"reasoning_effort", "thinking"} & set(asked.body)
    assert judge.headroom == 1000
    assert reply.sampling is not None
    assert judge.identity == {**plain.identity, "thinking": 1000}
    assert "thinking" not in plain.identity
    replay = make_judge(f"replay:{api}:test-model", server.url(api), 1000)
    assert replay.identity == judge.identity


@pytest.mark.parametrize(("spec", "url", "tokens"), [("openai:m", None, 5), ("openai:m", "http://h/v1", -1)])
def test_thoughts_are_for_servers_of_ones_own(spec, url, tokens):
    with raises(UsageError, "--judge-thinking"):
        make_judge(spec, url, tokens)


# --- parameters that a server ignores -----------------------------------------------------------------------------------


def test_parameters_that_the_first_reply_shows_ignored_are_not_recorded():
    """The server takes everything, thinks all the same, gives no log-probabilities and writes prose."""
    with JudgeServer(lambda asked: "<think>hm</think>prose") as server:
        judge = server.judge("openai")
        replies = JudgeSession(judge).complete_all([request(str(i)) for i in range(4)])
        assert [reply.sampling for reply in replies] == [{"temperature": 0}] * 4
        assert set(server.asked[0].body) - set(server.asked[-1].body) == {
            "reasoning_effort", "logprobs", "top_logprobs", "response_format"
        }  # fmt: skip
        assert not judge.capabilities.structured
        assert not judge.capabilities.probabilities
    with JudgeServer(lambda asked: "<think>hm</think>prose") as server:
        [reply] = JudgeSession(server.judge("anthropic")).complete_all([request()])
        assert reply.sampling == {"thinking": "unsaid"}


# --- odd numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("count", ["many", -5, 1.5, None, [1], 10**30])
def test_a_usage_that_is_no_count_is_unknown(api, count):
    with JudgeServer(always(True)) as server:
        server.usage = count
        judge = session(server.judge(api))
        [reply] = judge.complete_all([request()])
    assert (reply.state, reply.usage) == ("ok", None)
    assert judge.ledger.about()["input_tokens"] == 0


def test_a_third_partys_reply_ends_no_run():
    odd = [Reply("ok", {"a": True, "b": True}, usage="many"), "a string", Reply("ok", {"a": True, "b": True}, probabilities={"a": math.nan})]  # type: ignore[arg-type] # fmt: skip # noqa: E501
    replies = judge_session(lambda asked: odd[int(asked.user)]).complete_all([request(str(i)) for i in range(3)])  # type: ignore[arg-type,return-value]
    assert [reply.state for reply in replies] in (["failed", "failed", "ok"], ["ok", "failed", "ok"])
    assert replies[2].probabilities == {}


# --- responses without an end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("kind", ["headers", "body", "endless"])
def test_a_response_without_an_end_is_given_up(api, kind, monkeypatch):
    monkeypatch.setattr("saebench.plugins.judges.vendor.REPLY_BYTES", 2**20)
    with JudgeServer(lambda _: Raw(b"{", drip=kind)) as server:
        judge = server.judge(api, timeout=0.3)
        begin = time.monotonic()
        with pytest.raises(NoAnswer) as caught:
            judge.complete(request())
        assert time.monotonic() - begin < 3
        assert caught.value.billed


@pytest.mark.parametrize("api", APIS)
def test_a_small_compressed_body_that_grows_is_given_up(api, monkeypatch):
    monkeypatch.setattr("saebench.plugins.judges.vendor.REPLY_BYTES", 2**20)
    bomb = gzip.compress(b'{"x": "' + b" " * 2**26)
    assert len(bomb) < 2**17
    with JudgeServer(lambda _: Raw(bomb, encoding="gzip")) as server:
        with pytest.raises(NoAnswer) as caught:
            server.judge(api).complete(request())
        assert "1,048,576 bytes" in str(caught.value)
        assert caught.value.wait is None, "no second attempt"
        assert server.seen[-1].headers["accept-encoding"] == "identity"
        server.answer = lambda _: Raw(b"x", encoding="br")
        with pytest.raises(NoAnswer) as caught:
            server.judge(api).complete(request())
        assert "'br'" in str(caught.value)


@pytest.mark.parametrize("api", APIS)
def test_a_compressed_reply_is_read(api):
    with JudgeServer(always(True)) as server:
        server.compress = True
        assert server.judge(api).complete(request()).state == "ok"


# --- probabilities of a list that lacks a word ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alternatives", "expected"),
    [
        ({" true": 0.9, " 1": 0.06, " yes": 0.03}, 0.9 / 0.93),  # false is not listed: at most .03
        ({" false": 0.9, " 1": 0.06, " yes": 0.03}, 0.03 / 0.93),
        ({" True": 0.5, " TRUE": 0.1, " False": 0.2}, 0.75),
        ({" true": 0.02, " 1": 0.9}, None),  # the rarest listed word bounds nothing
        ({" true": 1.0}, None),
        ({" yes": 0.6, " no": 0.4}, None),
    ],
)
def test_a_word_that_is_not_listed_is_bounded(alternatives, expected):
    text = '{"a": true}'
    listed = {token: math.log(p) for token, p in alternatives.items()}
    tokens: list[Any] = [('{"a":', {}), (" true", listed), ("}", {})]
    found = probabilities(text, tokens, read_reply(text, Request("s", "u", {"a": "boolean"}, "p@1")))
    assert found == ({} if expected is None else {"a": pytest.approx(expected, rel=1e-12)})


def test_probabilities_behind_thoughts():
    """llama.cpp's tokens include the thoughts; its list precedes the grammar and lacks `false`."""
    tokens = tuple(
        (t, {t: -0.1, "zz": -4.0}) for t in ("<think>", "hm", "</think>\n", '{"a":', " true", ', "b":', " true", "}")
    )
    with JudgeServer(lambda _: Said("".join(t for t, _ in tokens), tokens)) as server:
        [reply] = JudgeSession(server.judge("openai")).complete_all([request()])
        assert server.asked[0].body["top_logprobs"] == 20
    p = math.exp(-0.1) / (math.exp(-0.1) + math.exp(-4))
    assert reply.probabilities == {"a": pytest.approx(p), "b": pytest.approx(p)}


@pytest.mark.parametrize("most", [20, 5])
def test_fewer_alternatives_where_twenty_are_refused(most):
    def answer(asked: Any) -> Any:
        if asked.body.get("top_logprobs", 0) > most:
            return Status(400, message="top_logprobs must be at most 5", param="top_logprobs")
        return Said('{"a": true, "b": true}', (('{"a": true, "b": true}', {'{"a": true, "b": true}': -0.1}),))

    with JudgeServer(answer) as server:
        [reply] = JudgeSession(server.judge("openai")).complete_all([request()])
    assert reply.sampling is not None
    assert reply.sampling["logprobs"] == most


def test_the_old_name_of_five_alternatives_is_resumed(tmp_path):
    cache, old = ReplyCache(tmp_path / "r.sqlite"), {"logprobs": True, "temperature": 0}
    with JudgeServer(always(True)) as server:
        judge = server.judge("openai")
        one = request("1")
        cache.put(judge.identity, [(one.key(judge.identity), one, Reply("ok", {"a": True, "b": True}, sampling=old))])
        JudgeSession(judge, cache).complete_all([one, request("2")])
        assert server.asked[-1].body["top_logprobs"] == 5


# --- keys in addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["http://h/v1?key=KEY", "h:8000?key=KEY", "http://h:abc?key=KEY", "http://[::1?key=KEY", "http://h/v1#KEY", "KEY",
     "http://h/v1;key=KEY", "http://h/v1&key=KEY", "http:/h?KEY", "http://h/v1 KEY"],
)  # fmt: skip
def test_a_key_in_an_address_is_not_shown(url):
    with raises(UsageError, "--judge-url") as caught:
        make_judge("openai:m", url.replace("KEY", "sk-canary-0123456789"))
    assert "canary" not in str(caught.value)


def test_a_truncated_reply_of_thoughts_names_them():
    with JudgeServer(lambda _: Truncated("<think>hm, well")) as server:
        reply = server.judge("openai").complete(request())
    assert reply.state == "truncated"
    assert "thoughts" in reply.problem
