"""Anthropic's models. The SDK has no temperature and the API gives no log-probabilities, so this judge has neither."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from saebench import hookimpl
from saebench.judge import BatchLost, Capabilities, Judge, JudgeError, Reply, Request, Usage, read_reply

from .vendor import NO_SERVICE, Vendor, in_words

_UNSAID = "unsaid"


class Anthropic(Vendor):
    """Anthropic's API (key in ANTHROPIC_API_KEY), or with --judge-url a server that speaks it; gives no probabilities."""

    name = "anthropic"
    variable = "ANTHROPIC_API_KEY"
    home = "https://api.anthropic.com"

    def __init__(self, model: str, url: str | None = None) -> None:
        super().__init__(model, url)
        self.capabilities = Capabilities(structured=True, batch=True)
        # How thinking is turned off; None: it cannot be, and takes tokens; `_UNSAID`: another server knows no such thing.
        self._thinking: str | None = "disabled"
        self._resumed = False  # as an earlier run asked, and not answered since
        self._settled = False  # once a call was answered, nothing about the asking changes any more

    def _auth(self, key: str) -> dict[str, str]:
        return {"x-api-key": key}

    def open(self) -> None:
        """Find the key and the model; a call that costs is attempted once, and again only by the session, which counts it."""
        import anthropic

        if self._client is not None:
            return
        key = self._key()
        self._client = anthropic.Anthropic(
            api_key=key, base_url=self.url or self.home, max_retries=0, timeout=self.timeout, open_telemetry=False,
            http_client=anthropic.DefaultHttpxClient(**self._client_options(key)),
        )  # fmt: skip
        self._patient = self._client.with_options(max_retries=self.retries)
        client = self._client.with_options(max_retries=1)
        try:
            self._read_abilities(client.models.retrieve(self.model))
        except JudgeError:
            raise
        except Exception as error:
            if not (isinstance(error, anthropic.APIStatusError) and error.status_code in NO_SERVICE):
                self._unreachable(error)
            known = self._names(client)
            if self.url is None or known:
                raise self._unknown_model(known) from error

    def _names(self, client: Any) -> list[str]:
        try:
            return [model.id for model in client.models.list(limit=100)]
        except Exception:  # it only helps to say what there is
            return []

    def _read_abilities(self, about: Any) -> None:
        """What the API says that the model can do."""
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
        self._thinking = ways[0] if ways else None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def headroom(self) -> int:
        return 0 if self._thinking else self.thinking

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
        """One message; what the server says it does not take is left out from then on, and asked again."""
        while True:
            sampling = self.sampling
            try:
                reply = self._reply(self._client.messages.create(**self._body(request)), request)
            except Exception as error:
                if self._settle(_refused(error, request), sampling):
                    continue
                raise self._no_answer(error) from None
            self._settled, self._resumed = True, False
            return replace(reply, sampling=sampling)

    def _settle(self, name: str | None, tried: Mapping[str, Any]) -> bool:
        """After a call in which this parameter was refused: ask without it, and for a form in words. False: that is not it.

        Only of another server: what the provider's own models take is known from its list of them.

        Raises:
            JudgeError: it must go on as it began, and may not any more.
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

    def _reply(self, answer: Any, request: Request) -> Reply:
        """The reply that a message is."""
        text = self._redact("".join(block.text for block in answer.content if block.type == "text"))
        counted = answer.usage
        read = (counted.cache_creation_input_tokens or 0) + (counted.cache_read_input_tokens or 0)
        about: dict[str, Any] = {
            "model": self._redact(answer.model), "usage": Usage(counted.input_tokens + read, counted.output_tokens)
        }  # fmt: skip
        if answer.stop_reason == "refusal":
            return Reply("refused", text=text, problem="the model or its provider declined", **about)
        if answer.stop_reason in ("max_tokens", "model_context_window_exceeded"):
            return Reply("truncated", text=text, problem=f"cut: {answer.stop_reason}", **about)
        return replace(read_reply(text, request), **about)

    # --- batches ------------------------------------------------------------------------------------------------------

    def submit(self, requests: Mapping[str, Request], mark: str) -> str:
        """The API has no room for a mark, so a batch whose id was lost cannot be found again."""
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
        usage = None  # an answer that cannot be read was charged for all the same
        try:
            if line.result.type == "succeeded":
                return self._reply(line.result.message, request)
            usage = Usage(0, 0)
            problem = f"{line.result.type} in the batch"
            if line.result.type == "errored":
                problem += f": {line.result.error.error.message}"
        except Exception as odd:  # an answer of a strange shape
            problem = f"{type(odd).__name__}: {odd}"
        return Reply("failed", problem=self._line(problem), usage=usage)


def _refused(error: Any, request: Request) -> str | None:
    """The parameter that an error refuses, None where it is not about one of ours; what was sent may be quoted in it."""
    if getattr(error, "status_code", None) not in (400, 422):
        return None
    said, sent = str(error).lower(), f"{request.system}\n{request.user}".lower()
    return next((name for name in ("output_config", "thinking") if name in said and name not in sent), None)


@hookimpl
def saebench_judges() -> list[type[Judge]]:
    return [Anthropic]
