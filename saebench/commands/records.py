"""Commands that read records: `leaderboard` and `compare`."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from saebench.commands.shell import console_on, debug_option, errors
from saebench.errors import SaebenchError

if TYPE_CHECKING:
    from saebench.leaderboard import Board


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--format", "format_", default="table", show_default=True, help="table, or a report: see `saebench list reports`."
)
@click.option(
    "--score", "scores", multiple=True, help="Only this score (key or metric.key); repeatable. Default: the main ones."
)
@click.option("--task", help="Only this task, name or name@version.")
@click.option("--output", type=click.Path(path_type=Path), help="Write to this file in place of stdout.")
@debug_option
def leaderboard(
    folders: tuple[Path, ...], format_: str, scores: tuple[str, ...], task: str | None, output: Path | None, debug: bool
) -> None:
    """All records in folders (default: results/), side by side, with ranks that only the data can give.

    \b
    Examples:
      saebench leaderboard
      saebench leaderboard results/ theirs/ --task fidelity --score explained_variance
      saebench leaderboard --format csv --output board.csv
    """
    with errors(debug):
        from saebench.leaderboard import boards
        from saebench.registry import registry
        from saebench.results import load_records, write_atomically

        records = load_records(folders or (Path("results"),))
        if task:
            records = [r for r in records if task in (r.task["name"], f"{r.task['name']}@{r.task['version']}")]
        found = boards(records)
        if not found:
            raise SaebenchError(
                "no record found: make one with `saebench run --sae PATH`, or name another folder or --task"
            )
        if format_ != "table":
            text = registry().get("reports", format_).render(found)
            data = text if isinstance(text, bytes) else text.encode()
            write_atomically(output, data) if output else click.echo(data, nl=False)
            return
        _print_boards(found, scores, output)


def _print_boards(found: "list[Board]", scores: tuple[str, ...], output: Path | None) -> None:
    from saebench.tables import board_table, notes

    with output.open("w", encoding="utf-8") if output else nullcontext(sys.stdout) as file:
        console = console_on(file)
        for board in found:
            console.print(board_table(board, scores))
            for note in notes(board):
                console.print(f"note: {note}", markup=False)


@click.command()
@click.argument("saes", nargs=-1, required=True, metavar="A B [C…]")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder of the records.",
)
@click.option("--task", help="Only this task, name or name@version.")
@click.option(
    "--score", "scores", multiple=True, help="Only this score (key or metric.key); repeatable. Default: the main ones."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@debug_option
def compare(
    saes: tuple[str, ...], results: Path, task: str | None, scores: tuple[str, ...], as_json: bool, debug: bool
) -> None:
    """What differs between SAEs, paired on the contexts that both were measured on.

    A, B … are record files, or names of SAEs in the results folder.

    \b
    Examples:
      saebench compare first-sae second-sae
      saebench compare a.json b.json --score explained_variance
    """
    with errors(debug):
        from saebench.compare import compare as compare_records
        from saebench.results import find_records

        found = compare_records(find_records(saes, results, task), scores)
        if as_json:
            click.echo(json.dumps([c.to_json() for c in found], indent=1, allow_nan=False))
            return
        from saebench.tables import comparison_table

        console = console_on(sys.stdout)
        for comparison in found:
            console.print(comparison_table(comparison))
            console.print(comparison.sentence, markup=False)
