"""The judge contract: `Request`, `Reply` and the base class `Judge` (hook `saebench_judges`).

A metric that needs a judge lists its prompts in `asks`, makes `Request`s in `scores` and passes all of them to
`env.judge.complete_all`, which replays, limits, retries and counts (judging/session.py).
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

from saebench.errors import SaebenchError

State = Literal["ok", "refused", "truncated", "malformed", "failed"]
STATES: tuple[State, ...] = ("ok", "refused", "truncated", "malformed", "failed")
Kind = Literal["boolean", "string"]
_MOST_TOKENS = 2**40  # a larger count is no count


class JudgeError(SaebenchError):
    """No request can be answered (no key, unknown model, a limit reached): the run stops asking."""


class BatchLost(JudgeError):
    """A submitted batch will never have replies, or was certainly refused; its entry is deleted."""


class NoAnswer(SaebenchError):
    """One attempt without a reply. The session counts its possible cost and retries unless `wait` is None.

    Attributes:
        wait: seconds until the next attempt (Retry-After); 0 if the server sets none; None if a retry cannot help.
        billed: whether the provider may charge for the attempt: the request was sent and its outcome is unknown.
    """

    def __init__(self, problem: str, wait: float | None = None, billed: bool = False) -> None:
        super().__init__(problem)
        self.wait, self.billed = wait, billed


@dataclass(frozen=True)
class Request:
    """One question to a judge. Equal requests get one reply.

    Attributes:
        system, user: the two messages.
        fields: keys of the JSON object that is the reply, in this order, each "boolean" or "string".
        prompt: name and version of the prompt, like `detection@1`.
        max_tokens: limit on the reply's length.
        repeat: index of a deliberate repetition of one question.
    """

    system: str
    user: str
    fields: Mapping[str, Kind]
    prompt: str
    max_tokens: int = 256
    repeat: int = 0

    def schema(self) -> dict[str, Any]:
        """JSON schema of the reply, in the subset that providers enforce."""
        return {
            "type": "object",
            "properties": {name: {"type": kind} for name, kind in self.fields.items()},
            "required": list(self.fields),
            "additionalProperties": False,
        }

    def key(self, identity: Mapping[str, Any]) -> str:
        """SHA-256 of the whole request: the judge's identity (provider, address, model) and every field."""
        body = {"judge": dict(identity), **asdict(self), "fields": list(self.fields.items())}
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Usage:
    """Tokens of one call, as counted by the provider."""

    input_tokens: int
    output_tokens: int

    @classmethod
    def counted(cls, input_tokens: object, output_tokens: object) -> "Usage | None":
        """The usage that a server reports; None unless both are non-negative integers."""
        both = (input_tokens, output_tokens)
        if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= _MOST_TOKENS for n in both):
            return None
        return cls(*both)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Reply:
    """A judge's reply. A field that is missing from `data` was not answered.

    Attributes:
        state: `ok`: an object with exactly the requested fields. `refused`: the model or its provider declined.
            `truncated`: cut at max_tokens. `malformed`: not JSON, or fields missing, unknown, repeated or of another type.
            `failed`: no reply at all (timeouts, server errors, an expired batch).
        data: the valid fields of an `ok` or `malformed` reply, so that a malformed one is judged field by field; else empty.
        text: the reply's text, without thoughts.
        problem: why the state is not `ok`; empty if it is.
        model: the model that answered, as named by the provider.
        usage: None if the provider counted nothing and may have charged; (0, 0) for an error that costs nothing.
        probabilities: P(true) of each boolean field, among true and false, where the provider gives log-probabilities.
        sampling: the parameters of the call beside its text (temperature, thinking, a schema ...) that the provider takes,
            where only a call can show which it takes. They are cached with the reply and are no part of the request's key,
            since a replay must find the reply without knowing them. A parameter is left out if the first reply shows that
            the server ignored it.
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
    """Features of a judge's provider.

    Attributes:
        structured: replies are constrained to the requested fields; otherwise the fields are requested in words and checked.
        probabilities: log-probabilities are available, so that boolean answers can be ordered.
        temperature: temperature 0 can be requested.
        batch: whole batches are taken at a lower price and collected later.
        thinking: replies may contain thoughts, for which `Judge.allow_thinking` reserves tokens.
    """

    structured: bool = False
    probabilities: bool = False
    temperature: bool = False
    batch: bool = False
    thinking: bool = False


@dataclass(frozen=True)
class Calls:
    """Planned calls of one prompt for one SAE, for `--dry-run`: see `Metric.judge_calls`.

    Attributes:
        prompt: as in `Request`.
        count: number of calls.
        input_characters: characters of system and user text together, per call.
        output_tokens: expected tokens per reply.
    """

    prompt: str
    count: int
    input_characters: int
    output_tokens: int


class Judge:
    """Base class of judges: one instance answers for one model.

    Class attributes:
        name: the provider, as in `--judge name:model`.
        concurrency: limit on simultaneous calls.
        retries: further attempts at a call after one without a reply.
        sends: whether calls leave the process (and may cost money).
        replays: whether replies come from the cache only.

    Attributes:
        capabilities: may shrink when the provider refuses a parameter.
        thoughts: tokens reserved for thoughts in every reply (`--judge-thinking`).
        warning: one line for the user after `open`, empty if there is nothing to warn of.
    """

    name: ClassVar[str]
    concurrency: ClassVar[int] = 8
    retries: int = 5
    sends: ClassVar[bool] = True
    replays: ClassVar[bool] = False
    capabilities = Capabilities()
    thoughts: int = 0
    warning: str = ""

    def __init__(self, model: str, url: str | None = None) -> None:
        """Store the arguments; read no key and load nothing, so that a recorded run is replayed without either.

        Args:
            model: the provider's name of the model.
            url: another address that speaks the provider's protocol.
        """
        self.model, self.url = model, url

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that could change a reply: part of each request's key and of the record's fingerprint. Holds no secret."""
        room = {"thinking": self.thoughts} if self.thoughts else {}
        return {"provider": self.name, "model": self.model, "url": self.url, **room}

    @property
    def headroom(self) -> int:
        """Tokens of thoughts that a reply may cost beyond its request's max_tokens."""
        return self.thoughts

    def allow_thinking(self, tokens: int) -> None:
        """Reserve tokens for thoughts in every reply, before `open`. Needs `capabilities.thinking`."""
        self.thoughts = tokens

    @property
    def sampling(self) -> dict[str, Any]:
        """`Reply.sampling` of the next call; empty if the parameters are fixed."""
        return {}

    def resume(self, sampling: Mapping[str, Any]) -> None:
        """Use these parameters from now on. Called when open, with no call in progress."""

    def open(self) -> None:
        """Read the key, reach the server, find the model. Costs nothing.

        Raises:
            JudgeError, UsageError: no call can succeed; the message names the fix (the variable with the key).
        """

    def complete(self, request: Request) -> Reply:
        """Answer one request in one attempt; called from several threads at once unless `concurrency` is 1.

        Any other fault of this request is a state of the reply.

        Raises:
            NoAnswer: the attempt got no reply.
            JudgeError: no request can be answered (the key is refused, the model is gone).
        """
        raise NotImplementedError(f"judge '{self.name}' must define complete")

    def submit(self, requests: Mapping[str, Request], mark: str) -> str:
        """Submit a batch, each request under its id, and return the provider's id. Needs `capabilities.batch`.

        Args:
            mark: our own id of the batch, to find it by where the provider stores one.

        Raises:
            BatchLost: the batch was refused.
            JudgeError: the outcome is unknown.
        """
        raise NotImplementedError(f"judge '{self.name}' takes no batches")

    def find(self, mark: str) -> str | None:
        """The provider's id of the batch with this mark; None if there is none, or the provider stores no mark."""
        return None

    def collect(self, batch: str, requests: Mapping[str, Request]) -> Mapping[str, Reply] | None:
        """The replies of a finished batch by id, in any order, possibly incomplete; None while it is in progress.

        Args:
            batch: the return value of `submit`.
            requests: the submitted requests, or a subset.

        Raises:
            BatchLost: the batch is gone, or was refused as a whole.
        """
        raise NotImplementedError(f"judge '{self.name}' takes no batches")

    def close(self) -> None:
        """Release connections and memory."""


