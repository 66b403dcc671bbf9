"""OpenAI's chat models, and every server that speaks the same protocol: vLLM, llama.cpp, Ollama."""

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
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
)

from .chat import likely, message_text
from .vendor import LISTING, NO_SERVICE, UNSURE, NoReply, Vendor, in_words, reason_in

# Values of each parameter, tried in order until the server takes one (None: the parameter is left out).
_OFFICIAL: dict[str, tuple[Any, ...]] = {
    "reasoning_effort": ("none", "minimal", "low", None),
    "temperature": (0, None),
    "logprobs": (20, 5, None),
    "response_format": ("json_schema",),
}
_OTHERS: dict[str, tuple[Any, ...]] = {
    # Ollama and llama.cpp turn thinking off with "none"; max_tokens covers only the JSON.
    "reasoning_effort": ("none", None),
    "response_format": ("json_schema", None),
    "temperature": (0, None),
    "logprobs": (20, 5, None),
}
# Other names of the parameters in errors.
_ALSO = {
    "reasoning_effort": ("reasoning.effort",),
    "logprobs": ("top_logprobs",),
    "response_format": ("json_schema", "guided_json", "guided_decoding", "grammar"),
}
# Statuses that refuse a parameter. OpenAI forbids log-probabilities with 403.
_REFUSING = (400, 403, 422)
# Words of errors about a parameter that the model lacks at any value.
_UNKNOWN = re.compile(r"(unsupported|unknown) parameter|unrecognized (request )?argument|extra inputs", re.IGNORECASE)
_OLD_LIKELY = 5  # alternatives to each token in sampling settings that were cached as `logprobs: true`
_MARK = "saebench"  # the key of our own id in a batch's metadata
_FINISHED = ("completed", "expired", "cancelled", "failed")


