"""What a judge is asked, what it answers, and what a judge is: the contract of the hook `saebench_judges`.

A metric that asks a judge lists its prompts in `asks`, makes `Request`s in `scores` and gives all of them to
`env.judge.complete_all`, which replays, limits, retries and counts (judging/session.py).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from saebench.errors import SaebenchError

State = Literal["ok", "refused", "truncated", "malformed", "failed"]
STATES: tuple[State, ...] = ("ok", "refused", "truncated", "malformed", "failed")
Kind = Literal["boolean", "string"]


class JudgeError(SaebenchError):
    """The judge cannot be asked at all (no key, unknown model, a limit reached): the run stops asking."""


class BatchLost(JudgeError):
    """A batch that was handed over will never have replies, or was certainly not taken; it is forgotten."""


class NoAnswer(SaebenchError):
    """One attempt got no answer. The session counts what it may have cost, and makes another where that may help.

    Attributes:
        wait: seconds that the server asks to wait; 0 where it does not say; None: another attempt will not do better.
        billed: whether it may have been charged for: it was sent, and nobody knows whether it was answered.
    """

    def __init__(self, problem: str, wait: float | None = None, billed: bool = False) -> None:
        super().__init__(problem)
        self.wait, self.billed = wait, billed


@dataclass(frozen=True)
class Request:
    """One question to a judge. Two requests that are equal get one answer.

    Attributes:
        system, user: the two messages.
        fields: the reply is one JSON object with exactly these keys, in this order, each "boolean" or "string".
        prompt: name and version of the prompt it was made with, like `detection@1`.
        max_tokens: the longest reply.
        repeat: tells apart what is asked several times on purpose.
    """

    system: str
    user: str
    fields: Mapping[str, Kind]
    prompt: str
    max_tokens: int = 256
    repeat: int = 0

    def schema(self) -> dict[str, Any]:
        """The reply's JSON schema, in the subset that providers enforce."""
        return {
            "type": "object",
            "properties": {name: {"type": kind} for name, kind in self.fields.items()},
            "required": list(self.fields),
            "additionalProperties": False,
        }

    def key(self, identity: Mapping[str, Any]) -> str:
        """Hash of everything that is asked of the judge with this identity: provider, address, model and the request."""
        body = {"judge": dict(identity), **asdict(self), "fields": list(self.fields.items())}
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Usage:
    """Tokens that were counted by the provider."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Reply:
    """What came back. Nothing is made up: what is not in `data` was not answered.

    Attributes:
        state: `ok`: an object with exactly the fields asked for. `refused`: the model or its provider declined.
            `truncated`: cut at max_tokens. `malformed`: not JSON, or fields missing, unknown, repeated or of another type.
            `failed`: no answer at all (timeouts, errors of the server, an expired batch).
        data: the fields that were answered as asked; those left of a malformed reply too, so that it can be judged field by
            field. Empty unless `ok` or `malformed`.
        text: the reply as it came.
        problem: why it is not `ok`; empty if it is.
        model: what the provider says answered.
        usage: None where the provider does not say, and it may have charged; none at all (0, 0) for an error that costs nothing.
        probabilities: P(true) of each boolean field, between true and false, where the provider gives log-probabilities.
        sampling: what was sent beside the text to say how to answer (temperature, thinking, a schema ...), where that depends
            on what the provider takes. It is found out by asking, so it cannot be in the request's key: a replay must find the
            reply without knowing it. It is kept with the reply instead.
    """

    state: State
    data: Mapping[str, bool | str] = field(default_factory=dict)
    text: str = ""
    problem: str = ""
    model: str | None = None
    usage: Usage | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    sampling: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Capabilities:
    """What a judge's provider offers.

    Attributes:
        structured: it enforces the fields asked for; otherwise they are only asked for and checked.
        probabilities: it gives log-probabilities, so that boolean answers can be ordered.
        temperature: it can be asked to be greedy (0 is sent where it can).
        batch: it takes whole batches at half the price, to be collected later.
    """

    structured: bool = False
    probabilities: bool = False
    temperature: bool = False
    batch: bool = False


@dataclass(frozen=True)
class Calls:
    """How many calls of one prompt a metric will make for one SAE, for `--dry-run`: see `Metric.judge_calls`.

    Attributes:
        prompt: as in `Request`.
        count: how many calls.
        input_characters: of system and user text together, a call.
        output_tokens: expected, a call.
    """

    prompt: str
    count: int
    input_characters: int
    output_tokens: int


class Judge:
    """Base class of judges: one instance answers for one model.

    Class attributes:
        name: the provider, as in `--judge name:model`.
        concurrency: how many calls may be under way at once.
        retries: how many more attempts a call gets after one without an answer.
        sends: whether its calls leave the process (and may cost money).
        replays: whether it only repeats what the cache holds.

    Attributes:
        capabilities: may shrink when the provider says that it does not know what it was asked for.
    """

    name: ClassVar[str]
    concurrency: ClassVar[int] = 8
    retries: int = 5
    sends: ClassVar[bool] = True
    replays: ClassVar[bool] = False
    capabilities = Capabilities()

    def __init__(self, model: str, url: str | None = None) -> None:
        """Only notes what is asked for: reads no key, loads nothing, so that a recorded run can be replayed without either.

        Args:
            model: the provider's name of it.
            url: another address that speaks the provider's protocol.
        """
        self.model, self.url = model, url

    @property
    def identity(self) -> dict[str, Any]:
        """What could change an answer: part of every request's key and of the record's fingerprint. Never a key or a password."""
        return {"provider": self.name, "model": self.model, "url": self.url}

    @property
    def headroom(self) -> int:
        """Tokens that a reply may cost beyond its request's max_tokens, by a model that thinks first."""
        return 0

    @property
    def sampling(self) -> dict[str, Any]:
        """`Reply.sampling` of a call that is made now; empty where there is nothing to find out."""
        return {}

    def resume(self, sampling: Mapping[str, Any]) -> None:
        """Ask from now on as was asked for replies with this `sampling`: called when open, with no call under way."""

    def open(self) -> None:
        """Make ready to answer: read the key, reach the server, find the model. Costs nothing.

        Raises:
            JudgeError, UsageError: it will not be able to answer; names what to do (the variable with the key).
        """

    def complete(self, request: Request) -> Reply:
        """Answer one request; called from several threads at once unless `concurrency` is 1.

        It makes one attempt. Whatever else goes wrong with this one request is a state of the reply.

        Raises:
            NoAnswer: the attempt got none.
            JudgeError: no request can be answered (the key is not accepted, the model is gone).
        """
        raise NotImplementedError(f"judge '{self.name}' must define complete")

    def submit(self, requests: Mapping[str, Request], mark: str) -> str:
        """Hand over a batch, each request under an id; returns the batch's id at the provider. Needs `capabilities.batch`.

        Args:
            mark: a word of our own for the batch, to find it by where the provider has room for one.

        Raises:
            BatchLost: it was not taken.
            JudgeError: nobody knows.
        """
        raise NotImplementedError(f"judge '{self.name}' takes no batches")

    def find(self, mark: str) -> str | None:
        """The provider's id of the batch that was handed over with this mark; None: there is none, or it cannot be told."""
        return None

    def collect(self, batch: str, requests: Mapping[str, Request]) -> Mapping[str, Reply] | None:
        """The replies of a batch under their ids, in any order, as many as there are; None while it is not finished.

        Args:
            batch: what `submit` returned.
            requests: what was handed over, or those of it that are wanted.

        Raises:
            BatchLost: it is gone, or was refused as a whole.
        """
        raise NotImplementedError(f"judge '{self.name}' takes no batches")

    def close(self) -> None:
        """Let go of connections and memory."""


