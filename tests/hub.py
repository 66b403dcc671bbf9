"""A stand-in hub for the real clients (huggingface_hub, datasets), served over HTTP on the loopback interface.

Repositories are folders, `root/models/OWNER/NAME` and `root/datasets/OWNER/NAME`, each with one commit. Requests are
logged; faults are planted with `Hub.fail`. A repository whose name holds "gated" wants the token hf_good.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|commits)/?(.*))?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Fault:
    """An answer in place of the right one, to the next `times` requests whose path holds `match`."""

    match: str
    status: int
    times: int
    headers: dict[str, str]


@dataclass
class Hub:
    """The running server.

    Attributes:
        root: the folder of repositories.
        url: its address.
        requests: (method, path) of each request.
        sent: bytes of each file that was sent, by path.
        waits: seconds that a client wanted to wait before another attempt, where the `hub` fixture cuts waiting short.
    """

    root: Path
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def model(self, repo: str) -> Path:
        """The folder of a model repository, made if need be."""
        folder = self.root / "models" / repo
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def dataset(self, repo: str) -> Path:
        """The folder of a data set, made if need be."""
        folder = self.root / "datasets" / repo
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, folder: Path) -> str:
        """The repository's commit: a hash of its files."""
        names = [f"{p.relative_to(folder)}:{p.stat().st_size}" for p in _files(folder)]
        return hashlib.sha1("|".join(names).encode()).hexdigest()

    def fail(self, match: str, status: int, times: int = 1, **headers: str) -> None:
        """Answer the next requests for a path that holds `match` with an error."""
        self.faults.append(Fault(match, status, times, {k.replace("_", "-"): v for k, v in headers.items()}))

    def fault(self, path: str) -> Fault | None:
        """The planted fault that this request meets."""
        for fault in self.faults:
            if fault.times > 0 and fault.match in path:
                fault.times -= 1
                return fault
        return None


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault := self.hub.fault(path):
            self._send(fault.status, {"error": "planted"}, fault.headers)
        elif found := _API.fullmatch(path):
            self._api(found[1], found[2], found[3] or "revision", found[4] or "", body)
        elif found := _FILE.fullmatch(path):
            self._file("datasets" if found[1] else "models", found[2], found[3], found[4])
        else:
            self._error(404, "EntryNotFound", f"no {path}")

    do_HEAD = do_POST = do_GET

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _error(self, status: int, code: str, message: str) -> None:
        self._send(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def _repository(self, kind: str, repo: str, revision: str) -> tuple[Path, str] | None:
        folder = self.hub.root / kind / repo
        if not folder.is_dir():
            self._error(401, "RepoNotFound", "Repository not found")
            return None
        commit = self.hub.commit(folder)
        if revision not in ("", "main", commit):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return folder, commit

    def _api(self, kind: str, repo: str, what: str, rest: str, body: bytes) -> None:
        revision, _, inside = rest.partition("/")
        found = self._repository(kind, repo, revision)
        if found is None:
            return
        folder, commit = found
        entries = [_entry(folder, p) for p in sorted((folder / inside).rglob("*"))]
        if what == "revision":
            names = [{"rfilename": e["path"]} for e in entries if e["type"] == "file"]
            self._send(200, {"id": repo, "sha": commit, "siblings": names, "tags": [], "private": False})
        elif what == "commits":
            self._send(
                200, [{"id": commit, "title": "", "message": "", "authors": [], "date": "2025-01-01T00:00:00.000Z"}]
            )
        elif what == "tree" and not (folder / inside).exists():
            self._error(404, "EntryNotFound", f"{inside} does not exist")
        elif what == "tree":
            recursive = "recursive=true" in self.path.lower()
            self._send(200, [e for e in entries if recursive or "/" not in e["path"][len(inside) :].strip("/")])
        else:
            wanted = json.loads(body)["paths"]
            self._send(200, [_entry(folder, folder / p) for p in wanted if (folder / p).exists()])

    def _file(self, kind: str, repo: str, revision: str, name: str) -> None:
        found = self._repository(kind, repo, revision)
        if found is None:
            return
        folder, commit = found
        if "gated" in repo and self.headers.get("Authorization") != "Bearer hf_good":
            self._error(401, "GatedRepo", f"Access to model {repo} is restricted.")
            return
        if not (folder / name).is_file():
            self._error(404, "EntryNotFound", "Entry not found")
            return
        data = (folder / name).read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        else:
            status = 200
        if self.command != "HEAD":
            path = f"{repo}/{name}"
            self.hub.sent[path] = self.hub.sent.get(path, 0) + len(data)
        self._send(status, data, headers)


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
    return {
        "type": "file",
        "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
        "size": path.stat().st_size,
        "path": name,
    }


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """The server, running until the block ends."""
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_clients_at(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the hub's clients in this process use that server and an empty cache."""
    import datasets
    from huggingface_hub import HfFileSystem, constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setenv("SAEBENCH_CACHE", str(home / "saebench"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    HfFileSystem.clear_instance_cache()
