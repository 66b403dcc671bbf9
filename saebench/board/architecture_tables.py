"""Tables of architectures for a terminal."""

from rich.table import Table
from rich.text import Text

from saebench.board.architectures import ArchitectureBoard, ScoreBoard
from saebench.text import clean


def architecture_tables(board: ArchitectureBoard) -> list[Table]:
    """A table per score: architectures at the matched L0, best first."""
    return [_table(board, score) for score in board.scores]


def _table(board: ArchitectureBoard, score: ScoreBoard) -> Table:
    words = f"95 % intervals over training seeds and documents; Holm over {board.family} comparisons"
    title = f"{clean(board.title)}\n{clean(score.column.key)} at L0 {board.l0:g}"
    table = Table(title=Text(title), title_justify="left", caption=Text(words, style="dim"), caption_justify="left")
    table.add_column("architecture", overflow="fold")
    for name in ("SAEs", "value", "interval", "rank"):
        table.add_column(name, justify="right")
    table.add_column("better than", overflow="fold")
    sign = -1 if score.column.direction == "lower" else 1
    for row in sorted(score.rows, key=lambda row: -sign * row.value):
        beaten = [c.a for c in score.contrasts if c.b == row.architecture and c.verdict == "better"]
        beaten += [c.b for c in score.contrasts if c.a == row.architecture and c.verdict == "worse"]
        interval = (
            clean(row.reason or "–") if row.low is None or row.high is None else f"{row.low:.4g} … {row.high:.4g}"
        )
        rank = "" if row.rank is None else str(row.rank)
        names = ", ".join(map(clean, beaten))
        cells = (clean(row.architecture), str(row.saes), f"{row.value:.4g}", interval, rank, names)
        table.add_row(*map(Text, cells))
    return table
