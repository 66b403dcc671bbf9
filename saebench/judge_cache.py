"""Every reply of every judge, in one SQLite file: a run that is repeated or goes on after a kill asks only what is missing.

A reply lies under the hash of the whole request (`Request.key`), with the request beside it so that the file can be read.
Neither holds a key: those never get as far as a request.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saebench.errors import SaebenchError, one_line
from saebench.judge import Reply, Request, Usage

_TABLES = """
CREATE TABLE IF NOT EXISTS replies (
  key TEXT PRIMARY KEY, judge TEXT NOT NULL, prompt TEXT NOT NULL, request TEXT NOT NULL, reply TEXT NOT NULL,
  state TEXT NOT NULL, model TEXT, input_tokens INTEGER, output_tokens INTEGER, answered TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
  judge TEXT NOT NULL, id TEXT NOT NULL, keys TEXT NOT NULL, submitted TEXT NOT NULL, PRIMARY KEY (judge, id)
) WITHOUT ROWID;
"""
_CHUNK = 500  # variables a statement, below SQLite's oldest limit of 999


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
        wanted = list(keys)
        found: dict[str, Reply] = {}
        with self._guarded(), self._connection() as db:
            for start in range(0, len(wanted), _CHUNK):
                part = wanted[start : start + _CHUNK]
                marks = ",".join("?" * len(part))
                rows = db.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", part)
                found |= {key: _reply(text) for key, text in rows}
        return found

    def put(self, judge: Mapping[str, Any], answered: Iterable[tuple[str, Request, Reply]]) -> None:
        """Keep replies. One that is there stays, so that what was made of it can be made again, unless it was a failure."""
        now = _now()
        rows = []
        for key, request, reply in answered:
            usage = reply.usage or Usage(0, 0)
            counted = (usage.input_tokens, usage.output_tokens) if reply.usage else (None, None)
            rows.append((key, _text(judge), request.prompt, _text(asdict(request)), _text(asdict(reply)),
                         reply.state, _plain(reply.model), *counted, now))  # fmt: skip
        with self._guarded(), self._connection() as db:
            # The one row is replaced or left alone as a whole: by no later failure, and by no second opinion.
            db.executemany(
                f"INSERT INTO replies VALUES ({','.join('?' * 10)}) ON CONFLICT (key) DO UPDATE SET judge = excluded.judge, "
                "prompt = excluded.prompt, request = excluded.request, reply = excluded.reply, state = excluded.state, "
                "model = excluded.model, input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens, "
                "answered = excluded.answered WHERE replies.state = 'failed'",
                rows,
            )

    # --- batches ------------------------------------------------------------------------------------------------------

    def open_batches(self, judge: Mapping[str, Any]) -> dict[str, list[str]]:
        """Batches of this judge that were not collected: the keys of what was asked, by the provider's id."""
        with self._guarded(), self._connection() as db:
            rows = db.execute("SELECT id, keys FROM batches WHERE judge = ? ORDER BY submitted, id", (_text(judge),))
            return {batch: json.loads(keys) for batch, keys in rows}

    def open_batch(self, judge: Mapping[str, Any], batch: str, keys: Iterable[str]) -> None:
        """Note a batch as soon as the provider has given it an id."""
        with self._guarded(), self._connection() as db:
            db.execute(
                "INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?)",
                (_text(judge), batch, json.dumps(list(keys)), _now()),
            )

    def close_batch(self, judge: Mapping[str, Any], batch: str) -> None:
        """Forget a batch whose replies are kept."""
        with self._guarded(), self._connection() as db:
            db.execute("DELETE FROM batches WHERE judge = ? AND id = ?", (_text(judge), batch))


def _text(value: Any) -> str:
    return json.dumps(
        value, sort_keys=True
    )  # ASCII: half a surrogate pair, which a model may well say, fits no database


def _plain(text: str | None) -> str | None:
    return None if text is None else text.encode(errors="replace").decode()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _reply(text: str) -> Reply:
    body = json.loads(text)
    usage = body.pop("usage")
    return Reply(**body, usage=None if usage is None else Usage(**usage))
