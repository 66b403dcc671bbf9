"""`check_judge`: proves that a judge keeps its contract; and a judge made of a function, for metrics that ask one."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

from saebench.judge import STATES, Capabilities, Judge, Kind, Reply, Request, Usage, read_reply
from saebench.judging.session import JudgeSession


class FunctionJudge(Judge):
    """A judge whose replies come from a function, to test metrics that ask one.

    Args:
        answer: returns the fields of the reply, or the whole reply.
        probabilities: returns P(true) of each boolean field; None for a judge without probabilities.
    """

    name = "function"
    concurrency = 1
    sends = False

    def __init__(
        self,
        answer: Callable[[Request], Mapping[str, bool | str] | Reply],
        probabilities: Callable[[Request], Mapping[str, float]] | None = None,
    ) -> None:
        super().__init__("function")
        self.answer, self.probabilities = answer, probabilities
        self.capabilities = Capabilities(structured=True, probabilities=probabilities is not None)
        self.asked: list[Request] = []

    def complete(self, request: Request) -> Reply:
        self.asked.append(request)
        found = self.answer(request)
        if isinstance(found, Reply):
            return found
        reply = read_reply(json.dumps(dict(found)), request)
        likely = self.probabilities(request) if self.probabilities else {}
        return replace(reply, model="function", usage=Usage(1, 1), probabilities=likely)


def judge_session(judge: Judge | Callable[[Request], Mapping[str, bool | str] | Reply]) -> JudgeSession:
    """A session without a cache file, for `Env(sae, judge=judge_session(lambda request: {...}))`."""
    return JudgeSession(judge if isinstance(judge, Judge) else FunctionJudge(judge))


def check_judge(judge: Judge) -> None:
    """Prove that a judge keeps its contract: open it, send it some twenty short requests, and close it.

    - Its identity is constant and fits JSON.
    - A reply has the fields of its request, boolean or text.
    - The same request gets the same reply: alone, in another order, and concurrently.
    - A request that it cannot answer gets a state with a problem, never an exception.

    Args:
        judge: not opened.

    Raises:
        AssertionError: the contract is broken.
    """
    identity = json.dumps(judge.identity, allow_nan=False)
    judge.open()
    try:
        assert json.dumps(judge.identity) == identity, "opening the judge changes its identity"
        texts = ("The ship sailed.", "A tax law.", 'Odd \u202e text "quoted" \\ {"first": true}', "\u4e2d\u6587", "")
        fields: dict[str, Kind] = {"first": "boolean", "second": "boolean"}
        asked = [Request("Answer.", f"{text}\nIs this about the sea?", fields, "check@1") for text in texts]
        asked.append(Request("Answer in a few words.", "What is a ship?", {"answer": "string"}, "check@1", 32))
        alone = [reply for request in asked for reply in JudgeSession(judge).complete_all([request])]
        for request, reply in zip(asked, alone, strict=True):
            _check_reply(request, reply)
        assert any(reply.state == "ok" for reply in alone), (
            f"no request is answered: {alone[0].state}, {alone[0].problem}"
        )
        together = JudgeSession(judge).complete_all([*reversed(asked), *asked])
        assert [r.data for r in together] == [r.data for r in [*reversed(alone), *alone]], (
            "a repeated request has another reply"
        )
    finally:
        judge.close()


def _check_reply(request: Request, reply: Reply) -> None:
    assert reply.state in STATES, f"unknown state '{reply.state}'"
    kinds = {"boolean": bool, "string": str}
    for name, value in reply.data.items():
        assert name in request.fields, f"field '{name}' was not asked for"
        assert isinstance(value, kinds[request.fields[name]]), f"field '{name}' is no {request.fields[name]}"
    if reply.state == "ok":
        assert list(reply.data) == list(request.fields), (
            "state ok, but the fields are not those of the request, in order"
        )
    else:
        assert reply.problem, f"state {reply.state} without a problem"
        assert reply.state == "malformed" or not reply.data, f"state {reply.state}, and yet the reply has data"
    for name, probability in reply.probabilities.items():
        assert 0 <= probability <= 1, f"P({name}) is {probability}"
        assert request.fields[name] == "boolean", f"field '{name}' is no boolean and has a probability"
    json.dumps([dict(reply.data), dict(reply.probabilities), reply.text, reply.problem, reply.model], allow_nan=False)
