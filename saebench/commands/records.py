"""Commands about records: `leaderboard`, `compare` and `submit`."""

import json
import sys
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench.commands.shell import console_on, debug_option, echo, errors
from saebench.errors import SaebenchError, UsageError

if TYPE_CHECKING:
    from saebench.report import Board


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--format", "format_", default="table", show_default=True, help="table, or a report: see `saebench list reports`."
)
@click.option(
    "--score", "scores", multiple=True, help="Only this score (key or metric.key); repeatable. Default: the main ones."
)
@click.option("--task", help="Only this task, name or name@version.")
@click.option("--architecture", "architectures", multiple=True, help="Only SAEs of this architecture; repeatable.")
@click.option("--width", "widths", multiple=True, type=int, help="Only SAEs with this number of latents; repeatable.")
@click.option("--max-l0", type=float, help="Only SAEs with at most this measured L0.")
@click.option("--sort", help="Sort by name, architecture, width, l0, or a score (best first).")
@click.option("--partial", is_flag=True, help="Also show records made with --limit, marked as partial.")
@click.option("--output", type=click.Path(path_type=Path), help="Write to this file instead of stdout.")
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write the plots to this folder, as PNG, SVG and PDF.",
)
@debug_option
def leaderboard(
    folders: tuple[Path, ...],
    format_: str,
    scores: tuple[str, ...],
    sort: str | None,
    partial: bool,
    output: Path | None,
    plots: Path | None,
    debug: bool,
    **filters: Any,
) -> None:
    """Show the records of folders (default: results/) side by side, with ranks from paired differences.

    Ranks are among the SAEs that pass the filters.

    \b
    Examples:
      saebench leaderboard
      saebench leaderboard results/ theirs/ --task fidelity --score explained_variance
      saebench leaderboard --architecture topk --max-l0 64 --sort explained_variance
      saebench leaderboard --format html --output board.html --plots figures/
    """
    with errors(debug):
        found = _boards(folders, scores, sort, partial, filters)
        if format_ == "table":
            _print_boards(found, output, folders or (Path("results"),))
        else:
            _write_report(found, format_, output)
            _report_left_out(found)
        if plots:
            from saebench.board.plots import write_plots

            for path in write_plots(found, plots):
                echo(f"plot: {path}", err=True)


def _boards(
    folders: tuple[Path, ...], scores: tuple[str, ...], sort: str | None, partial: bool, filters: dict[str, Any]
) -> "list[Board]":
    from saebench.board.leaderboard import boards
    from saebench.board.selection import keep, only_scores, sort_boards
    from saebench.board.sparsity import measured_sparsity
    from saebench.results import load_records

    records = load_records(folders or (Path("results"),), skip_damaged=True)
    if not records:
        raise SaebenchError("no record found: make one with `saebench run --sae PATH`, or name another folder")
    sparsity = measured_sparsity(records)
    found = boards(keep(records, sparsity, **filters), sparsity, partial=partial)
    if not found:
        flags = ", ".join(f"--{name.removesuffix('s').replace('_', '-')}" for name, value in filters.items() if value)
        raise SaebenchError(f"none of {len(records)} records passes {flags}: drop a filter, or name another folder")
    if sort:
        found = sort_boards(found, sort)
    return only_scores(found, scores) if scores else found


def _write_report(found: "list[Board]", format_: str, output: Path | None) -> None:
    from saebench.registry import registry
    from saebench.report import PagedReport
    from saebench.results import write_atomically

    report = registry().get("reports", format_)
    if output and isinstance(report, PagedReport):
        folder = output.with_name(f"{output.name.removesuffix('.html')}-saes")
        for name, text in report.pages(found, output.name).items():
            write_atomically(folder / name, text.encode())
        write_atomically(output, report.render(found, folder.name).encode())
        return
    rendered = report.render(found)
    if isinstance(rendered, bytes) and output is None and sys.stdout.isatty():
        raise UsageError(
            f"--format {format_} is binary, which a terminal cannot show: write it to a file with --output"
        )
    data = rendered if isinstance(rendered, bytes) else rendered.encode()
    write_atomically(output, data) if output else click.echo(data, nl=False)


