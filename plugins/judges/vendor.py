"""The shared part of the vendors' judges: which key goes where, which errors end a run, and the request for plain JSON."""

import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from saebench.errors import UsageError, one_line, unknown
from saebench.judge import BatchLost, Judge, JudgeError, NoAnswer, Request

from .bounds import BATCH_BYTES, REPLY_BYTES, Overdue, TooLarge, bound, within

T = TypeVar("T")
# The key for another server. A provider's own key never goes there; setting this variable is the opt-in.
OTHER_KEY = "SAEBENCH_JUDGE_KEY"
# Longer Retry-After times in seconds are not waited for.
PATIENCE = 120.0
# The key of a local server is often a dummy, like `1`.
_SHORTEST_KEY = 8
# Statuses that a retry may get past, beside 5xx: a slow client, a conflict, too many calls.
_PASSING = (408, 409, 429)
# Statuses of a proxy in front of the model, which may have answered all the same.
UNSURE = (408, 502, 504)
# Statuses of a server without the service.
NO_SERVICE = (404, 405, 501)
# Causes of errors before anything was sent.
_UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
# Seconds for a list of models, which another server need not have.
LISTING = 15.0
# Tokens a second of a slow server's model, by which thoughts extend the time limit.
_SLOW = 10.0


class NoReply(Exception):
    """A response without a reply, such as a status 200 with an error in its body."""


