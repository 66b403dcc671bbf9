"""Boards as one HTML file that needs nothing else: tables to sort and filter, plots, and every SAE's details.

All text is escaped on the way in: what the page's script shows, it shows through textContent.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from saebench import hookimpl
from saebench.board.html_page import html_page
from saebench.board.plots import architecture, inline_svg, plots
from saebench.board.tables import LEGEND, caption, heading, notes
from saebench.report import Board, Cell, Column, Report, Row
from saebench.text import clean, interval_text, value_text

from .sae_pages import about, kept_names, page_names, sae_pages, style

# Rows that a long table shows before it is asked for all: a thousand take a browser half a second to lay out.
_SHOWN = 200


class Html:
    """One self-contained page; written to a file, it has a page for each SAE in a folder beside it."""

    name = "html"

    def render(self, boards: Sequence[Board], folder: str | None = None) -> str:
        """The board's page, with links to `pages` where they lie in a folder of that name beside it."""
        here = files(__package__)
        script = here.joinpath("page.js").read_text(encoding="utf-8")
        names = page_names(boards) if folder else {}
        sections = (
            "\n".join(_section(i, board, names, folder) for i, board in enumerate(boards)) or "<p>No records.</p>"
        )
        data = _json([_details(board) for board in boards])
        body = _BODY.format(script=script, sections=sections, data=data, legend=escape(LEGEND))
        return html_page("SAE leaderboard", style(), body)

    def pages(self, boards: Sequence[Board], home: str) -> dict[str, str]:
        """A page for each SAE by its file's name, each with a link to the page `home` one folder up."""
        return sae_pages(boards, f"../{quote(home)}")


_BODY = """<header><h1>SAE leaderboard</h1>
<p>{legend} Only SAEs measured on the same model, hook point, task and text share a table.
Most scores move with sparsity, so look at the plots before the ranks.</p></header>
<main>
{sections}
</main>
<dialog id="details" aria-labelledby="details-name"><form method="dialog"><button autofocus>Close</button></form>
<h2 id="details-name"></h2><p><a id="details-page">All of it, curves and runs too</a></p>
<dl></dl><table><thead><tr><th>score<th>value<th>95 % interval<th>rank<th>n</tr></thead>
<tbody></tbody></table></dialog>
<div id="tip" role="status" hidden></div>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>"""


def _section(number: int, board: Board, names: Mapping[str, str], folder: str | None) -> str:
    columns = board.shown
    heads = ["SAE", "architecture", "latents", *(heading(c, columns) for c in columns)]
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{_breakable(h)}</button></th>' for h in heads
    )
    body = "\n".join(_row(i, row, columns, _links(row, names, folder)) for i, row in enumerate(board.rows))
    kinds = sorted({architecture(row) for row in board.rows})
    options = "".join(f"<option>{escape(kind)}</option>" for kind in kinds)
    said = "".join(f"<li>{escape(note)}</li>" for note in notes(board))
    figures = "".join(
        f"<figure>{inline_svg(figure, f'{name} of {caption(board)}', f'b{number}-{name}')}</figure>"
        for name, figure in plots(board).items()
    )
    return f"""<section data-board="{number}"><h2>{escape(caption(board))}</h2>
<div class="filters"><label>Name <input type="search" class="name"></label>
<label>Architecture <select class="kind"><option value="">all</option>{options}</select></label>
<label>Latents from <input type="number" class="low" min="0"></label>
<label>to <input type="number" class="high" min="0"></label>
<label>L0 to <input type="number" class="l0" min="0" step="any"></label>
<output aria-live="polite">{len(board.rows)} SAEs</output></div>
<div class="plots">{figures}</div>
<div class="scroll" tabindex="0" role="region" aria-label="Scores">
<table class="board" data-shown="{_SHOWN}" style="--columns: {len(columns)}">
<thead><tr>{head}</tr></thead>
<tbody>{body}</tbody></table></div>
<button type="button" class="all"{"" if len(board.rows) > _SHOWN else " hidden"}>Show all rows</button>
<ul class="notes">{said}</ul></section>"""


def _breakable(name: str) -> str:
    """Escaped, and free to break after an underscore."""
    return escape(name).replace("_", "_<wbr>")


def _links(row: Row, names: Mapping[str, str], folder: str | None) -> str:
    """Links to the SAE's page, and to the pages that its metrics left beside the record."""
    if folder is None:
        return ""
    name = escape(clean(row.name))
    found = {"page": names[str(row.record.sae["sha256"])]} | kept_names(row)
    return "".join(
        f' <a href="{escape(f"{quote(folder)}/{quote(file)}")}" aria-label="{escape(clean(what, 40))} of {name}">'
        f"{escape(clean(what, 40))}</a>"
        for what, file in found.items()
    )


def _row(number: int, row: Row, columns: Sequence[Column], links: str) -> str:
    kind, width = architecture(row), row.record.sae.get("d_sae")
    latents = width if isinstance(width, int) else 0
    l0 = None if row.sparsity is None else row.sparsity.value
    name = escape(clean(row.name))
    cells = "".join(_cell(row.cells[column]) for column in columns)
    return (
        f'<tr data-row="{number}" class="{"more" if number >= _SHOWN else ""}" data-kind="{escape(kind)}" '
        f'data-latents="{latents}" '
        f'data-l0="{"" if l0 is None else f"{l0:.6g}"}"><th scope="row"><button type="button" class="open">'
        f'{name}</button>{links}</th><td>{escape(kind)}</td><td data-v="{latents}">{latents:,}</td>{cells}</tr>'
    )


def _cell(cell: Cell) -> str:
    if cell.value is None:
        return f'<td class="none" title="{escape(clean(cell.reason or "", 200))}">{cell.state}</td>'
    rank = "" if cell.rank is None else f' <b class="{"first" if cell.rank == 1 else ""}">#{cell.rank}</b>'
    interval = interval_text(cell)
    return f'<td data-v="{cell.value:.9g}">{value_text(cell)}{rank}<small>{interval}</small></td>'


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


def _json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@hookimpl
def saebench_reports() -> list[Report]:
    return [Html()]