class Session(Protocol):
    """An open judge as a metric sees it (`env.judge`): replays cached replies, retries, limits and counts."""

    @property
    def capabilities(self) -> Capabilities: ...

    def complete_all(self, requests: Sequence[Request], label: str = "judge") -> list[Reply]:
        """The replies, in the order of the requests."""
        ...


# --- replies as text -------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"```(?:json)?\s*\n?(.*?)\n?\s*```", re.DOTALL)


def read_reply(text: str, request: Request) -> Reply:
    """The reply that a text is: `ok` or `malformed`, with every field that was answered as asked.

    The text must be one JSON object and nothing else, or one fenced block with it. A key that stands there twice has no
    answer, whatever its values.
    """
    fenced = _FENCE.fullmatch(text.strip())
    try:
        pairs = json.loads(fenced[1] if fenced else text, object_pairs_hook=_Pairs, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return Reply("malformed", text=text, problem=f"not JSON: {error}")
    if not isinstance(pairs, _Pairs):
        return Reply("malformed", text=text, problem="JSON, but not an object")
    data: dict[str, bool | str] = {}
    problems: list[str] = []
    found = [name for name, _ in pairs]
    for name, kind in request.fields.items():
        values = [value for key, value in pairs if key == name]
        if len(values) != 1:
            problems.append(f"'{name}' is {'missing' if not values else 'there twice'}")
        elif not isinstance(values[0], bool if kind == "boolean" else str):
            problems.append(f"'{name}' is no {kind}")
        else:
            data[name] = values[0]
    problems += [f"'{name[:40]}' was not asked for" for name in dict.fromkeys(found) if name not in request.fields]
    return Reply("malformed" if problems else "ok", data, text, "; ".join(problems))


def value_places(text: str) -> dict[str, int]:
    """Where in a text that is a JSON object the value of each key begins; empty where it is none."""
    decoder, places, at = json.JSONDecoder(), {}, text.find("{") + 1
    try:
        while at and (at := _skip(text, at, " \t\r\n,")) < len(text) and text[at] == '"':
            name, at = decoder.raw_decode(text, at)
            at = _skip(text, at, " \t\r\n:")
            places[name] = at
            _, at = decoder.raw_decode(text, at)
    except ValueError:
        return {}
    return places


def _skip(text: str, at: int, what: str) -> int:
    while at < len(text) and text[at] in what:
        at += 1
    return at


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands in the text, repeated keys and all."""


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
