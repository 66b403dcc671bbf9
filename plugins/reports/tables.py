"""Boards as Markdown, LaTeX, CSV, JSON and parquet.

Names are untrusted: in Markdown they cannot start a cell, a link or a tag, in CSV no formula.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from saebench import hookimpl
from saebench.board.tables import LEGEND, caption, heading, notes
from saebench.report import Board, Cell, Column, Report, Row
from saebench.text import clean, interval_text, value_text


class Markdown:
    """One table of headlines per board, for READMEs and issues."""

    name = "markdown"

    def render(self, boards: Sequence[Board]) -> str:
        return "\n".join(self._board(board) for board in boards)

    def _board(self, board: Board) -> str:
        columns = board.shown
        names = [_escape(heading(c, columns)) for c in columns]
        lines = [f"### {_escape(caption(board))}", ""]
        if board.rows:
            lines.append(_line(["SAE", "architecture", "latents", *names]))
            lines.append(_line(["---", "---", *["--:"] * (len(columns) + 1)]))
        for row in board.rows:
            about = [_escape(clean(row.name)), *(_escape(clean(row.record.sae.get(k) or "?")) for k in _ABOUT)]
            lines.append(_line([*about, *(_cell(row.cells[c]) for c in columns)]))
        if board.rows:
            lines += ["", f"_{_escape(LEGEND)}_", ""]
        lines += [f"- {_escape(note)}" for note in notes(board)]
        return "\n".join(lines).rstrip() + "\n"


_ABOUT = ("architecture", "d_sae")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Escape text for Markdown, so that no table cell, emphasis, link, HTML tag or entity begins in it."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", safe).replace("://", ":\u200b//")


def _cell(cell: Cell) -> str:
    rank = "" if cell.rank is None else f" **\\#{cell.rank}**"
    interval = interval_text(cell)
    return f"{value_text(cell)}{rank}" + (f"<br>{interval}" if interval else "")


class Latex:
    """One table of headlines per board, for papers; needs the package booktabs."""

    name = "latex"

    def render(self, boards: Sequence[Board]) -> str:
        return "\n".join(self._board(board) for board in boards)

    def _board(self, board: Board) -> str:
        columns = board.shown
        heads = ["SAE", "architecture", "latents", *(_tex(heading(c, columns)) for c in columns)]
        lines = [f"% {_tex(caption(board))}", *(f"% {_tex(note)}" for note in notes(board))]
        if board.rows:
            lines += [rf"\begin{{tabular}}{{ll{'r' * (len(columns) + 1)}}}", r"\toprule", _tex_line(heads), r"\midrule"]
            for row in board.rows:
                about = [_tex(clean(row.name)), *(_tex(clean(row.record.sae.get(k) or "?")) for k in _ABOUT)]
                lines.append(_tex_line([*about, *(_tex_cell(row.cells[c]) for c in columns)]))
            lines += [r"\bottomrule", r"\end{tabular}"]
        return "\n".join(lines) + "\n"


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↑": r"$\uparrow$",
        "↓": r"$\downarrow$", "…": r"\ldots{}", "·": r"$\cdot$"} | {c: f"\\{c}" for c in "&%$#_{}"}  # fmt: skip


def _tex(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(_TEX.get(c, c) for c in text)


def _tex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tex_cell(cell: Cell) -> str:
    if cell.low is None or cell.high is None:
        return _tex(value_text(cell))
    return f"{value_text(cell)} [{interval_text(cell).replace(' … ', ', ')}]"


# --- long form -------------------------------------------------------------------------------------------------------


def _long(board: Board) -> Iterator[dict[str, Any]]:
    """A row per score of each SAE, curves included."""
    for row in board.rows:
        about = _sae(board, row)
        for column in board.columns:
            yield about | _score(column, row.cells[column])


def _sae(board: Board, row: Row) -> dict[str, Any]:
    sae = row.record.sae
    return {
        "model": board.model, "revision": board.revision, "hook": board.hook, "task": board.task,
        "corpus": board.corpus, "dtypes": board.dtypes, "sae": row.name, "sha256": sae["sha256"], "partial": row.record.partial,
        "architecture": sae.get("architecture"), "d_sae": sae.get("d_sae"), "fingerprint": row.record.fingerprint,
    }  # fmt: skip


def _score(column: Column, cell: Cell) -> dict[str, Any]:
    return {
        "metric": column.metric, "version": column.version, "key": column.key, "at": column.at, "state": cell.state,
        "value": cell.value, "low": cell.low, "high": cell.high, "rank": cell.rank, "n": cell.n, "unit": column.unit,
        "direction": column.direction, "reason": cell.reason,
    }  # fmt: skip


class Csv:
    """Long form: one line per score of each SAE, numbers in full precision."""

    name = "csv"

    def render(self, boards: Sequence[Board]) -> str:
        rows = [line for board in boards for line in _long(board)]
        out = io.StringIO()
        if rows:
            writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: _harmless(v) for k, v in row.items()} for row in rows)
        return out.getvalue()


def _harmless(value: object) -> object:
    """Escape text that a spreadsheet would read as a formula; numbers stay unchanged."""
    if not isinstance(value, str) or not value:
        return value
    text = clean(value, 300)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


class Json:
    """Boards with all rows and scores, and the reasons for omissions."""

    name = "json"

    def render(self, boards: Sequence[Board]) -> str:
        return json.dumps([self._board(board) for board in boards], indent=1, allow_nan=False) + "\n"

    def _board(self, board: Board) -> dict[str, Any]:
        return {
            "model": board.model,
            "revision": board.revision,
            "hook": board.hook,
            "task": board.task,
            "corpus": board.corpus,
            "dtypes": board.dtypes,
            "partial_left_out": board.partial,
            "notes": board.notes,
            "rows": [self._row(row) for row in board.rows],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        keys = ("name", "format", "architecture", "sha256", "d_in", "d_sae")
        return {
            "name": row.name,
            "fingerprint": row.record.fingerprint,
            "partial": row.record.partial,
            "sae": {key: _short(row.record.sae.get(key)) for key in keys},
            "scores": [_score(column, cell) for column, cell in row.cells.items()],
        }


def _short(value: object) -> object:
    """Truncate long text; other values stay unchanged."""
    return value[:1000] if isinstance(value, str) else value


class Parquet:
    """The lines of the CSV as a typed binary table, for pandas; needs --output."""

    name = "parquet"

    def render(self, boards: Sequence[Board]) -> bytes:
        columns = {
            name: pd.array([_typed(line[name], kind) for board in boards for line in _long(board)], dtype=kind)
            for name, kind in _KINDS.items()
        }
        out = io.BytesIO()
        pd.DataFrame(columns).to_parquet(out, index=False)
        return out.getvalue()


_KINDS: dict[str, Any] = {
    "model": "string", "revision": "string", "hook": "string", "task": "string", "corpus": "string", "dtypes": "string",
    "sae": "string", "sha256": "string", "partial": "boolean", "architecture": "string", "d_sae": "Int64",
    "fingerprint": "string",
    "metric": "string", "version": "Int64", "key": "string", "at": "Float64", "state": "string", "value": "Float64",
    "low": "Float64", "high": "Float64", "rank": "Int64", "n": "Int64", "unit": "string", "direction": "string",
    "reason": "string",
}  # fmt: skip


def _typed(value: object, kind: str) -> Any:
    """A value in its column's type; a value of another type becomes missing."""
    if value is None or value == "":
        return value
    if kind == "string":
        return clean(value, 300)
    if kind == "Int64":
        return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62 else None
    return value


@hookimpl
def saebench_reports() -> list[Report]:
    return [Markdown(), Latex(), Csv(), Json(), Parquet()]