def _report_left_out(found: "list[Board]") -> None:
    """Print the notes of empty boards on stderr: machine-readable formats contain no trace of them."""
    from saebench.board.tables import caption, notes

    for board in found:
        for note in notes(board) if not board.rows else ():
            echo(f"note: {caption(board)}: {note}", err=True)


def _print_boards(found: "list[Board]", output: Path | None, folders: tuple[Path, ...]) -> None:
    from saebench.board.cards import card_notes
    from saebench.board.tables import board_tables, caption, notes
    from saebench.results import write_atomically

    file = StringIO() if output else sys.stdout
    console = console_on(file)
    for board in found:
        if board.rows:
            console.print(*board_tables(board, console.width))
        else:
            console.print(caption(board), markup=False, style="italic")
        for note in [*notes(board), *(card_notes(board, folders) if board.rows else [])]:
            console.print(f"note: {note}", markup=False)
    if output and isinstance(file, StringIO):
        write_atomically(output, file.getvalue().encode())


@click.command()
@click.argument("saes", nargs=-1, metavar="A B [C…]")
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
@click.option(
    "--by", type=click.Choice(["architecture"]), help="Compare architectures at matched L0, seeds as replicates."
)
@click.option("--l0", type=float, help="Of --by: the matched L0. Default: where most architectures have several seeds.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@debug_option
def compare(
    saes: tuple[str, ...],
    results: Path,
    task: str | None,
    scores: tuple[str, ...],
    by: str | None,
    l0: float | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Compare measured SAEs, paired on their common contexts.

    A, B … are record files, or names of SAEs in the results folder. With --by architecture: all SAEs in the
    folder, unless some are named.

    \b
    Examples:
      saebench compare first-sae second-sae
      saebench compare a.json b.json --score explained_variance
      saebench compare --by architecture --task fidelity --l0 32
    """
    with errors(debug):
        if by is not None:
            _compare_architectures(saes, results, task, scores, l0, as_json)
            return
        if l0 is not None:
            raise UsageError("--l0 goes with --by architecture")
        if not saes:
            raise UsageError("name two SAEs or record files, or pass --by architecture")
        from saebench.board.compare import compare as compare_records
        from saebench.board.find import find_records

        found = compare_records(find_records(saes, results, task), scores)
        if as_json:
            echo(json.dumps([c.to_json() for c in found], indent=1, allow_nan=False))
            return
        from saebench.board.tables import comparison_table

        console = console_on(sys.stdout)
        for comparison in found:
            console.print(comparison_table(comparison))
            console.print(comparison.sentence, markup=False)


def _compare_architectures(
    saes: tuple[str, ...], results: Path, task: str | None, scores: tuple[str, ...], l0: float | None, as_json: bool
) -> None:
    from saebench.board.architectures import by_architecture
    from saebench.board.find import find_records
    from saebench.results import load_records

    records = find_records(saes, results, task) if saes else load_records([results], skip_damaged=True)
    kept = [r for r in records if task is None or task in (r.task["name"], r.task_label)]
    found = by_architecture(kept, scores, l0)
    if as_json:
        echo(json.dumps([board.to_json() for board in found], indent=1, allow_nan=False))
        return
    from saebench.board.architecture_tables import architecture_tables

    console = console_on(sys.stdout)
    for board in found:
        console.print(*architecture_tables(board))
        for note in board.notes:
            console.print(f"note: {note}", markup=False)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="RECORD…", type=click.Path(path_type=Path))
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder that receives the records.",
)
@debug_option
def submit(paths: tuple[Path, ...], results: Path, debug: bool) -> None:
    """Check records and copy them with their units into the results folder; all of them, or none.

    A record must be complete: every metric of a known task, no error, not partial, made from a clean commit. Fingerprint
    and scores are recomputed from the record and its units. RECORD is a record file, or a folder of them.

    \b
    Examples:
      saebench submit theirs/results/m/blocks.15.hook_resid_post/an-sae-0a1b2c3d/fidelity@1.json
      saebench submit theirs/results --results results
    """
    with errors(debug):
        from saebench.board.submission import submit as submit_records

        for path, state in submit_records(paths, results):
            echo(f"{state}: {path}")
