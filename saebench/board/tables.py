"""Boards and comparisons as tables for a terminal."""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from saebench.board.compare import Comparison, Line
from saebench.board.leaderboard import select
from saebench.report import Board, Cell, Column
from saebench.text import clean, interval_text, value_text

# Width to which the name of an SAE may be folded.
_NAME = 24
# A longer heading is broken; an interval has this width.
_HEAD = 15
_ARROWS = {"higher": "↑", "lower": "↓", None: ""}


def heading(column: Column, columns: Sequence[Column]) -> str:
    """A column's name: its key, with metric and version if keys are equal, and with the place on a curve."""
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
    """Notes on a board, one line each: failed metrics, refused records, partial records."""
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
    """Caption of a board: model, hook point, task and precision of all its rows."""
    revision = f" @ {clean(board.revision, 12)}" if board.revision else ""
    parts = (f"{clean(board.model)}{revision}", clean(board.hook), clean(board.task), clean(board.dtypes))
    return " · ".join(parts) + (f" · {clean(board.variant)}" if board.variant else "")


LEGEND = (
    "#n: rank, one plus the number of SAEs that are better by size and significance (5 % over all headline scores and all pairs "
    "down to the SAE; paired over documents, unless each SAE has its own latents). Below each value: its 95 % interval."
)


def board_tables(board: Board, width: int, scores: Sequence[str] = ()) -> list[Table]:
    """A board as tables of at most `width` columns, one below the other, so that no cell is split.

    Args:
        scores: keys, metrics, or metric.key; default: the scores chosen for the board, else its headlines.

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
    tables = [_fitted(board, block, width) for block in blocks]
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


def _fitted(board: Board, heads: Mapping[Column, str], width: int) -> Table:
    """The table with the names of SAEs folded, after a hyphen if possible, to fit `width`."""
    table = _table(board, heads)
    names = max(map(_widest, table.columns[0].cells), default=0)
    return _table(board, heads, fold=max(8, width - _least(table) + min(names, _NAME)))


def _table(board: Board, heads: Mapping[Column, str], fold: int = 80) -> Table:
    """A row per SAE and a column per score, by its heading."""
    table = Table(title_justify="left", caption_justify="left")
    table.add_column("SAE", overflow="fold")
    table.add_column("latents", justify="right")
    for head in heads.values():
        table.add_column(Text(head), justify="right", overflow="fold")
    for row in board.rows:
        cells = [_terminal(row.cells[column]) for column in heads]
        name = "\n".join(wrap(clean(row.name), fold))
        table.add_row(Text(name), Text(clean(row.record.sae.get("d_sae", "?"), 12)), *cells)
    return table


def _least(table: Table) -> int:
    """The smallest width at which no cell is split, except names of SAEs."""
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
    """A table of B against A for a terminal, 80 columns wide at most; reasons for missing intervals are footnotes."""
    columns = [line.column for line in comparison.lines]
    reasons = list(dict.fromkeys(clean(line.reason, 300) for line in comparison.lines if line.reason))
    table = Table(
        title=Text(f"A  {clean(comparison.a)}\nB  {clean(comparison.b)}"),
        title_justify="left",
        caption=Text("\n".join([_method(comparison), *(f"[{i}] {r}" for i, r in enumerate(reasons, 1))]), style="dim"),
        caption_justify="left",
    )
    table.add_column("score", overflow="fold")
    for name in ("A", "B", "B − A"):
        table.add_column(name, justify="right")
    table.add_column("verdict", overflow="fold")
    for line in comparison.lines:
        mark = f" [{reasons.index(clean(line.reason, 300)) + 1}]" if line.reason else ""
        head = Text(_broken(heading(line.column, columns)))
        table.add_row(head, *(Text(value_text(cell)) for cell in (line.a, line.b)), *_difference(line, mark))
    return table


def _method(comparison: Comparison) -> str:
    how = {True: "paired over documents", False: "not paired, since each SAE has its own latents"}
    found = " or ".join(dict.fromkeys(how[line.paired] for line in comparison.lines)) or how[True]
    return f"B − A: {found}, 95 % interval; p: Holm over all lines of the comparison"


def _difference(line: Line, mark: str) -> list[Text]:
    """The cells of B − A, with its interval, and of the verdict, with its p-value."""
    found = line.difference
    if found is None:
        return [Text(""), Text(f"not compared{mark}", style="dim")]
    shown = Cell("scored", found.value, found.low, found.high)
    interval = interval_text(shown)
    words = {
        "better": "B is better",
        "worse": "A is better",
        "differs": "A and B differ",
        "same": "not told apart",
        "negligible": f"negligible (< {line.smallest:g})" if line.smallest else "negligible",
    }
    verdict = words.get(line.verdict, "not compared") + mark
    p = found.p_value if line.adjusted is None else line.adjusted
    if p is not None:
        verdict += f"\np = {p:.1e}" if p < 1e-3 else f"\np = {p:.3f}"
    return [Text(f"{value_text(shown)}\n{interval}" if interval else value_text(shown)), Text(verdict)]
