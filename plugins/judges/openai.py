"""OpenAI's chat models, and every server that speaks the same protocol: vLLM, llama.cpp, Ollama."""

import json
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from saebench import hookimpl
from saebench.judge import BatchLost, Capabilities, Judge, JudgeError, Reply, Request, Usage, read_reply, value_places

from .vendor import NO_SERVICE, UNSURE, Vendor, in_words

# What is sent until the server says that it does not know it, and what then takes its place (None: nothing).
_OFFICIAL: dict[str, tuple[Any, ...]] = {
    "reasoning_effort": ("none", "minimal", "low", None),
    "temperature": (0, None),
    "logprobs": (True, None),
    "response_format": ("json_schema",),
}
_OTHERS: dict[str, tuple[Any, ...]] = {
    # Ollama and llama.cpp keep a model from thinking by it; the room for a reply is the form's.
    "reasoning_effort": ("none", None),
    "response_format": ("json_schema", None),
    "temperature": (0, None),
    "logprobs": (True, None),
}
# By what other names errors speak of them.
_ALSO = {
    "reasoning_effort": ("reasoning.effort",),
    "logprobs": ("top_logprobs",),
    "response_format": ("json_schema", "guided_json", "guided_decoding", "grammar"),
}
# Refusals of a parameter. OpenAI forbids log-probabilities with 403.
_REFUSING = (400, 403, 422)
# Words for a parameter that the model has not, whatever its value.
_UNKNOWN = re.compile(r"(unsupported|unknown) parameter|unrecognized (request )?argument|extra inputs", re.IGNORECASE)
_LIKELY = 5  # alternatives to each token; more are not allowed everywhere
_MARK = "saebench"  # under which a batch carries our own word for it
_FINISHED = ("completed", "expired", "cancelled", "failed")


