"""A judge behind HTTP, for tests: one loopback server that speaks OpenAI's and Anthropic's wire formats, with faults on demand.

    with JudgeServer(lambda asked: {name: True for name in asked.fields}) as server:
        judge = server.openai()        # or server.anthropic(): opened, through the vendor's SDK

The answer is a function of what was asked. It returns the fields of the reply, the reply's raw text, or a fault.
"""

import gzip
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from saebench.judge import Judge
from saebench.judging.choose import make_judge

MODEL = "test-model"


@dataclass(frozen=True)
class Asked:
    """One call as it arrived. `attempt` counts from 1 how often this user text was sent; no schema, no `fields`."""

    api: str
    system: str
    user: str
    fields: tuple[str, ...]
    max_tokens: int
    attempt: int
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Said:
    """A reply's raw text; `tokens` with the log-probabilities of their alternatives, for OpenAI's format."""

    text: str
    tokens: tuple[tuple[str, Mapping[str, float]], ...] = ()


@dataclass(frozen=True)
class Status:
    """An HTTP error; `param` is the parameter that OpenAI says it is about."""

    code: int
    retry_after: str | None = None
    message: str = "an error on purpose"
    location: str | None = None
    param: str | None = None


@dataclass(frozen=True)
class Raw:
    """Any body. `drip`: its headers or its body come byte by byte and never end, or the body is endless."""

    body: bytes
    code: int = 200
    encoding: str | None = None
    drip: str | None = None


@dataclass(frozen=True)
class Hang:
    """No answer for so long."""

    seconds: float


@dataclass(frozen=True)
class CutBody:
    """The connection ends in the middle of the answer."""


@dataclass(frozen=True)
class Refusal:
    """The model declines."""


@dataclass(frozen=True)
class Truncated:
    """The reply is cut at max_tokens."""

    text: str = '{"a": tr'


@dataclass(frozen=True)
class Expired:
    """In a batch: not done in time."""


Fault = Raw | Status | Hang | CutBody | Refusal | Truncated | Expired
Answer = Callable[[Asked], Mapping[str, Any] | str | Said | Fault]


