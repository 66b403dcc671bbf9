"""The reply cache, one SQLite file: repeated and resumed runs send only requests that have no cached reply.

A reply lies under the hash of the whole request (`Request.key`), with the request beside it so that the file can be read.
Neither holds a key: those never get as far as a request.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saebench.errors import SaebenchError, one_line
from saebench.judge import Reply, Request, Usage

_TABLES = """
CREATE TABLE IF NOT EXISTS replies (
  key TEXT PRIMARY KEY, judge TEXT NOT NULL, prompt TEXT NOT NULL, request TEXT NOT NULL, reply TEXT NOT NULL,
  state TEXT NOT NULL, model TEXT, input_tokens INTEGER, output_tokens INTEGER, answered TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS handed_over (
  mark TEXT PRIMARY KEY, judge TEXT NOT NULL, batch TEXT, keys TEXT NOT NULL, sampling TEXT NOT NULL, begun TEXT NOT NULL
) WITHOUT ROWID;
"""
_CHUNK = 500  # variables a statement, below SQLite's oldest limit of 999


@dataclass(frozen=True)
class HandedOver:
    """A batch that a run has begun to hand over.

    Attributes:
        mark: our own word for it.
        batch: the provider's id; None: the run ended before it knew one.
        requests: its requests by key; None where an earlier version stored the keys alone.
        sampling: see `Reply`.
    """

    mark: str
    batch: str | None
    requests: dict[str, Request | None]
    sampling: dict[str, Any]


class ReplyCache:
    """The file of replies, and of batches that were handed over and not yet collected.

    Each change is on disk before the method returns; several processes may share the file.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            SaebenchError: it cannot be written, or is no such file.
        """
        self.path = path
        with self._guarded():
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._connection() as db:
                db.executescript(_TABLES)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise SaebenchError(
                f"the judge's replies in {self.path} cannot be read or written: {one_line(error)}; "
                "name another file with --judge-cache"
            ) from error

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=60)) as db, db:
            yield db

    def get(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The replies that are there."""
        with self._guarded(), self._connection() as db:
            return _found(db, list(keys))

    def put(
        self, judge: Mapping[str, Any], answered: Iterable[tuple[str, Request, Reply]], replaces: bool = False
    ) -> dict[str, Reply]:
        """Keep replies; returns those that the file now holds for these requests.

        Existing replies are kept so that records stay replayable, unless they failed or `replaces` is set.
        """
        now, only_failed = _now(), "WHERE replies.state = 'failed'"
        rows = []
        for key, request, reply in answered:
            usage = reply.usage or Usage(0, 0)
            counted = (usage.input_tokens, usage.output_tokens) if reply.usage else (None, None)
            rows.append((key, _text(judge), request.prompt, _text(asdict(request)), _text(asdict(reply)),
                         reply.state, _plain(reply.model), *counted, now))  # fmt: skip
        with self._guarded(), self._connection() as db:
            # The one row is replaced or left alone as a whole: unless asked to, by no later failure and no second opinion.
            db.executemany(
                f"INSERT INTO replies VALUES ({','.join('?' * 10)}) ON CONFLICT (key) DO UPDATE SET judge = excluded.judge, "
                "prompt = excluded.prompt, request = excluded.request, reply = excluded.reply, state = excluded.state, "
                "model = excluded.model, input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens, "
                f"answered = excluded.answered {'' if replaces else only_failed}",
                rows,
            )
            return _found(db, [row[0] for row in rows])

    def holds(self, judge: Mapping[str, Any], prompts: Iterable[str]) -> bool:
        """Whether any reply of this judge to one of these prompts is in the file."""
        names = list(prompts)
        with self._guarded(), self._connection() as db:
            marks = ",".join("?" * len(names))
            found = db.execute(
                f"SELECT 1 FROM replies WHERE judge = ? AND prompt IN ({marks}) LIMIT 1", (_text(judge), *names)
            )
            return found.fetchone() is not None

    # --- batches ------------------------------------------------------------------------------------------------------

    def open_batches(self, judge: Mapping[str, Any]) -> list[HandedOver]:
        """Batches of this judge that were not collected, the oldest first."""
        with self._guarded(), self._connection() as db:
            rows = db.execute(
                "SELECT mark, batch, keys, sampling FROM handed_over WHERE judge = ? ORDER BY begun, mark",
                (_text(judge),),
            )
            return [HandedOver(mark, batch, _asked(text), json.loads(how)) for mark, batch, text, how in rows]

    def open_batch(
        self, judge: Mapping[str, Any], mark: str, requests: Mapping[str, Request], sampling: Mapping[str, Any]
    ) -> None:
        """Store a batch and its requests under our own mark before it is submitted, so that any later run can collect it."""
        asked = {key: asdict(request) for key, request in requests.items()}
        with self._guarded(), self._connection() as db:
            values = (mark, _text(judge), json.dumps(asked), _text(sampling), _now())
            db.execute("INSERT INTO handed_over VALUES (?, ?, NULL, ?, ?, ?)", values)

    def name_batch(self, mark: str, batch: str) -> None:
        """Note the id that the provider has given it."""
        with self._guarded(), self._connection() as db:
            db.execute("UPDATE handed_over SET batch = ? WHERE mark = ?", (batch, mark))

    def close_batch(self, mark: str) -> None:
        """Forget a batch whose replies are kept, or that there is not."""
        with self._guarded(), self._connection() as db:
            db.execute("DELETE FROM handed_over WHERE mark = ?", (mark,))


def _found(db: sqlite3.Connection, keys: list[str]) -> dict[str, Reply]:
    found: dict[str, Reply] = {}
    for start in range(0, len(keys), _CHUNK):
        part = keys[start : start + _CHUNK]
        marks = ",".join("?" * len(part))
        rows = db.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", part)
        found |= {key: _reply(text) for key, text in rows}
    return found


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # ASCII: a model may emit half a surrogate pair, which SQLite cannot store


def _plain(text: str | None) -> str | None:
    return None if text is None else text.encode(errors="replace").decode()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _asked(text: str) -> dict[str, Request | None]:
    found = json.loads(text)
    if isinstance(found, list):
        return dict.fromkeys(found)
    return {key: Request(**body) for key, body in found.items()}


def _reply(text: str) -> Reply:
    body = json.loads(text)
    usage = body.pop("usage")
    return Reply(**body, usage=None if usage is None else Usage(**usage))
