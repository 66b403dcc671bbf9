"""Boards as one self-contained HTML page: overview, charts, filters, tables, and every SAE's details.

The templates escape every value; the page's scripts show text through textContent only.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from saebench import hookimpl
from saebench.board.charts import bundle, scatter_spec, styles
from saebench.board.html_page import render_page
from saebench.board.plots import FLOORS, architecture, architectures_of, label, plots, sparsity_label
from saebench.board.tables import LEGEND, caption, heading, notes
from saebench.report import Board, Cell, Column, Report, Row
from saebench.text import clean

from .sae_pages import about, kept_names, page_names, sae_pages

# Rows that a long table shows before all are requested: a thousand take a browser half a second to lay out.
_SHOWN = 200
# Boards up to this size carry which SAE is better than which; the matrix grows with the square.
_PAIRS = 300


class Html:
    """One self-contained page; written to a file, it has a page for each SAE in a folder beside it."""

    name = "html"

    def render(self, boards: Sequence[Board], folder: str | None = None) -> str:
        """The boards' page, with links to `pages` where they lie in a folder of that name beside it."""
        names = page_names(boards) if folder else {}
        return render_page(
            __package__,
            "board.html",
            title="SAE leaderboard",
            legend=LEGEND,
            sections=[_section(i, board, names, folder) for i, board in enumerate(boards)],
            shown=_SHOWN,
            data=_data(boards),
            vega=Markup(bundle()) if boards else "",
        )

    def pages(self, boards: Sequence[Board], home: str) -> dict[str, str]:
        """A page for each SAE by its file's name, each with a link to the page `home` one folder up."""
        return sae_pages(boards, f"../{quote(home)}")


def _section(number: int, board: Board, names: Mapping[str, str], folder: str | None) -> dict[str, Any]:
    """The values that the template needs of one board."""
    columns = board.shown
    return {
        "number": number,
        "caption": caption(board),
        "columns": columns,
        "heads": [(name, "") for name in ("SAE", "architecture", "latents")]
        + [(heading(c, columns), c.direction or "") for c in columns],
        "rows": [_row(row, columns, _links(row, names, folder)) for row in board.rows],
        "notes": notes(board),
    }


def _links(row: Row, names: Mapping[str, str], folder: str | None) -> dict[str, str]:
    """Links to the SAE's page, and to the pages that its metrics left beside the record, by their text."""
    if folder is None:
        return {}
    found = {"page": names[str(row.record.sae["sha256"])]} | kept_names(row)
    return {clean(what, 40): f"{quote(folder)}/{quote(file)}" for what, file in found.items()}


def _row(row: Row, columns: Sequence[Column], links: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": clean(row.name),
        "architecture": architecture(row),
        "latents": _width(row),
        "links": links,
        "cells": [row.cells[column] for column in columns],
    }


def _width(row: Row) -> int:
    width = row.record.sae.get("d_sae")
    return width if isinstance(width, int) else 0


# --- data for the scripts --------------------------------------------------------------------------------------------


def _data(boards: Sequence[Board]) -> dict[str, Any]:
    """Everything that the page draws and filters."""
    names = architectures_of(boards)
    templates = [scatter_spec([], "%x%", "%y%", names, legend=False, log=log) for log in (False, True)]
    return {
        "styles": styles(names),
        "floors": [name for name in names if name in FLOORS],
        "linear": json.dumps(templates[0]),
        "log": json.dumps(templates[1]),
        "boards": [_board(board, names) for board in boards],
    }


def _board(board: Board, names: Sequence[str]) -> dict[str, Any]:
    """A board's scores that are not points of a curve: names once, then a row of cells for each SAE.

    Facts that all rows share stand once in `common`; `facts` is the order in which they are shown. `main` is the score of the
    overview; `better` holds, for scores with ranks, a hexadecimal bit set per SAE of those it is better than.
    """
    columns = [c for c in board.columns if c.at is None]
    abouts = [about(row) for row in board.rows]
    facts = list(dict.fromkeys(name for one in abouts for name in one))
    common = {name: abouts[0][name] for name in facts if len({one.get(name) for one in abouts}) == 1}
    cut = _common_start([clean(row.name) for row in board.rows])
    main = next((c for c in board.shown if c.direction and c.at is None), None)
    return {
        "site": [clean(board.model), clean(board.hook)],
        "task": clean(board.task).rpartition("@")[0] + (f" ({clean(board.variant)})" if board.variant else ""),
        "caption": caption(board),
        "sparsity": sparsity_label(board) if board.sparsity else "",
        "columns": [f"{clean(c.metric, 40)}.{clean(c.key, 40)}" for c in columns],
        "labels": [label(c) for c in columns],
        "signs": [{"higher": 1, "lower": -1}.get(c.direction or "", 0) for c in columns],
        "headlines": [i for i, c in enumerate(columns) if c in board.shown],
        "main": columns.index(main) if main in columns else None,
        "better": _better(board, columns),
        "charts": _charts(board, main, names),
        "facts": facts,
        "common": common,
        "rows": [
            {
                "id": clean(row.record.sae["sha256"])[:12],
                "name": clean(row.name),
                "short": clean(row.name)[cut:],
                "arch": architecture(row),
                "width": _width(row),
                "l0": None if row.sparsity is None else _numbers(row.sparsity)[:3],
                "about": {name: value for name, value in one.items() if name not in common},
                "cells": [_shown(row.cells[c]) for c in columns],
            }
            for row, one in zip(board.rows, abouts, strict=True)
        ],
    }  # fmt: skip


def _common_start(names: Sequence[str]) -> int:
    """The length of the start that all names share, up to a separator."""
    first, last = min(names, default=""), max(names, default="")  # all others lie between them
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    start = first[:same]
    return max(start.rfind(mark) for mark in "-_/. ") + 1


def _charts(board: Board, main: Column | None, names: Sequence[str]) -> list[dict[str, Any]]:
    """The small multiples, of two SAEs or more: the main score over the sparsity axis, scores over controls, and curves."""
    found = plots(board, names, legend=False)
    first = None if main is None else f"pareto-{main.key}"
    return [{"name": name, "spec": picture.spec} for name, picture in found.items()
            if name == first or not name.startswith("pareto-")
            if len({one.get("row") for one in picture.spec["data"]["values"]} - {None}) > 1]  # fmt: skip


def _better(board: Board, columns: Sequence[Column]) -> dict[int, list[str]]:
    names = [row.name for row in board.rows]
    found = {}
    for i, column in enumerate(columns):
        if column in board.better and column in board.shown and len(names) <= _PAIRS:
            matrix = board.better[column].reindex(index=names, columns=names, fill_value=False).to_numpy()
            found[i] = [hex(sum(1 << int(j) for j in np.flatnonzero(line))) for line in matrix]
    return found


def _shown(cell: Cell) -> list[Any]:
    """[value, low, high, rank, n], or the state and its reason."""
    if cell.value is None:
        return [cell.state, clean(cell.reason, 100) if cell.reason else ""]
    return [*_numbers(cell), cell.rank, cell.n]


def _numbers(cell: Cell) -> list[float | None]:
    return [None if v is None else float(f"{v:.7g}") for v in (cell.value, cell.low, cell.high)]


@hookimpl
def saebench_reports() -> list[Report]:
    return [Html()]