@dataclass
class Seen:
    """One HTTP request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Batch:
    items: dict[str, dict[str, Any]]
    polls: int = 0
    metadata: Mapping[str, str] | None = None


class JudgeServer:
    """The server; `seen` holds every HTTP request, `asked` every call in the order in which they came.

    Attributes:
        polls: how often a batch is looked at before it is finished.
        models: the models that it lists.
        thinking: what Anthropic's list of models says can turn thinking off.
        structured: whether it says that its models can be held to a schema.
        results_url: where a batch's results are said to lie (Anthropic); None: here.
        listing: what it answers instead of its models.
        usage: counts of tokens in place of real ones, unless 0.
        compress: whether replies are compressed, though nobody asked for it.
        batching: whether it knows of batches.
        deaf: takes a batch and ends the connection without a word.
    """

    def __init__(self, answer: Answer, *, polls: int = 1, models: tuple[str, ...] = (MODEL,)) -> None:
        self.answer, self.polls, self.models = answer, polls, models
        self.thinking: tuple[str, ...] = ("disabled",)
        self.structured = True
        self.results_url: str | None = None
        self.deaf = False
        self.listing: Status | Raw | None = None
        self.usage: Any = 0
        self.compress = False
        self.batching = True
        self.seen: list[Seen] = []
        self.asked: list[Asked] = []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Batch] = {}
        self.most_at_once = 0
        self._now = 0
        self._attempts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True

    def __enter__(self) -> "JudgeServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def url(self, api: str) -> str:
        """What --judge-url is for this API."""
        return f"{self.root}/v1" if api == "openai" else self.root

    def judge(self, api: str, *, timeout: float = 5.0, retries: int = 3, model: str = MODEL) -> Judge:
        """An opened judge that asks this server."""
        judge: Any = make_judge(f"{api}:{model}", self.url(api))
        judge.timeout, judge.retries = timeout, retries
        judge.open()
        opened: Judge = judge
        return opened

    def official(self, api: str, monkeypatch: Any, **options: Any) -> Judge:
        """The same, for a server that takes itself for the provider's own address."""
        judge: Any = make_judge(f"{api}:{options.pop('model', MODEL)}")
        monkeypatch.setattr(type(judge), "home", self.url(api))
        monkeypatch.setattr(type(judge), "timeout", options.get("timeout", 5.0))
        monkeypatch.setattr(type(judge), "retries", options.get("retries", 3))
        judge.open()
        opened: Judge = judge
        return opened

    # --- what it does with a call -------------------------------------------------------------------------------------

    def _ask(self, api: str, body: Mapping[str, Any]) -> Any:
        asked = self._read(api, body)
        with self._lock:
            self.asked.append(asked)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            return self.answer(asked)
        finally:
            with self._lock:
                self._now -= 1

    def _read(self, api: str, body: Mapping[str, Any]) -> Asked:
        if api == "openai":
            texts = {m["role"]: m["content"] for m in body["messages"]}
            system, user = texts["system"], texts["user"]
            schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema", {})
            most = body.get("max_tokens") or body.get("max_completion_tokens")
        else:
            system, user = body["system"], body["messages"][0]["content"]
            schema = ((body.get("output_config") or {}).get("format") or {}).get("schema", {})
            most = body["max_tokens"]
        with self._lock:
            self._attempts[user] += 1
            attempt = self._attempts[user]
        return Asked(api, system, user, tuple(schema.get("properties", {})), most, attempt, body)

    def reply(self, api: str, said: Any, body: Mapping[str, Any]) -> dict[str, Any]:
        """A call's answer in the API's format; what is no text is a refusal or a cut."""
        refused, cut = isinstance(said, Refusal), isinstance(said, Truncated)
        if refused:
            text = ""
        elif isinstance(said, str):
            text = said
        else:
            text = said.text if isinstance(said, Said | Truncated) else json.dumps(said)
        tokens = len(json.dumps(body)) // 4, max(1, len(text) // 4)
        tokens = (self.usage, self.usage) if self.usage != 0 else tokens
        model = f"{body['model']}-2026-01-01"
        if api == "anthropic":
            reason = "refusal" if refused else "max_tokens" if cut else "end_turn"
            content = [{"type": "text", "text": text}] if text else []
            usage = {"input_tokens": tokens[0], "output_tokens": tokens[1]}
            return {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "stop_reason": reason,
                    "stop_sequence": None, "content": content, "usage": usage}  # fmt: skip
        logprobs = None
        if isinstance(said, Said) and said.tokens and body.get("logprobs"):
            logprobs = {"content": [_token(token, likely) for token, likely in said.tokens], "refusal": None}
        refusal = "I would rather not." if refused else None
        message = {"role": "assistant", "content": None if refused else text, "refusal": refusal}
        choice = {"index": 0, "message": message, "finish_reason": "length" if cut else "stop", "logprobs": logprobs}
        usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": 1}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [choice],
            "usage": usage,
        }

    # --- batches ------------------------------------------------------------------------------------------------------

    def keep_batch(self, items: dict[str, dict[str, Any]], metadata: Mapping[str, str] | None = None) -> str:
        with self._lock:
            name = f"batch_{len(self.batches) + 1}"
            self.batches[name] = Batch(items, metadata=metadata)
        if self.deaf:
            raise ConnectionResetError
        return name

    def finished(self, name: str) -> bool:
        self.batches[name].polls += 1
        return self.batches[name].polls > self.polls

    def results(self, api: str, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(lines, error lines) of a batch, in another order than they were asked in."""
        lines, errors = [], []
        for key, body in reversed(self.batches[name].items.items()):
            said = self._ask(api, body)
            if isinstance(said, Expired | Status):
                errors.append(_batch_error(api, key, said))
            elif api == "openai":
                lines.append({"id": "r", "custom_id": key, "response": {"status_code": 200, "body": self.reply(api, said, body)},
                              "error": None})  # fmt: skip
            else:
                lines.append(
                    {"custom_id": key, "result": {"type": "succeeded", "message": self.reply(api, said, body)}}
                )
        return lines, errors


def _token(token: str, likely: Mapping[str, float]) -> dict[str, Any]:
    others = [{"token": other, "logprob": logprob, "bytes": None} for other, logprob in likely.items()]
    return {"token": token, "logprob": likely.get(token, -9.0), "bytes": None, "top_logprobs": others}


def _batch_error(api: str, key: str, fault: Any) -> dict[str, Any]:
    if api == "openai":
        if isinstance(fault, Expired):
            return {
                "id": "r",
                "custom_id": key,
                "response": None,
                "error": {"code": "batch_expired", "message": "it expired"},
            }
        body = {"error": {"message": fault.message}}
        return {"id": "r", "custom_id": key, "response": {"status_code": fault.code, "body": body}, "error": None}
    if isinstance(fault, Expired):
        return {"custom_id": key, "result": {"type": "expired"}}
    error = {"type": "error", "error": {"type": "api_error", "message": fault.message}, "request_id": None}
    return {"custom_id": key, "result": {"type": "errored", "error": error}}


def _handler(server: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = (
            -1
        )  # an answer leaves in one piece: a small second one would wait 40 ms for the first to be acknowledged

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            self._serve(b"")

        def do_POST(self) -> None:
            self._serve(self.rfile.read(int(self.headers["content-length"])))

        def _serve(self, body: bytes) -> None:
            headers = {k.lower(): v for k, v in self.headers.items()}
            server.seen.append(Seen(self.command, self.path, headers, body))
            api = "anthropic" if "anthropic-version" in headers else "openai"
            path = self.path.partition("?")[0]
            try:
                self._route(api, path, body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def _route(self, api: str, path: str, body: bytes) -> None:
            if path in ("/v1/chat/completions", "/v1/messages"):
                self._call(api, json.loads(body))
            elif path.startswith("/v1/models") and server.listing:
                self._raw(server.listing) if isinstance(server.listing, Raw) else self._error(api, server.listing)
            elif not server.batching and not path.startswith("/v1/models"):
                self._error(api, Status(404))
            elif path == "/v1/models":
                data = [_model(api, name, server) for name in server.models]
                self._json({"object": "list", "data": data, "has_more": False, "first_id": None, "last_id": None})
            elif path.startswith("/v1/models/"):
                name = path.rsplit("/", 1)[1]
                self._json(_model(api, name, server)) if name in server.models else self._error(api, Status(404))
            elif api == "openai":
                self._openai_batch(path, body)
            else:
                self._anthropic_batch(path, body)

        def _call(self, api: str, body: dict[str, Any]) -> None:
            said = server._ask(api, body)
            if isinstance(said, Status):
                self._error(api, said)
            elif isinstance(said, Raw):
                self._raw(said)
            elif isinstance(said, Hang):
                time.sleep(said.seconds)
                self.close_connection = True
            elif isinstance(said, CutBody):
                data = json.dumps(server.reply(api, {}, body)).encode()
                self._start(200, {"content-type": "application/json", "content-length": str(len(data))})
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.close_connection = True
            else:
                self._json(server.reply(api, said, body))

        def _openai_batch(self, path: str, body: bytes) -> None:
            if path == "/v1/files":
                name = f"file-{len(server.files) + 1}"
                lines = re.findall(rb'^\{"custom_id".*\}\r?$', body, re.MULTILINE)
                server.files[name] = b"\n".join(line.rstrip(b"\r") for line in lines)
                self._json({"id": name, "object": "file", "bytes": 1, "created_at": 1, "filename": "f", "purpose": "batch",
                            "status": "processed"})  # fmt: skip
            elif path == "/v1/batches" and not body:
                found = [
                    _openai_batch(name, False) | {"metadata": one.metadata} for name, one in server.batches.items()
                ]
                self._json({"object": "list", "data": found[::-1], "has_more": False})
            elif path == "/v1/batches":
                asked = json.loads(body)
                items = [json.loads(line) for line in server.files[asked["input_file_id"]].split(b"\n")]
                kept = server.keep_batch({item["custom_id"]: item["body"] for item in items}, asked.get("metadata"))
                self._json(_openai_batch(kept, False))
            elif path.startswith("/v1/batches/"):
                name = path.rsplit("/", 1)[1]
                if name not in server.batches:
                    return self._error("openai", Status(404))
                done = server.finished(name)
                if done and f"out-{name}" not in server.files:
                    for kind, part in zip(("out", "err"), server.results("openai", name), strict=True):
                        server.files[f"{kind}-{name}"] = _lines(part)
                self._json(_openai_batch(name, done))
            else:
                self._text(server.files[path.split("/")[3]])
            return None

        def _anthropic_batch(self, path: str, body: bytes) -> None:
            if path == "/v1/messages/batches":
                items = {item["custom_id"]: item["params"] for item in json.loads(body)["requests"]}
                return self._json(_anthropic_batch(server.keep_batch(items), None))
            name = path.split("/")[4]
            if name not in server.batches:
                return self._error("anthropic", Status(404))
            if path.endswith("/results"):
                lines, errors = server.results("anthropic", name)
                return self._text(_lines(errors + lines))
            url = server.results_url or f"{server.root}/v1/messages/batches/{name}/results"
            return self._json(_anthropic_batch(name, url if server.finished(name) else None))

        def _error(self, api: str, status: Status) -> None:
            error: dict[str, Any] = {
                "message": status.message,
                "type": "api_error",
                "code": None,
                "param": status.param,
            }
            headers = {"retry-after": status.retry_after} if status.retry_after else {}
            headers |= {"location": status.location} if status.location else {}
            self._json({"type": "error", "error": error}, status.code, headers)

        def _raw(self, raw: Raw) -> None:
            if raw.drip:
                return self._drip(raw)
            kind = "application/json" if raw.body[:1] in (b"{", b"[") or raw.encoding else "text/html"
            headers = {"content-type": kind, "content-length": str(len(raw.body))}
            self._start(raw.code, headers | ({"content-encoding": raw.encoding} if raw.encoding else {}))
            self.wfile.write(raw.body)
            return None

        def _drip(self, raw: Raw) -> None:
            """Until the client hangs up, or for some seconds."""
            self.close_connection = True
            headers = b"HTTP/1.1 200 OK\r\n"
            if raw.drip != "headers":
                headers += b"content-type: application/json\r\ncontent-length: 999999999\r\n\r\n"
            self.wfile.write(headers)
            piece, wait = (b" " * 2**16, 0.0) if raw.drip == "endless" else (b"x", 0.05)
            end = time.monotonic() + 5
            while time.monotonic() < end:
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(wait)

        def _json(self, body: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> None:
            data = json.dumps(body).encode()
            if server.compress:
                data, headers = gzip.compress(data), {**(headers or {}), "content-encoding": "gzip"}
            self._start(code, {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})})
            self.wfile.write(data)

        def _text(self, data: bytes) -> None:
            self._start(200, {"content-type": "application/octet-stream", "content-length": str(len(data))})
            self.wfile.write(data)

        def _start(self, code: int, headers: Mapping[str, str]) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    return Handler


def _lines(items: list[dict[str, Any]]) -> bytes:
    """JSON lines as vendors write them: what is not ASCII stands for itself."""
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items).encode(errors="replace")


def _openai_batch(name: str, done: bool) -> dict[str, Any]:
    return {"id": name, "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "f", "completion_window": "24h",
            "created_at": 1, "status": "completed" if done else "in_progress", "output_file_id": f"out-{name}" if done else None,
            "error_file_id": f"err-{name}" if done else None}  # fmt: skip


def _anthropic_batch(name: str, results: str | None) -> dict[str, Any]:
    day = "2026-01-01T00:00:00Z"
    counts = {"canceled": 0, "errored": 0, "expired": 0, "processing": 0, "succeeded": 0}
    return {"id": name, "type": "message_batch", "created_at": day, "expires_at": day, "request_counts": counts,
            "processing_status": "ended" if results else "in_progress", "results_url": results}  # fmt: skip


def _model(api: str, name: str, server: JudgeServer) -> dict[str, Any]:
    if api == "openai":
        return {"id": name, "object": "model", "created": 1, "owned_by": "tests"}
    types = {way: {"supported": way in server.thinking} for way in ("adaptive", "between_tools", "disabled", "enabled")}
    yes = {"supported": True}
    abilities = {
        "batch": yes,
        "structured_outputs": {"supported": server.structured},
        "thinking": {"supported": True, "types": types},
    }
    return {"id": name, "type": "model", "display_name": name, "created_at": "2026-01-01T00:00:00Z", "lifecycle": "active",
            "capabilities": abilities}  # fmt: skip


# --- judges that are known ---------------------------------------------------------------------------------------------


@dataclass
class Coin:
    """Answers each boolean field by a hash of what was asked: no state, so the order of calls does not matter."""

    seed: int = 0
    strings: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, asked: Asked) -> dict[str, Any]:
        import hashlib

        def flip(name: str) -> bool:
            return hashlib.sha256(f"{self.seed}|{asked.system}|{asked.user}|{name}".encode()).digest()[0] % 2 == 0

        return {name: self.strings.get(name, flip(name)) for name in asked.fields}


def always(value: bool) -> Answer:
    """Answers every field with the same."""
    return lambda asked: dict.fromkeys(asked.fields, value)
