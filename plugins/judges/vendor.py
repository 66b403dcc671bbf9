"""What both vendors' judges share: whose key goes where, which errors end a run, and the words that ask for plain JSON."""

import json
import os
from datetime import UTC, datetime
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import urlsplit

from saebench.errors import UsageError, one_line, unknown
from saebench.judge import BatchLost, Judge, JudgeError, NoAnswer, Request

# The key for an address that is not the provider's own. A provider's key never goes there: naming this one is the opt-in.
OTHER_KEY = "SAEBENCH_JUDGE_KEY"
# A server that asks to wait longer than this is not waited for.
PATIENCE = 120.0
# A local server's key is often a word that means nothing, like `1`.
_SHORTEST_KEY = 8
# What another attempt may get past, beside 5xx: a slow client, a conflict, too many calls.
_PASSING = (408, 409, 429)
# Answers of something that stands before the model, which may have worked all the same.
UNSURE = (408, 502, 504)
# Answers of a server that does not know what it is asked for.
NO_SERVICE = (404, 405, 501)
# Errors that show that nothing was sent.
_UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")


class Vendor(Judge):
    """A judge behind a vendor's SDK. The session repeats calls, since each attempt may cost; the SDK repeats only what is free.

    Class attributes:
        variable: the environment variable that holds the provider's own key.
        home: the provider's own address.
        timeout: seconds that an attempt may take.
        headroom: tokens that a model which cannot help thinking may think, on top of a request's max_tokens.
    """

    variable: str
    home: str
    timeout = 120.0
    thinking = 4096

    def __init__(self, model: str, url: str | None = None) -> None:
        super().__init__(model, None if url is None or url.rstrip("/") == self.home else url.rstrip("/"))
        self._secrets: tuple[str, ...] = ()
        self._client: Any = None
        self._patient: Any = None  # the same, for what costs nothing

    def _key(self) -> str:
        """The key that may be sent to this judge's address; one that means nothing where none is needed.

        Raises:
            JudgeError: the provider's own address, and no key.
        """
        name = self.variable if self.url is None else OTHER_KEY
        key = os.environ.get(name, "").strip()
        if not key and self.url is None:
            raise JudgeError(
                f"judge {self.name} needs a key: set {name} (or --judge-url for another server, which gets no key)"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise JudgeError(f"the key in {name} holds characters that no key has: set it again")
        self._secrets = (key,) if key else ()
        return key or "none"

    def _redact(self, text: str) -> str:
        """A server may send back what it was sent. A word too short for a key is none, and may stand in any reply."""
        for secret in self._secrets:
            if len(secret) >= _SHORTEST_KEY:
                text = text.replace(secret, "[key]")
        return text

    def _line(self, error: BaseException | str) -> str:
        """An error on one line, without keys: they go before it is cut, since of one across the cut a part would stay."""
        return one_line(Exception(self._redact(str(error)) or type(error).__name__))

    def _auth(self, key: str) -> dict[str, str]:
        """The header that carries a key."""
        raise NotImplementedError

    def _client_options(self, key: str) -> dict[str, Any]:
        """For the SDK's HTTP client: nothing goes to another place than the judge's, whatever a redirect or an answer says."""
        place = _place(self.url or self.home)
        own = self._auth(key) if self._secrets else {}
        # Another server gets its own key or none, and nothing of what the environment adds to calls to the provider.
        strange = [] if self.url is None else ["authorization", "x-api-key", *_from_environment()]

        def before(request: Any) -> None:
            if _place(str(request.url)) != place:
                raise JudgeError(f"{self.url or self.home} points to {request.url.host}, where its key must not go")
            for name in strange:
                request.headers.pop(name, None)
            if strange:
                request.headers.update(own)

        def after(response: Any) -> None:
            if _wait(response.headers.get("retry-after")) > PATIENCE:
                response.headers["x-should-retry"] = "false"

        return {
            "follow_redirects": False,
            "timeout": self.timeout,
            "event_hooks": {"request": [before], "response": [after]},
        }

    def _unreachable(self, error: Exception) -> NoReturn:
        """Raise what keeps the judge from being opened."""
        problem = self._problem(error)
        status = getattr(error, "status_code", None)
        if status is not None:
            then = "run it again later" if status in _PASSING or status >= 500 else "check --judge and --judge-url"
            where = self.url or self.home
            raise JudgeError(
                f"judge {self.name} at {where} does not say what models it has: {problem}: {then}"
            ) from None
        cause = error.__cause__ or error.__context__
        why = self._line(cause) if cause else problem
        then = "check the network" if self.url is None else "start the server, or check --judge-url"
        raise JudgeError(f"judge {self.name} at {self.url or self.home} cannot be reached: {why}: {then}") from None

    def _unknown_model(self, known: list[str]) -> UsageError:
        near = get_close_matches(self.model, known, n=3, cutoff=0.3) or sorted(known)[:8]
        return unknown(f"model of judge {self.name}", self.model, near)

    def _no_answer(self, error: Exception) -> NoAnswer:
        """What an error says of the attempt.

        Raises:
            JudgeError: the error will meet every call.
        """
        problem = self._problem(error)
        status = getattr(error, "status_code", None)
        if status is None:
            cause = type(error.__cause__).__name__
            lost = type(error).__name__ in ("APIConnectionError", "APITimeoutError")
            return NoAnswer(problem, 0.0 if lost else None, billed=cause not in _UNSENT)
        headers = error.response.headers  # type: ignore[attr-defined]
        wait = max(0.0, _wait(headers.get("retry-after")))
        passing = (status in _PASSING or status >= 500) and headers.get("x-should-retry") != "false"
        # What a provider refuses with an error of its own it does not charge for.
        return NoAnswer(
            problem, wait if passing and wait <= PATIENCE else None, billed=status < 400 or status in UNSURE
        )

    def _no_longer(self, name: str) -> JudgeError:
        """One who goes on as an earlier run began, and may not any more."""
        return JudgeError(
            f"{self.url or self.home} no longer takes {name}, with which earlier replies of this score were made: name another "
            "file with --judge-cache to ask everything anew"
        )

    def _not_taken(self, error: Exception, handed_over: bool = True) -> JudgeError:
        """Why a batch was not taken, or, where it was handed over, may have been."""
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
        """An error in words.

        Raises:
            JudgeError: the error will meet every call.
        """
        refusal = error
        while refusal is not None and not isinstance(refusal, JudgeError):
            refusal = refusal.__cause__  # type: ignore[assignment]
        if refusal is not None:
            raise JudgeError(str(refusal)) from None
        status = getattr(error, "status_code", None)
        text = self._line(error)
        where = self.url or self.home
        if status in (401, 403):
            name = self.variable if self.url is None else OTHER_KEY
            if not self._secrets:
                raise JudgeError(f"{where} wants a key: set {name} ({status}: {text})") from None
            raise JudgeError(f"{where} does not accept the key in {name} ({status}): {text}") from None
        if status == 404:
            raise JudgeError(
                f"{where} has no model '{self.model}', or no such service: {text}: check --judge (and --judge-url: most servers "
                "speak OpenAI's protocol under /v1)"
            ) from None
        if status is not None and 300 <= status < 400:
            raise JudgeError(f"{where} sends its callers elsewhere ({status}), where its key must not go") from None
        if status == 402 or getattr(error, "code", None) == "insufficient_quota":
            raise JudgeError(f"{where}: the account has no money left: {text}") from None
        return f"{type(error).__name__}: {text}"


def in_words(request: Request) -> str:
    """The form of the reply, for a model that is not held to it."""
    example = {name: "..." if kind == "string" else "true or false" for name, kind in request.fields.items()}
    shape = json.dumps(example, ensure_ascii=False).replace('"true or false"', "true or false")
    return f"{request.system}\n\nAnswer with one JSON object and nothing else, of exactly this form: {shape}"


def _place(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _from_environment() -> list[str]:
    """Headers that the SDKs read from the environment."""
    names = ["openai-organization", "openai-project"]
    for variable in ("OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS"):
        names += [line.partition(":")[0].strip().lower() for line in os.environ.get(variable, "").splitlines()]
    return [name for name in names if name and name not in ("host", "content-type", "content-length")]


def _wait(value: str | None) -> float:
    """Seconds that a Retry-After asks for; 0 where it makes no sense."""
    try:
        return float(value or 0)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(value or "") - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