class Vendor(Judge):
    """A judge behind a vendor's SDK. The session retries calls, since each attempt may cost; the SDK retries free ones only.

    Class attributes:
        variable: the environment variable that holds the provider's own key.
        home: the provider's own address.
        timeout: seconds until the server must have begun to answer; a whole response may take twice as long.
        thinking: tokens of thoughts, beyond a request's max_tokens, of a provider's model that always thinks.
    """

    variable: str
    home: str
    timeout = 120.0
    thinking = 4096

    def __init__(self, model: str, url: str | None = None) -> None:
        super().__init__(model, None if url is None or url.rstrip("/") == self.home else url.rstrip("/"))
        self._secrets: tuple[str, ...] = ()
        self._client: Any = None
        self._patient: Any = None  # the same client, with retries, for calls that cost nothing
        self._listed: list[str] = []

    def _key(self) -> str:
        """The key for this judge's address; a dummy if the server needs none.

        Raises:
            JudgeError: no key for the provider's own address, or an invalid one.
        """
        name = self.variable if self.url is None else OTHER_KEY
        key = os.environ.get(name, "").strip()
        if not key and self.url is None:
            raise JudgeError(
                f"judge {self.name} needs a key: set {name} (or --judge-url for another server, which gets no key)"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise JudgeError(f"the key in {name} holds characters that no key has: set {name} again")
        self._secrets = (key,) if key else ()
        return key or "none"

    def _redact(self, text: str) -> str:
        """Remove keys from a server's text, which may echo the request. A word too short for a key may stand in any reply."""
        for secret in self._secrets:
            if len(secret) >= _SHORTEST_KEY:
                text = text.replace(secret, "[key]")
        return text

    @property
    def _seconds(self) -> float:
        """Time limit until the first byte of a response."""
        return self.timeout + self.thoughts / _SLOW

    def _within(self, call: Callable[[], T]) -> T:
        """The result of one attempt, within twice the time limit in all."""
        return within(2 * self._seconds, call)

    def _line(self, error: BaseException | str) -> str:
        """An error on one line. Redact before truncating, or a key across the cut leaks in part."""
        return one_line(Exception(self._redact(str(error)) or type(error).__name__))

    def _auth(self, key: str) -> dict[str, str]:
        """The header that carries a key."""
        raise NotImplementedError

    def _client_options(self, key: str) -> dict[str, Any]:
        """Options of the SDK's HTTP client: requests go to the judge's address only, and responses are bounded."""
        place = _place(self.url or self.home)
        own = self._auth(key) if self._secrets else {}
        # Another server gets its own key or none, and none of the headers that the environment adds for the provider.
        strange = [] if self.url is None else ["authorization", "x-api-key", *_from_environment()]

        def before(request: Any) -> None:
            if _place(str(request.url)) != place:
                raise JudgeError(f"{self.url or self.home} points to {request.url.host}, where its key must not go")
            request.headers["accept-encoding"] = "identity"
            for name in strange:
                request.headers.pop(name, None)
            if strange:
                request.headers.update(own)

        def after(response: Any) -> None:
            if _wait(response.headers.get("retry-after")) > PATIENCE:
                response.headers["x-should-retry"] = "false"
            path = response.request.url.path
            results = "/files/" in path or path.endswith("/results")
            bound(response, 3600.0 if results else 2 * self._seconds, BATCH_BYTES if results else REPLY_BYTES)

        return {
            "follow_redirects": False,
            "timeout": self._seconds,
            "event_hooks": {"request": [before], "response": [after]},
        }

    def _no_list(self, error: Exception) -> None:
        """Raise if an error while listing models keeps the judge from being opened.

        At another server the list is advice: many list nothing, or only loaded models. Only a server that cannot be reached,
        or that wants a key, can answer no call.
        """
        status = getattr(error, "status_code", None)
        cause = error.__cause__ or error.__context__
        lost = type(error).__name__ == "APIConnectionError" and type(cause).__name__ in _UNSENT
        if self.url is not None and not (lost or status == 401 or isinstance(cause, JudgeError)):
            return
        problem = self._problem(error)
        where = self.url or self.home
        if status is not None:
            then = "run it again later" if status in _PASSING or status >= 500 else "check --judge and --judge-url"
            raise JudgeError(f"judge {self.name} at {where} does not list its models: {problem}: {then}") from None
        why = self._line(cause) if cause else problem
        then = "check the network" if self.url is None else "start the server, or check --judge-url"
        raise JudgeError(f"judge {self.name} at {where} cannot be reached: {why}: {then}") from None

    def _note_unlisted(self, known: list[str]) -> None:
        """Refuse a model that the provider does not list; at another server, warn.

        Raises:
            UsageError: the provider does not list the model.
        """
        self._listed = known
        if self.url is None:
            raise self._unknown_model(known)
        if known:
            self.warning = (
                f"judge {self.name}: '{self.model}' is not among the models that {self.url} lists "
                f"({self._nearest(known)}); calling it anyway"
            )

    def _nearest(self, known: list[str]) -> str:
        near = get_close_matches(self.model, known, n=3, cutoff=0.3) or sorted(known)[:3]
        return self._line(", ".join(f"'{name}'" for name in near))

    def _unknown_model(self, known: list[str]) -> UsageError:
        near = get_close_matches(self.model, known, n=3, cutoff=0.3) or sorted(known)[:8]
        return unknown(f"model of judge {self.name}", self.model, near)

    def _no_answer(self, error: Exception) -> NoAnswer:
        """The outcome of an attempt that raised an error.

        Raises:
            JudgeError: the error will meet every call.
        """
        if isinstance(error.__cause__, TooLarge | Overdue):
            error = error.__cause__
        if isinstance(error, TooLarge | Overdue | NoReply):
            return NoAnswer(self._line(error), 0.0 if isinstance(error, Overdue) else None, billed=True)
        problem = self._problem(error)
        status = getattr(error, "status_code", None)
        if status is None:
            cause = type(error.__cause__).__name__
            lost = type(error).__name__ in ("APIConnectionError", "APITimeoutError")
            return NoAnswer(problem, 0.0 if lost else None, billed=cause not in _UNSENT)
        headers = error.response.headers  # type: ignore[attr-defined]
        wait = max(0.0, _wait(headers.get("retry-after")))
        passing = (status in _PASSING or status >= 500) and headers.get("x-should-retry") != "false"
        # Providers do not charge for requests that they refuse.
        return NoAnswer(
            problem, wait if passing and wait <= PATIENCE else None, billed=status < 400 or status in UNSURE
        )

    def _no_longer(self, name: str) -> JudgeError:
        """The error of a resumed run whose parameters are refused now."""
        return JudgeError(
            f"{self.url or self.home} no longer takes {name}, which the cached replies of this score were made with: name "
            "another file with --judge-cache to ask everything again"
        )

    def _not_taken(self, error: Exception, handed_over: bool = True) -> JudgeError:
        """The error of a batch that was not taken, or whose submission has an unknown outcome."""
        status = getattr(error, "status_code", None)
        if status in NO_SERVICE:
            return BatchLost(f"{self.url or self.home} takes no batches ({status}): leave --judge-batch out")
        try:
            found = self._no_answer(error)
        except JudgeError as refusal:
            return BatchLost(str(refusal))
        if not (found.billed and handed_over):
            return BatchLost(f"the batch was not taken: {found}")
        return JudgeError(
            f"the batch was not taken: {found}; it may have been taken all the same: see the provider's list of batches before "
            "running it again"
        )

    def _problem(self, error: Exception) -> str:
        """An error on one line, with the server's own reason.

        Raises:
            JudgeError: the error will meet every call.
        """
        refusal = error
        while refusal is not None and not isinstance(refusal, JudgeError):
            refusal = refusal.__cause__  # type: ignore[assignment]
        if refusal is not None:
            raise JudgeError(str(refusal)) from None
        status = getattr(error, "status_code", None)
        reason = reason_in(getattr(error, "body", None))
        text = self._line(f"{status}: {reason}" if status and reason else error)
        where = self.url or self.home
        if status in (401, 403):
            name = self.variable if self.url is None else OTHER_KEY
            if not self._secrets:
                raise JudgeError(f"{where} wants a key: set {name} ({text})") from None
            raise JudgeError(f"{where} does not accept the key in {name}: {text}: set another") from None
        if status == 404:
            listed = f"; listed: {self._nearest(self._listed)}" if self._listed else ""
            raise JudgeError(
                f"{where} has no model '{self.model}', or no such service: {text}{listed}: check --judge (and --judge-url: "
                "most servers speak OpenAI's protocol under /v1)"
            ) from None
        if status is not None and 300 <= status < 400:
            raise JudgeError(f"{where} redirects its callers ({status}), but its key must not go elsewhere") from None
        if status == 402 or getattr(error, "code", None) == "insufficient_quota":
            raise JudgeError(f"{where}: the account has no money left: {text}") from None
        return f"{type(error).__name__}: {text}"


def reason_in(body: Any, depth: int = 4) -> str:
    """A server's own reason in the body of an error: FastAPI's `detail`, OpenAI's `error`, a message, or the plain text.

    The input that FastAPI repeats is left out.
    """
    if isinstance(body, str):
        return " ".join(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", body[:10_000], flags=re.DOTALL).split())
    if isinstance(body, list) and depth:
        return "; ".join(filter(None, (reason_in(part, depth - 1) for part in body[:5])))
    if not isinstance(body, dict) or not depth:
        return ""
    if "msg" in body:
        return f"{body.get('loc')} {body['msg']}"
    found = (
        reason_in(body.get(key), depth - 1)
        for key in ("message", "error", "detail", "details", "errors", "reason", "title")
    )
    return next(filter(None, found), "")


def in_words(request: Request) -> str:
    """The system message with the form of the reply, for a model that may not be constrained to it."""
    example = {name: "..." if kind == "string" else "true or false" for name, kind in request.fields.items()}
    shape = json.dumps(example, ensure_ascii=False).replace('"true or false"', "true or false")
    return f"{request.system}\n\nAnswer with one JSON object and nothing else, of exactly this form: {shape}"


def _place(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _from_environment() -> list[str]:
    """Names of headers that the SDKs add from the environment."""
    names = ["openai-organization", "openai-project"]
    for variable in ("OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS"):
        names += [line.partition(":")[0].strip().lower() for line in os.environ.get(variable, "").splitlines()]
    return [name for name in names if name and name not in ("host", "content-type", "content-length")]


def _wait(value: str | None) -> float:
    """Seconds of a Retry-After header; 0 if it is invalid."""
    try:
        return float(value or 0)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(value or "") - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
