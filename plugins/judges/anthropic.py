"""Anthropic's models. The SDK has no temperature and the API gives no log-probabilities, so this judge has neither."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from saebench import hookimpl
from saebench.judge import (
    BatchLost,
    Capabilities,
    Judge,
    JudgeError,
    Reply,
    Request,
    Usage,
    read_reply,
    without_thoughts,
)

from .vendor import LISTING, NO_SERVICE, NoReply, Vendor, in_words, reason_in

_UNSAID = "unsaid"


class Anthropic(Vendor):
    """Anthropic's API (key in ANTHROPIC_API_KEY), or with --judge-url a server that speaks it; gives no probabilities."""

    name = "anthropic"
    variable = "ANTHROPIC_API_KEY"
    home = "https://api.anthropic.com"

    def __init__(self, model: str, url: str | None = None) -> None:
        super().__init__(model, url)
        self.capabilities = Capabilities(structured=True, batch=True, thinking=self.url is not None)
        # The value that turns thinking off; None if nothing does, so that thoughts need tokens; `_UNSAID`: not sent.
        self._thinking: str | None = "disabled"
        self._resumed = False  # parameters of an earlier run, not confirmed by a reply yet
        self._settled = False  # after the first reply the parameters are fixed

    def _auth(self, key: str) -> dict[str, str]:
        return {"x-api-key": key}

    def open(self) -> None:
        """Find the key and the model. The SDK retries only free calls; the session retries and counts the others."""
        import anthropic

        if self._client is not None:
            return
        key = self._key()
        self._client = anthropic.Anthropic(
            api_key=key, base_url=self.url or self.home, max_retries=0, timeout=self.timeout, open_telemetry=False,
            http_client=anthropic.DefaultHttpxClient(**self._client_options(key)),
        )  # fmt: skip
        self._patient = self._client.with_options(max_retries=self.retries)
        own = {} if self.url is None else {"timeout": min(self.timeout, LISTING)}
        client = self._client.with_options(max_retries=1, **own)
        try:
            self._read_abilities(self._within(lambda: client.models.retrieve(self.model)))
        except JudgeError:
            raise
        except Exception as error:
            if not (isinstance(error, anthropic.APIStatusError) and error.status_code in NO_SERVICE):
                self._no_list(error)
            self._note_unlisted(self._names(client))

    def _names(self, client: Any) -> list[str]:
        try:
            return self._within(lambda: [str(model.id) for model in client.models.list(limit=100)])
        except Exception:  # the names only make a message more helpful
            return []

    def _read_abilities(self, about: Any) -> None:
        """Read the model's features from the API's description."""
        if getattr(about, "lifecycle", None) == "retired":
            raise JudgeError(f"model '{self.model}' of judge anthropic is retired: choose another")
        abilities = getattr(about, "capabilities", None)
        if abilities is None:
            return
        self.capabilities = replace(
            self.capabilities, structured=abilities.structured_outputs.supported, batch=abilities.batch.supported
        )
        types = abilities.thinking.types
        ways = [way for way in ("disabled", "between_tools") if getattr(types, way).supported]
        if not self.thoughts:
            self._thinking = ways[0] if ways else None

    def allow_thinking(self, tokens: int) -> None:
        """Reserve tokens for thoughts, and do not turn thinking off."""
        super().allow_thinking(tokens)
        self._thinking = _UNSAID

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def headroom(self) -> int:
        return self.thoughts or (0 if self._thinking else self.thinking)

    @property
    def sampling(self) -> dict[str, Any]:
        form = {"format": "json_schema"} if self.capabilities.structured else {}
        return form | ({"thinking": self._thinking} if self._thinking else {"effort": "low"})

    def resume(self, sampling: Mapping[str, Any]) -> None:
        self._resumed = self._resumed or not self._settled or sampling != self.sampling
        self._settled = True
        self._thinking = sampling.get("thinking")
        self.capabilities = replace(self.capabilities, structured="format" in sampling)

    # --- one call -----------------------------------------------------------------------------------------------------

    def complete(self, request: Request) -> Reply:
        """One message. A parameter that the server refuses is left out from then on, and the call repeated."""
        while True:
            sampling = self.sampling
            try:
                body = self._body(request)
                answer = self._within(lambda body=body: self._client.messages.create(**body))  # type: ignore[misc]
                reply, thoughts = self._reply(answer, request)
            except Exception as error:
                if self._settle(_refused(error, request), sampling):
                    continue
                raise self._no_answer(error) from None
            if not self._settled:
                self._leave_out(reply, thoughts)
                sampling = self.sampling
            self._settled, self._resumed = True, False
            return replace(reply, sampling=sampling)

    def _leave_out(self, reply: Reply, thoughts: bool) -> None:
        """Leave out the parameters that another server's first reply shows to be ignored."""
        if self.url is None:
            return
        if reply.state == "malformed" and reply.text:
            self.capabilities = replace(self.capabilities, structured=False)
        if thoughts and self._thinking:
            self._thinking = _UNSAID

    def _settle(self, name: str | None, tried: Mapping[str, Any]) -> bool:
        """Leave out a refused parameter; return whether the call should be repeated.

        Only at another server: the provider's list of models names the parameters of its own.

        Raises:
            JudgeError: a resumed run must keep the parameter.
        """
        if name is not None and self._resumed:
            raise self._no_longer(name)
        if self.url is None or self._settled:
            return False
        if name == "output_config" and "format" in tried:
            self.capabilities = replace(self.capabilities, structured=False)
        elif name == "thinking" and tried.get("thinking", _UNSAID) != _UNSAID:
            self._thinking = _UNSAID
        else:
            return False
        return True

    def _body(self, request: Request) -> dict[str, Any]:
        strict = self.capabilities.structured
        output: dict[str, Any] = {"format": {"type": "json_schema", "schema": request.schema()}} if strict else {}
        if not self._thinking:
            output["effort"] = "low"
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.max_tokens + self.headroom,
            "system": request.system if strict and self.url is None else in_words(request),
            "messages": [{"role": "user", "content": request.user}],
        }
        if output:
            body["output_config"] = output
        if self._thinking and self._thinking != _UNSAID:
            body["thinking"] = {"type": self._thinking}
        return body

    def _reply(self, answer: Any, request: Request) -> tuple[Reply, bool]:
        """(the reply in a message, whether the model thought).

        Raises:
            NoReply: a response without content.
        """
        blocks = getattr(answer, "content", None)
        if not isinstance(blocks, list):
            body = answer if isinstance(answer, str) else getattr(answer, "model_extra", None)
            raise NoReply(f"the response holds no reply: {reason_in(body) or 'no content'}")
        raw, apart = without_thoughts("".join(str(block.text) for block in blocks if block.type == "text"))
        thoughts = bool(apart) or any(block.type == "thinking" for block in blocks)
        text = self._redact(raw)
        about: dict[str, Any] = {"model": self._redact(str(answer.model or "")), "usage": _usage(answer.usage)}
        if answer.stop_reason == "refusal":
            return Reply("refused", text=text, problem="the model or its provider declined", **about), thoughts
        if answer.stop_reason in ("max_tokens", "model_context_window_exceeded"):
            inside = ", all of it thoughts" if thoughts and not text else ""
            return Reply("truncated", text=text, problem=f"cut: {answer.stop_reason}{inside}", **about), thoughts
        reply = read_reply(text, request)
        if reply.state == "malformed" and thoughts and not text:
            reply = replace(reply, problem="thoughts without an answer")
        return replace(reply, **about), thoughts

    # --- batches ------------------------------------------------------------------------------------------------------

    def submit(self, requests: Mapping[str, Request], mark: str) -> str:
        """Submit a batch. The API stores no mark, so a batch whose id was lost cannot be found again."""
        items: list[Any] = [{"custom_id": key, "params": self._body(request)} for key, request in requests.items()]
        try:
            return str(self._client.messages.batches.create(requests=items).id)
        except Exception as error:
            raise self._not_taken(error) from None

    def collect(self, batch: str, requests: Mapping[str, Request]) -> Mapping[str, Reply] | None:
        """The replies of a batch that has ended, from the server it was handed to."""
        import anthropic

        try:
            found = self._patient.messages.batches.retrieve(batch)
            if found.processing_status != "ended":
                return None
            if found.results_url is None:
                raise BatchLost(f"batch {batch} is too old: its results are gone; run it again")
            lines = list(self._patient.messages.batches.results(batch))
        except anthropic.NotFoundError:
            raise BatchLost(f"batch {batch} is no longer at {self.url or self.home}: run it again") from None
        except BatchLost:
            raise
        except Exception as error:
            raise JudgeError(f"batch {batch} cannot be collected: {self._problem(error)}") from None
        return {
            line.custom_id: self._item(line, requests[line.custom_id]) for line in lines if line.custom_id in requests
        }

    def _item(self, line: Any, request: Request) -> Reply:
        """The reply that one result of a batch is: succeeded, errored, canceled or expired."""
        usage = None  # an unreadable answer was charged for all the same
        try:
            if line.result.type == "succeeded":
                return self._reply(line.result.message, request)[0]
            usage = Usage(0, 0)
            problem = f"{line.result.type} in the batch"
            if line.result.type == "errored":
                problem += f": {line.result.error.error.message}"
        except Exception as odd:  # an answer of another shape
            problem = f"{type(odd).__name__}: {odd}"
        return Reply("failed", problem=self._line(problem), usage=usage)


def _refused(error: Any, request: Request) -> str | None:
    """The parameter that an error refuses; None if it concerns none of ours. An error may quote the request's text."""
    if getattr(error, "status_code", None) not in (400, 422):
        return None
    reason = f"{error} {reason_in(error.body)}".lower()
    sent = f"{request.system}\n{request.user}".lower()
    return next((name for name in ("output_config", "thinking") if name in reason and name not in sent), None)


def _usage(counted: Any) -> Usage | None:
    """The usage of a message, cached input included."""
    cached = (getattr(counted, f"cache_{how}_input_tokens", None) or 0 for how in ("creation", "read"))
    parts = [part for part in (getattr(counted, "input_tokens", None), *cached) if isinstance(part, int)]
    return None if len(parts) < 3 else Usage.counted(sum(parts), getattr(counted, "output_tokens", None))


@hookimpl
def saebench_judges() -> list[type[Judge]]:
    return [Anthropic]
