"""Boards as one self-contained HTML file: tables to sort and filter, plots, and every SAE's details.

The templates escape every value; the page's script shows text through textContent only.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from saebench import hookimpl
from saebench.board.html_page import render_page
from saebench.board.plots import architecture, inline_svg, plots
from saebench.board.tables import LEGEND, caption, heading, notes
from saebench.report import Board, Cell, Column, Report, Row
from saebench.text import clean, interval_text, value_text

from .sae_pages import about, kept_names, page_names, sae_pages

# Rows that a long table shows before all are requested: a thousand take a browser half a second to lay out.
_SHOWN = 200


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
            data=[_details(board) for board in boards],
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
        "architectures": sorted({architecture(row) for row in board.rows}),
        "sparsity": clean(board.sparsity.key, 40) if board.sparsity else "",
        "columns": columns,
        "heads": [(name, "") for name in ("SAE", "architecture", "latents")]
        + [(heading(c, columns), c.direction or "") for c in columns],
        "rows": [_row(row, columns, _links(row, names, folder)) for row in board.rows],
        "figures": [
            Markup(inline_svg(figure, f"{name} of {caption(board)}", f"b{number}-{name}"))
            for name, figure in plots(board).items()
        ],
        "notes": notes(board),
    }  # fmt: skip


def _links(row: Row, names: Mapping[str, str], folder: str | None) -> dict[str, str]:
    """Links to the SAE's page, and to the pages that its metrics left beside the record, by their text."""
    if folder is None:
        return {}
    found = {"page": names[str(row.record.sae["sha256"])]} | kept_names(row)
    return {clean(what, 40): f"{quote(folder)}/{quote(file)}" for what, file in found.items()}


def _row(row: Row, columns: Sequence[Column], links: Mapping[str, str]) -> dict[str, Any]:
    width = row.record.sae.get("d_sae")
    sparsity = None if row.sparsity is None else row.sparsity.value
    return {
        "name": clean(row.name),
        "architecture": architecture(row),
        "latents": width if isinstance(width, int) else 0,
        "sparsity": "" if sparsity is None else f"{sparsity:.6g}",
        "links": links,
        "cells": [row.cells[column] for column in columns],
    }


# --- what the details show -------------------------------------------------------------------------------------------


def _details(board: Board) -> dict[str, Any]:
    """A board's scores that are not points of a curve, for the script: names once, then a row of cells for each SAE.

    Facts that all rows share stand once in `common`; `facts` is the order in which they are shown.
    """
    columns = [c for c in board.columns if c.at is None]
    abouts = [about(row) for row in board.rows]
    facts = list(dict.fromkeys(name for one in abouts for name in one))
    common = {name: abouts[0][name] for name in facts if len({one.get(name) for one in abouts}) == 1}
    return {
        "columns": [f"{clean(c.metric, 40)}.{clean(c.key, 40)}" for c in columns],
        "facts": facts,
        "common": common,
        "rows": [
            {
                "name": clean(row.name),
                "about": {name: value for name, value in one.items() if name not in common},
                "cells": [_shown(row.cells[c]) for c in columns],
            }
            for row, one in zip(board.rows, abouts, strict=True)
        ],
    }


def _shown(cell: Cell) -> list[str | int | None]:
    if cell.value is None:
        return [f"{cell.state}: {clean(cell.reason or '', 100)}"]
    return [value_text(cell), interval_text(cell), cell.rank, cell.n]


@hookimpl
def saebench_reports() -> list[Report]:
    return [Html()]