class Session(Protocol):
    """An open judge, as `env.judge` of a metric: replays cached replies, retries, limits and counts."""

    @property
    def capabilities(self) -> Capabilities: ...

    def complete_all(self, requests: Sequence[Request], label: str = "judge") -> list[Reply]:
        """The replies, in the order of the requests."""
        ...


# --- replies as text -------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"```(?:json)?\s*\n?(.*?)\n?\s*```", re.DOTALL)


def read_reply(text: str, request: Request) -> Reply:
    """Parse a text: an `ok` or `malformed` reply with every valid field.

    The text must be one JSON object and nothing else, or one fenced block that holds it. A repeated key has no answer,
    whatever its values.
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


_THOUGHTS = r"think|thinking|thought|thoughts|reasoning"
_OPENING = re.compile(rf"\s*(?:<({_THOUGHTS})>|\[({_THOUGHTS})\])", re.IGNORECASE)
_CLOSING = re.compile(rf"(?:</({_THOUGHTS})>|\[/({_THOUGHTS})\])\s*", re.IGNORECASE)


def without_thoughts(text: str) -> tuple[str, str]:
    """(answer, thoughts) of a reply whose model thinks in the text, like `<think>…</think>{…}`.

    The opening tag may belong to the prompt, so that only the closing one is in the reply. Thoughts that do not end have an
    empty answer. A text that begins with the answer is returned whole.
    """
    opened = _OPENING.match(text)
    if not opened and text.lstrip()[:1] in ("{", "`", ""):
        return text, ""
    closed = _CLOSING.search(text, opened.end() if opened else 0)
    if closed:
        return text[closed.end() :], text[: closed.start()]
    return ("", text) if opened else (text, "")


def sound(reply: object) -> Reply:
    """A reply of anybody's judge, without the numbers that a run cannot count with.

    Raises:
        TypeError: not a reply.
    """
    if not isinstance(reply, Reply):
        raise TypeError(f"the judge returned {type(reply).__name__}, not a Reply")
    usage = reply.usage and Usage.counted(reply.usage.input_tokens, reply.usage.output_tokens)
    likely = {n: p for n, p in reply.probabilities.items() if isinstance(p, int | float) and math.isfinite(p)}
    model = reply.model if reply.model is None or isinstance(reply.model, str) else str(reply.model)
    if (usage, likely, model) == (reply.usage, dict(reply.probabilities), reply.model):
        return reply
    return replace(reply, usage=usage, probabilities=likely, model=model)


def value_places(text: str) -> dict[str, int]:
    """Index in a text at which the value of each key of a JSON object begins; empty if the text is no object."""
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


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


class _Pairs(list[tuple[str, Any]]):
    """The (key, value) pairs of a JSON object, repeated keys included."""


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
