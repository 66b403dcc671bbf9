"""The final output of `saebench run`: scores with their meanings, and a guide to reading them."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from saebench.board.leaderboard import boards
from saebench.board.presented import Presentations, presentations
from saebench.board.tables import board_tables
from saebench.report import Cell
from saebench.results import Record
from saebench.text import clean, interval_text, value_text


def run_tables(records: Sequence[Record], width: int) -> list[Table]:
    """Tables of all scores of a single record, or boards of several records, partial ones included.

    Args:
        width: columns of the terminal.
    """
    if len(records) == 1:
        return [record_table(records[0])]
    return [table for board in boards(records, partial=True) for table in board_tables(board, width)]


def record_table(record: Record) -> Table:
    """A table of every score of one record that is no point of a curve."""
    title = f"{clean(record.sae['name'])} · {clean(record.hook)} of {clean(record.model['id'])} · {clean(record.task_label)}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("score", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("meaning")
    last, shown = None, presentations([record], [])
    for row in record.scores:
        if row["at"] is not None:
            continue
        if last not in (None, row["metric"]):
            table.add_section()
        last = row["metric"]
        cell = Cell("scored", row["value"], row["low"], row["high"], row["n"])
        better = {"higher": " ↑", "lower": " ↓"}.get(row["direction"], "")
        meaning = Text(clean(_meaning(row, shown), 120))
        table.add_row(Text(clean(row["key"]) + better), value_text(cell), interval_text(cell), meaning)
    return table


def _meaning(row: dict[str, Any], shown: Presentations) -> str:
    """The caption of a score for its metric's version; its unit if there is no caption."""
    captions = shown[row["metric"], row["version"]].about if (row["metric"], row["version"]) in shown else {}
    caption = captions.get(row["key"]) or str(row["unit"])
    return caption.replace("{n:,}", f"{row['n']:,}")


def reading_help(records: Sequence[Record]) -> str:
    """A guide to reading the numbers, in a few lines."""
    corpus = records[0].corpus
    tokens = corpus.get("tokens")
    seen = "no tokens"
    if tokens:
        aside = f"{tokens['outliers']:,} outliers and {tokens['special']:,} special tokens are not scored"
        seen = f"{tokens['scored']:,} scored tokens ({aside})"
    measured = {name: entry for record in records for name, entry in record.metrics.items()}
    own = [clean(name) for name, entry in measured.items() if not entry.get("paired", True)]
    aside = f" (those of {', '.join(own)}: over each SAE's own sampled latents, and not paired)" if own else ""
    return (
        f"Over {seen} in {corpus['contexts']:,} contexts of {corpus['documents']:,} documents. "
        "↑ higher is better, ↓ lower is better.\n"
        f"95 % intervals are over documents{aside}: 95 of 100 such samples give an interval that contains the true value.\n"
        "To compare two SAEs use `saebench compare A B`, which pairs them on the same contexts; SAEs whose intervals overlap\n"
        "may still differ."
    )