class OpenAI(Vendor):
    """OpenAI's API (key in OPENAI_API_KEY), or with --judge-url any server that speaks it: vLLM, llama.cpp, Ollama."""

    name = "openai"
    variable = "OPENAI_API_KEY"
    home = "https://api.openai.com/v1"

    def __init__(self, model: str, url: str | None = None) -> None:
        super().__init__(model, url)
        self.capabilities = Capabilities(
            structured=True, probabilities=True, temperature=True, batch=True, thinking=self.url is not None
        )
        self._choices = dict(_OFFICIAL if self.url is None else _OTHERS)
        self._lock = threading.Lock()
        # Whether the model lacks reasoning_effort. Third-party servers are assumed not to emit reasoning tokens.
        self._thoughtless = self.url is not None
        self._resumed = False  # parameters of an earlier run, not confirmed by a reply yet
        self._settled = False  # after the first reply the parameters are fixed

    def _auth(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"}

    def allow_thinking(self, tokens: int) -> None:
        """Reserve tokens for thoughts, and do not turn thinking off."""
        super().allow_thinking(tokens)
        self._choices["reasoning_effort"] = (None,)

    def open(self) -> None:
        """Find the key and the model. The SDK retries only free calls; the session retries and counts the others."""
        import openai

        if self._client is not None:
            return
        key = self._key()
        self._client = openai.OpenAI(
            api_key=key, base_url=self.url or self.home, max_retries=0, timeout=self.timeout,
            http_client=openai.DefaultHttpxClient(**self._client_options(key)),
        )  # fmt: skip
        self._patient = self._client.with_options(max_retries=self.retries)
        self._find_model()

    def _find_model(self) -> None:
        import openai

        own = {} if self.url is None else {"timeout": min(self.timeout, LISTING)}
        try:
            client = self._client.with_options(max_retries=1, **own)
            known = [str(model.id) for model in self._within(lambda: list(client.models.list()))]
        except Exception as error:
            if not (isinstance(error, openai.APIStatusError) and error.status_code in NO_SERVICE):
                self._no_list(error)
            known = []
        # Some servers hold one model and take any name for it.
        if self.model not in known and (self.url is None or len(known) > 1):
            self._note_unlisted(known)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def headroom(self) -> int:
        """Tokens of thoughts per reply; before the first reply it is unknown whether thinking can be turned off."""
        return self.thinking if self.url is None and not self._settled else self._thinks()

    def _thinks(self) -> int:
        """Tokens that are reserved for thoughts."""
        if self.url is not None:
            return self.thoughts
        effort = self._choices.get("reasoning_effort", ("none",))[0]
        return 0 if effort == "none" or (effort is None and self._thoughtless) else self.thinking

    @property
    def sampling(self) -> dict[str, Any]:
        return self._sampling(self._choices)

    def _sampling(self, choices: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        """The parameters of a call; with the tokens for thoughts where no effort implies them."""
        sent = _sent(choices)
        silent = "reasoning_effort" in choices and "reasoning_effort" not in sent and not self._thoughtless
        room = self.thoughts or (self.thinking if silent else 0)
        return sent | ({"thinking": room} if room else {})

    def resume(self, sampling: Mapping[str, Any]) -> None:
        self._resumed = self._resumed or not self._settled or sampling != self.sampling
        self._choices = {name: (sampling.get(name),) for name in self._choices}
        self._thoughtless = self.url is not None or "thinking" not in sampling
        self._settled = True
        self._note_capabilities()

    # --- one call -----------------------------------------------------------------------------------------------------

    def complete(self, request: Request) -> Reply:
        """One chat completion. A parameter that the server refuses is left out from then on, and the call repeated."""
        import openai

        while True:
            choices = dict(self._choices)
            body = self._body(request, choices)
            try:
                answer = self._within(lambda body=body: self._client.chat.completions.create(**body))  # type: ignore[misc]
                reply, ignored = self._reply(answer, request)
                return replace(reply, sampling=self._sampling(self._without(choices, ignored)))
            except openai.APIStatusError as error:
                words = f"{error} {reason_in(error.body)}"
                name = _refused(error, request)
                unknown = error.code in ("unsupported_parameter", "unknown_parameter") or bool(_UNKNOWN.search(words))
                # A refusal of `top_logprobs` may be of their number only.
                unknown |= name == "logprobs" and "top_logprobs" not in f"{words} {error.param}"
                if not (error.status_code in _REFUSING and self._settle(name, choices, unknown)):
                    raise self._no_answer(error) from None
            except Exception as error:
                raise self._no_answer(error) from None

    def _without(self, choices: Mapping[str, tuple[Any, ...]], ignored: set[str]) -> Mapping[str, tuple[Any, ...]]:
        """Fix the parameters after the first reply, less those that it shows to be ignored; return those of this call."""
        with self._lock:
            if self._settled:
                self._resumed = False
                return choices
            self._settled = True
            drop = {name for name in ignored if choices[name][-1] is None}
            self._choices = {**choices, **dict.fromkeys(drop, (None,))}
            self._note_capabilities()
            return self._choices

    def _body(self, request: Request, choices: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        chosen = _sent(choices)
        strict = chosen.pop("response_format", None)
        body: dict[str, Any] = {"model": self.model, **chosen}
        if "logprobs" in chosen:
            body["logprobs"], body["top_logprobs"] = True, _alternatives(chosen["logprobs"])
        if strict:
            schema = {"name": "reply", "strict": True, "schema": request.schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        # Another server may not constrain its model to the schema, so the form is described in words too.
        system = request.system if self.url is None else in_words(request)
        body["messages"] = [{"role": "system", "content": system}, {"role": "user", "content": request.user}]
        body["max_completion_tokens" if self.url is None else "max_tokens"] = request.max_tokens + self._thinks()
        return body

    def _settle(self, name: str | None, tried: Mapping[str, tuple[Any, ...]], unknown: bool) -> bool:
        """Choose the next value of a refused parameter; return whether the call should be repeated.

        Args:
            name: of the parameter; None if the refusal names none.
            tried: the parameters of the refused call.
            unknown: the parameter itself was refused, not only its value.

        Raises:
            JudgeError: the parameter is needed.
        """
        if name is None or name not in tried or tried[name][0] is None:
            return False
        with self._lock:
            values = self._choices[name]
            if values != tried[name]:  # another thread has settled it
                return True
            if self._resumed:
                raise self._no_longer(name)
            if self._settled:
                return False
            if len(values) == 1:
                raise JudgeError(
                    f"model '{self.model}' of judge openai takes no structured output ({name}): choose another model"
                )
            self._choices[name] = (None,) if unknown and values[-1] is None else values[1:]
            self._thoughtless = self._thoughtless or (unknown and name == "reasoning_effort")
            self._note_capabilities()
            return True

    def _note_capabilities(self) -> None:
        sent = _sent(self._choices)
        self.capabilities = replace(
            self.capabilities, structured="response_format" in sent, probabilities="logprobs" in sent,
            temperature="temperature" in sent,
        )  # fmt: skip

    def _reply(self, answer: Any, request: Request) -> tuple[Reply, set[str]]:
        """(the reply in a chat completion, the parameters that the server ignored).

        Raises:
            NoReply: a completion without choices.
        """
        choices = getattr(answer, "choices", None)
        if not choices:
            body = answer if isinstance(answer, str) else getattr(answer, "model_extra", None)
            raise NoReply(f"the response holds no reply: {reason_in(body) or 'no choices'}")
        choice = choices[0]
        raw, thoughts = message_text(choice.message)
        text = self._redact(raw)
        counted = answer.usage
        usage = counted and Usage.counted(
            getattr(counted, "prompt_tokens", None), getattr(counted, "completion_tokens", None)
        )
        about: dict[str, Any] = {"model": self._redact(str(answer.model or "")), "usage": usage}
        ignored = {"reasoning_effort"} if thoughts and self._choices["reasoning_effort"][0] == "none" else set()
        if choice.message.refusal:
            return Reply("refused", text=text, problem=self._redact(str(choice.message.refusal)), **about), ignored
        if choice.finish_reason == "content_filter":
            return Reply("refused", text=text, problem="the provider's filter", **about), ignored
        if choice.finish_reason == "length":
            inside = ", all of them thoughts" if thoughts and not text else ""
            problem = f"cut at {request.max_tokens + self._thinks()} tokens{inside}"
            return Reply("truncated", text=text, problem=problem, **about), ignored
        reply = read_reply(text, request)
        if reply.state == "malformed" and thoughts and not text:
            reply = replace(reply, problem="thoughts without an answer")
        elif reply.state == "malformed":
            ignored.add("response_format")
        logprobs = getattr(choice.logprobs, "content", None)
        if not logprobs:
            ignored.add("logprobs")
        return replace(reply, probabilities=likely(text, logprobs, reply), **about), ignored

    # --- batches ------------------------------------------------------------------------------------------------------

    def submit(self, requests: Mapping[str, Request], mark: str) -> str:
        """Upload the requests as a file, then make a batch of it that carries the mark."""
        lines = [
            {
                "custom_id": key,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": self._body(request, self._choices),
            }
            for key, request in requests.items()
        ]
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        try:
            file = self._patient.files.create(file=("saebench.jsonl", data), purpose="batch")
        except Exception as error:
            raise self._not_taken(error, handed_over=False) from None
        try:
            batch = self._client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={_MARK: mark}
            )
        except Exception as error:
            raise self._not_taken(error) from None
        return str(batch.id)

    def find(self, mark: str) -> str | None:
        try:
            newest = islice(self._patient.batches.list(limit=100), 1000)
            return next((str(batch.id) for batch in newest if (batch.metadata or {}).get(_MARK) == mark), None)
        except Exception as error:
            raise JudgeError(f"batches cannot be listed: {self._problem(error)}") from None

    def collect(self, batch: str, requests: Mapping[str, Request]) -> Mapping[str, Reply] | None:
        """The replies of a batch that has ended, from its file of answers and its file of errors."""
        import openai

        try:
            found = self._patient.batches.retrieve(batch)
            if found.status not in _FINISHED:
                return None
            if found.status == "failed":
                reasons = [e.message or "" for e in (found.errors.data or [])] if found.errors else []
                raise BatchLost(f"batch {batch} was refused: {self._line('; '.join(reasons))}")
            files = [name for name in (found.output_file_id, found.error_file_id) if name]
            lines = [
                line for name in files for line in self._patient.files.content(name).text.split("\n") if line.strip()
            ]
        except openai.NotFoundError:
            raise BatchLost(f"batch {batch} is no longer at {self.url or self.home}: run it again") from None
        except BatchLost:
            raise
        except Exception as error:
            raise JudgeError(f"batch {batch} cannot be collected: {self._problem(error)}") from None
        return dict(self._batch_lines(lines, requests))

    def _batch_lines(self, lines: Sequence[str], requests: Mapping[str, Request]) -> Iterator[tuple[str, Reply]]:
        from openai.types.chat import ChatCompletion

        for line in lines:
            try:
                item = json.loads(line)
                key = item["custom_id"]
                request = requests[key]
            except (ValueError, KeyError, TypeError):
                continue  # not one of ours; requests without a line have failed
            response, error = item.get("response") or {}, item.get("error") or {}
            usage = None  # an answer that cannot be read was charged for all the same
            try:
                if response.get("status_code") == 200:
                    yield key, self._reply(ChatCompletion.model_validate(response["body"]), request)[0]
                    continue
                usage = None if response.get("status_code") in UNSURE else Usage(0, 0)
                problem = error.get("message") or error.get("code") or json.dumps(response.get("body"))
            except Exception as odd:  # an answer of a strange shape
                problem = f"{type(odd).__name__}: {odd}"
            yield key, Reply("failed", problem=self._line(str(problem)), usage=usage)


# --- refusals --------------------------------------------------------------------------------------------


def _sent(choices: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    return {name: values[0] for name, values in choices.items() if values[0] is not None}


def _refused(error: Any, request: Request) -> str | None:
    """The parameter that an error refuses; None if it concerns none of ours.

    The error's own `param` decides. Other servers name the parameter in their message, which may also quote the request's
    text: a name in that text shows nothing.
    """
    names = {word: name for name in _OFFICIAL for word in (name, *_ALSO.get(name, ()))}
    if error.param:
        param = str(error.param)
        return names.get(param) or names.get(re.split(r"[.\[]", param)[0])
    said = reason_in(error.body) if isinstance(error.body, dict) else ""
    text = f"{request.system}\n{request.user}".lower()
    words = "|".join(re.escape(word) for word in sorted(names, key=len, reverse=True) if word not in text)
    found = re.search(rf"(?<!\w)({words})(?!\w)", said.lower()) if words else None
    return names[found[1]] if found else None


def _alternatives(value: Any) -> int:
    return _OLD_LIKELY if value is True else int(value)


@hookimpl
def saebench_judges() -> list[type[Judge]]:
    return [OpenAI]