class OpenAI(Vendor):
    """OpenAI's API (key in OPENAI_API_KEY), or with --judge-url any server that speaks it: vLLM, llama.cpp, Ollama."""

    name = "openai"
    variable = "OPENAI_API_KEY"
    home = "https://api.openai.com/v1"

    def __init__(self, model: str, url: str | None = None) -> None:
        super().__init__(model, url)
        self.capabilities = Capabilities(structured=True, probabilities=True, temperature=True, batch=True)
        self._choices = dict(_OFFICIAL if self.url is None else _OTHERS)
        self._lock = threading.Lock()
        # It knows no reasoning_effort at all; of another server's model no thoughts are waited for.
        self._thoughtless = self.url is not None
        self._resumed = False  # as an earlier run asked, and not answered since
        self._settled = False  # once a call was answered, nothing about the asking changes any more

    def _auth(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"}

    def open(self) -> None:
        """Find the key and the model; a call that costs is attempted once, and again only by the session, which counts it."""
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

        try:
            known = [model.id for model in self._client.with_options(max_retries=1).models.list()]
        except Exception as error:
            if not (isinstance(error, openai.APIStatusError) and error.status_code in NO_SERVICE):
                self._unreachable(error)
            known = []  # another server need not list its models
        # Some servers hold one model and take any name for it.
        if self.model not in known and (self.url is None or len(known) > 1):
            raise self._unknown_model(known)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def headroom(self) -> int:
        """Until the first answer it is not known whether the model can be kept from thinking."""
        return self.thinking if self.url is None and not self._settled else self._thinks()

    def _thinks(self) -> int:
        effort = self._choices.get("reasoning_effort", ("none",))[0]
        return 0 if effort == "none" or (effort is None and self._thoughtless) else self.thinking

    @property
    def sampling(self) -> dict[str, Any]:
        return self._sampling(self._choices)

    def _sampling(self, choices: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        """What is sent; and the room for thoughts, where no effort shows that there is some."""
        sent = _sent(choices)
        silent = "reasoning_effort" in choices and "reasoning_effort" not in sent and not self._thoughtless
        return sent | ({"thinking": self.thinking} if silent else {})

    def resume(self, sampling: Mapping[str, Any]) -> None:
        self._resumed = self._resumed or not self._settled or sampling != self.sampling
        self._choices = {name: (sampling.get(name),) for name in self._choices}
        self._thoughtless = "thinking" not in sampling
        self._settled = True
        self._note_capabilities()

    # --- one call -----------------------------------------------------------------------------------------------------

    def complete(self, request: Request) -> Reply:
        """One chat completion; what the server says it does not take is left out from then on, and asked again."""
        import openai

        while True:
            choices = dict(self._choices)
            try:
                answer = self._client.chat.completions.create(**self._body(request, choices))
                self._settled, self._resumed = True, False
                return replace(self._reply(answer, request), sampling=self._sampling(choices))
            except openai.APIStatusError as error:
                unknown = error.code in ("unsupported_parameter", "unknown_parameter") or bool(
                    _UNKNOWN.search(str(error))
                )
                if not (error.status_code in _REFUSING and self._settle(_refused(error, request), choices, unknown)):
                    raise self._no_answer(error) from None
            except Exception as error:
                raise self._no_answer(error) from None

    def _body(self, request: Request, choices: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        chosen = _sent(choices)
        strict = chosen.pop("response_format", None)
        body: dict[str, Any] = {"model": self.model, **chosen}
        if "logprobs" in chosen:
            body["top_logprobs"] = _LIKELY
        if strict:
            schema = {"name": "reply", "strict": True, "schema": request.schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        # Whether another server holds its model to the form is not known: it is told in words too.
        system = request.system if self.url is None else in_words(request)
        body["messages"] = [{"role": "system", "content": system}, {"role": "user", "content": request.user}]
        body["max_completion_tokens" if self.url is None else "max_tokens"] = request.max_tokens + self._thinks()
        return body

    def _settle(self, name: str | None, tried: Mapping[str, tuple[Any, ...]], unknown: bool) -> bool:
        """After a call in which this parameter was refused: send less of it. False: that is not it.

        Args:
            name: of the parameter.
            tried: what was sent.
            unknown: the parameter itself was refused, and not only its value.

        Raises:
            JudgeError: the judge cannot do without it.
        """
        if name is None or name not in tried or tried[name][0] is None:
            return False
        with self._lock:
            values = self._choices[name]
            if values != tried[name]:  # another thread met the same and has settled it
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

    def _reply(self, answer: Any, request: Request) -> Reply:
        """The reply that a chat completion is."""
        choice = answer.choices[0]
        usage = None
        if answer.usage is not None:
            usage = Usage(answer.usage.prompt_tokens, answer.usage.completion_tokens)
        text = self._redact(choice.message.content or "")
        about: dict[str, Any] = {"model": self._redact(answer.model or ""), "usage": usage}
        if choice.message.refusal:
            return Reply("refused", text=text, problem=self._redact(choice.message.refusal), **about)
        if choice.finish_reason == "content_filter":
            return Reply("refused", text=text, problem="the provider's filter", **about)
        if choice.finish_reason == "length":
            return Reply(
                "truncated", text=text, problem=f"cut at {request.max_tokens + self._thinks()} tokens", **about
            )
        reply = read_reply(text, request)
        likely: Mapping[str, float] = {}
        if choice.logprobs is not None and choice.logprobs.content:
            tokens = [(t.token, {a.token: a.logprob for a in t.top_logprobs}) for t in choice.logprobs.content]
            likely = probabilities(text, tokens, reply)
        return replace(reply, probabilities=likely, **about)

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
                continue  # not one of ours: what lacks a line has failed
            response, error = item.get("response") or {}, item.get("error") or {}
            usage = None  # an answer that cannot be read was charged for all the same
            try:
                if response.get("status_code") == 200:
                    yield key, self._reply(ChatCompletion.model_validate(response["body"]), request)
                    continue
                usage = None if response.get("status_code") in UNSURE else Usage(0, 0)
                problem = error.get("message") or error.get("code") or json.dumps(response.get("body"))
            except Exception as odd:  # an answer of a strange shape
                problem = f"{type(odd).__name__}: {odd}"
            yield key, Reply("failed", problem=self._line(str(problem)), usage=usage)


# --- what a server refuses --------------------------------------------------------------------------------------------


def _sent(choices: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    return {name: values[0] for name, values in choices.items() if values[0] is not None}


def _refused(error: Any, request: Request) -> str | None:
    """The parameter that an error refuses, None where it is not about one of ours.

    The error's own `param` says it. Servers that have none name the parameter in their message, which may also quote the text
    that was sent: a name that stands in that text shows nothing.
    """
    names = {word: name for name in _OFFICIAL for word in (name, *_ALSO.get(name, ()))}
    if error.param:
        param = str(error.param)
        return names.get(param) or names.get(re.split(r"[.\[]", param)[0])
    said = _message(error.body)
    text = f"{request.system}\n{request.user}".lower()
    words = "|".join(re.escape(word) for word in sorted(names, key=len, reverse=True) if word not in text)
    found = re.search(rf"(?<!\w)({words})(?!\w)", said.lower()) if words else None
    return names[found[1]] if found else None


def _message(body: Any) -> str:
    """What an error says in words: its message, or FastAPI's places and reasons, without the input that these repeat."""
    if not isinstance(body, dict):
        return ""
    details = body.get("detail")
    if isinstance(details, list):
        return "; ".join(f"{d.get('loc')} {d.get('msg')}" for d in details if isinstance(d, dict))
    return str(body.get("message") or details or "")


# --- log-probabilities -----------------------------------------------------------------------------------------------


def probabilities(text: str, tokens: Sequence[tuple[str, Mapping[str, float]]], reply: Reply) -> dict[str, float]:
    """P(true) of each boolean field, between true and false, from each token's likeliest alternatives.

    Args:
        text: the reply.
        tokens: the reply's tokens in order, each with the log-probabilities (natural) of what might have stood there.
        reply: `text`, read.
    """
    if "".join(token for token, _ in tokens) != text:
        return {}
    starts = [0]
    for token, _ in tokens:
        starts.append(starts[-1] + len(token))
    found: dict[str, float] = {}
    for name, place in value_places(text).items():
        if not isinstance(reply.data.get(name), bool):
            continue
        at = next(i for i in range(len(tokens)) if starts[i] <= place < starts[i + 1])
        before = tokens[at][0][: place - starts[at]]
        mass = {"true": 0.0, "false": 0.0}
        for alternative, logprob in tokens[at][1].items():
            word = _word(alternative, before)
            if word:
                mass[word] += math.exp(logprob)
        if sum(mass.values()) > 0:
            found[name] = mass["true"] / sum(mass.values())
    return found


def _word(token: str, before: str) -> str | None:
    """Which of true and false a token begins with, after what stands `before` it in the token that was chosen."""
    rest = token[len(before) :] if token.startswith(before) else token if not before.strip() else ""
    rest = rest.lstrip()
    return next((word for word in ("true", "false") if rest and (rest.startswith(word) or word.startswith(rest))), None)


@hookimpl
def saebench_judges() -> list[type[Judge]]:
    return [OpenAI]
