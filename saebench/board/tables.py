"""Boards and comparisons as text for people: how numbers and names are written, and tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from saebench.board.compare import Comparison, Line
from saebench.board.leaderboard import select
from saebench.report import Board, Cell, Column
from saebench.text import clean, interval_text, value_text

# Columns at which an SAE's name is folded.
_NAME = 24
# Characters of a heading that stay on one line: an interval is as wide.
_HEAD = 15
_ARROWS = {"higher": "↑", "lower": "↓", None: ""}


def heading(column: Column, columns: Sequence[Column]) -> str:
    """A column's name: its key, with the metric, the version and the place on the curve where they are needed."""
    name = clean(column.key, 40)
    same = [c for c in columns if c != column and c.key == column.key and c.at == column.at]
    if same:
        name = f"{clean(column.metric, 40)}.{name}"
    if any(c.metric == column.metric for c in same):
        name += f" v{column.version}"
    if column.at is not None:
        name += f" @{column.at:g}"
    return f"{name} {_ARROWS[column.direction]}".rstrip()


def notes(board: Board) -> list[str]:
    """Notes on a board, one line each: failed metrics, refused and partial records."""
    lines = [clean(note, 300) for note in board.notes]
    if board.partial and not board.rows and not lines:
        some = "1 is" if board.partial == 1 else f"{board.partial} are"
        return [
            f"no complete record: {some} partial (made with --limit); show with --partial, or run again without --limit"
        ]
    if board.partial:
        lines.insert(0, f"{board.partial} partial record(s), made with --limit, are left out; show with --partial")
    return lines


def caption(board: Board) -> str:
    """What all rows of the board share."""
    revision = f" @ {clean(board.revision, 12)}" if board.revision else ""
    parts = (f"{clean(board.model)}{revision}", clean(board.hook), clean(board.task), clean(board.dtypes))
    return " · ".join(parts) + (f" · {clean(board.variant)}" if board.variant else "")


LEGEND = (
    "#n: rank, one plus the number of SAEs that are significantly better (Holm, 5 %; paired over documents, unless each SAE has "
    "its own latents). Below each value: its 95 % interval."
)


def board_tables(board: Board, width: int, scores: Sequence[str] = ()) -> list[Table]:
    """A board for a terminal of `width`: as many tables as its scores need, each with whole columns, one below the other.

    Args:
        scores: by key, metric, or metric.key; without any, those of the board, or its headlines.

    Raises:
        UsageError: an unknown score.
    """
    columns = select(board, scores) if scores else board.shown
    heads = {column: heading(column, columns) for column in columns}
    if _least(_table(board, heads)) > width:
        heads = {column: _broken(head) for column, head in heads.items()}
    blocks: list[dict[Column, str]] = [{}]
    for column, head in heads.items():
        if blocks[-1] and _least(_table(board, blocks[-1] | {column: head})) > width:
            blocks.append({})
        blocks[-1][column] = head
    tables = [_table(board, block) for block in blocks]
    tables[0].title = Text(caption(board))
    tables[-1].caption = Text(LEGEND, style="dim")
    return tables


def _broken(head: str) -> str:
    """A heading on two lines, broken after the underscore nearest to its middle."""
    places = [i + 1 for i, c in enumerate(head) if c == "_"]
    if len(head) <= _HEAD or not places:
        return head
    place = min(places, key=lambda i: abs(2 * i - len(head)))
    return f"{head[:place]}\n{head[place:]}"


def _table(board: Board, heads: Mapping[Column, str]) -> Table:
    """A row per SAE and a column per score, by its heading."""
    table = Table(title_justify="left", caption_justify="left")
    table.add_column("SAE", overflow="fold")
    table.add_column("latents", justify="right")
    for head in heads.values():
        table.add_column(Text(head), justify="right", overflow="fold")
    for row in board.rows:
        cells = [_terminal(row.cells[column]) for column in heads]
        table.add_row(Text(clean(row.name)), Text(clean(row.record.sae.get("d_sae", "?"), 12)), *cells)
    return table


def _least(table: Table) -> int:
    """The least width at which no cell is split, but for the names of SAEs."""
    cells = [max(map(_widest, [column.header, *column.cells])) for column in table.columns]
    return min(cells[0], _NAME) + sum(cells[1:]) + 3 * len(cells) + 1


def _widest(cell: Any) -> int:
    return max(map(cell_len, str(cell).split("\n")))


def _terminal(cell: Cell) -> Text:
    if cell.value is None:
        return Text(cell.state, style="red" if cell.state == "failed" else "dim")
    text = Text(value_text(cell))
    if cell.rank is not None:
        text.append(f" #{cell.rank}", style="bold green" if cell.rank == 1 else "")
    if interval := interval_text(cell):
        text.append(f"\n{interval}", style="dim")
    return text


def comparison_table(comparison: Comparison) -> Table:
    """Two SAEs side by side for a terminal, with B − A."""
    a, b = clean(comparison.a, 40), clean(comparison.b, 40)
    how = {True: "paired over documents", False: "not paired, since each SAE has its own latents"}
    found = " or ".join(dict.fromkeys(how[line.paired] for line in comparison.lines)) or how[True]
    table = Table(caption=Text(f"B − A: {found}, 95 % interval", style="dim"), caption_justify="left")
    for name in ("score", a, b, "B − A", "p", ""):
        table.add_column(Text(name), justify="left" if name in ("score", "") else "right", overflow="fold")
    columns = [line.column for line in comparison.lines]
    for line in comparison.lines:
        cells = [Text(value_text(cell)) for cell in (line.a, line.b)]
        table.add_row(Text(heading(line.column, columns)), *cells, *_difference(line))
    return table


def _difference(line: Line) -> list[Text]:
    found = line.difference
    if found is None:
        return [Text(""), Text(""), Text(clean(line.reason or ""), style="dim")]
    shown = Cell("scored", found.value, found.low, found.high)
    interval = interval_text(shown)
    value = f"{value_text(shown)}\n{interval}" if interval else value_text(shown)
    p = "" if found.p_value is None else f"{found.p_value:.1e}" if found.p_value < 1e-3 else f"{found.p_value:.3f}"
    words = {"better": "B is better", "worse": "A is better", "differs": "differ", "same": "no difference seen"}
    return [Text(value), Text(p), Text(words.get(line.verdict, clean(line.reason or "")))]
