"""The command line: the only place that prints. Heavy imports wait until a command needs them."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench import __version__
from saebench.errors import SaebenchError, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from saebench.leaderboard import Board
    from saebench.plan import Request
    from saebench.results import Record


def _console(file: Any = None) -> "Console":
    """A rich console on stderr, or on `file`; wide enough for a table where there is no terminal to ask."""
    from rich.console import Console

    file = file or sys.stderr
    return Console(file=file, highlight=False, width=None if file.isatty() else 140)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {one_line(Warning(str(message)))}", err=True)


class _Group(click.Group):
    """Turns every error into one line and an exit code; suggests the nearest command."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from saebench.errors import unknown

        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            click.echo(f"error: {unknown('command', args[0], self.list_commands(ctx))}", err=True)
            ctx.exit(2)
        return super().resolve_command(ctx, args)


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """One line and an exit code for whatever goes wrong; the traceback only with --debug."""
    from saebench import ranks

    try:
        yield
    except SaebenchError as error:
        if debug:
            raise
        click.echo(f"error: {one_line(error, 1000)}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted: what was finished is kept; run the same command to go on", err=True)
        sys.exit(130)
    except (click.ClickException, click.exceptions.Exit, SystemExit):
        raise
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        click.echo(f"error: {kind}: {one_line(error)} (a bug in saebench: --debug shows where)", err=True)
        sys.exit(1)
    finally:
        if "torch" in sys.modules:
            ranks.stop()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Measure sparse autoencoders on language models.

    \b
    saebench run --sae PATH          every metric of a task, with intervals, in one pass
    saebench compare A B             what differs, on the same contexts
    saebench leaderboard             everything in results/, ranked only where the data can tell
    """
    warnings.showwarning = _warn


def _debug_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--debug", is_flag=True, help="Show the traceback of an error.")(command)


# --- run -------------------------------------------------------------------------------------------------------------


@main.command()
@click.option(
    "--sae",
    "saes",
    multiple=True,
    required=True,
    metavar="PATH",
    help="An SAE checkpoint; repeatable: several share one pass.",
)
@click.option("--name", "names", multiple=True, help="Its name in records and tables; once for each --sae.")
@click.option("--model", help="Alias, hub id, folder or .gguf. Default: the model each checkpoint names.")
@click.option("--revision", help="Commit or branch of a hub model.")
@click.option("--hook", help="Where the SAE reads, e.g. blocks.15.hook_resid_post. Default: what the checkpoint says.")
@click.option(
    "--task",
    default="fidelity",
    show_default=True,
    help="A task (name, name@version or TOML file), or a suite: probing.",
)
@click.option(
    "--tokens",
    type=click.Path(path_type=Path),
    metavar="FILE.npy",
    help="Run on these token ids [contexts, tokens] as they are.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Probe for the labels of this table of texts (.csv or .parquet).",
)
@click.option("--text-column", default="text", show_default=True, help="Of --data.")
@click.option("--label-column", default="label", show_default=True, help="Of --data.")
@click.option(
    "--group-column", help="Of --data: rows that share it are on one side of the split. Default: each its own."
)
@click.option("--metric", "metrics", multiple=True, help="Only this metric; repeatable. Default: the task's.")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder of the records.",
)
@click.option("--format", "format_", help="The checkpoint's format. Default: recognised from its files.")
@click.option("--k", type=int, help="Active latents per token, for a TopK checkpoint that does not say.")
@click.option("--scale", type=float, help="Input scale, for a checkpoint that needs one and does not hold it.")
@click.option(
    "--ignore-key",
    "ignore_keys",
    multiple=True,
    help="A config key of the checkpoint that changes nothing; repeatable.",
)
@click.option("--batch-size", type=int, help="Contexts a batch. Default: fitted to memory.")
@click.option("--device", help="cpu, cuda, cuda:1 … Default: a GPU if there is one.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of the model. Default: float32 on a CPU, bfloat16 on a GPU.",
)
@click.option("--limit", type=int, help="Only the first N contexts; the record is marked partial.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--force", is_flag=True, help="Compute again what a record already holds.")
@click.option("--strict", is_flag=True, help="A broken plugin is an error.")
@click.option("--dry-run", is_flag=True, help="Say what would be computed and what it costs; compute nothing.")
@click.option("--json", "as_json", is_flag=True, help="Write the records as a JSON list to stdout.")
@_debug_option
def run(saes: tuple[str, ...], format_: str | None, dry_run: bool, as_json: bool, debug: bool, **options: Any) -> None:
    """Measure SAEs on a task and write a record of each.

    \b
    Examples:
      saebench run --sae results/baselines/smollm2-135m-layer15-topk32
      saebench run --sae a/ --sae b/ --task fidelity --limit 16
      saebench run --sae a/ --task probing
      saebench run --sae a/ --data my.csv --text-column review --label-column stars
      saebench run --sae a/ --tokens ids.npy --metric fidelity --json
      torchrun --nproc-per-node 2 -m saebench run --sae a/
    """
    with _errors(debug):
        from saebench.plan import Request

        request = Request(saes=saes, format=format_, **options)
        if dry_run:
            _dry_run(request, as_json)
            return
        _run(request, as_json)


def _run(request: "Request", as_json: bool) -> None:
    from saebench import ranks
    from saebench.runner import execute

    rank, _ = ranks.start()
    console = _console()
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' own bars say nothing about this run
    outcome = execute(request, _Progress(console, quiet=rank > 0))
    if rank == 0:
        if as_json:
            click.echo(json.dumps([record.to_json() for record in outcome.records], indent=1, allow_nan=False))
        else:
            _show(outcome.records, console)
        for failure in outcome.failures:
            click.echo(f"error: {failure.name}: {one_line(failure.error, 1000)}", err=True)
        for record in outcome.records:
            for metric, message in record.errors.items():
                click.echo(f"error: {record.sae['name']}: metric {metric}: {message}", err=True)
    bad = [f.error.exit_code for f in outcome.failures] + [1 for r in outcome.records if r.errors]
    if bad:
        sys.exit(1 if outcome.records or 1 in bad else 2)


class _Progress:
    """A progress bar on a terminal, a line per stage on anything else."""

    def __init__(self, console: "Console", quiet: bool) -> None:
        self.console, self.quiet = console, quiet
        self.bar: Any = None
        self.task: Any = None

    def message(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, markup=False, style="dim")

    def begin(self, label: str, total: int, done: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self.quiet:
            return
        if not self.console.is_terminal:
            self.message(f"{label}: {total - done} contexts")
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("contexts"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.bar.start()
        self.task = self.bar.add_task(label, total=total, completed=done)

    def advance(self, contexts: int) -> None:
        if self.bar:
            self.bar.advance(self.task, contexts)

    def end(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


def _show(records: "list[Record]", console: "Console") -> None:
    """The table at the end of a run, how to read it, and where the records lie."""
    from saebench.run_table import reading_help, run_tables

    if not records:
        return
    for table in run_tables(records):
        console.print(table)
    console.print(reading_help(records), markup=False)
    for record in records:
        for warning in record.sae["warnings"]:
            console.print(f"note: {record.sae['name']}: {warning}", markup=False)
        console.print(f"record: {record.path}", markup=False, soft_wrap=True)


def _dry_run(request: "Request", as_json: bool) -> None:
    from saebench.dry_run import dry_runs

    plans = dry_runs(request)
    if as_json:
        bodies = [plan.to_json() for plan in plans]
        click.echo(json.dumps(bodies[0] if len(bodies) == 1 else bodies, indent=1))
        return
    for plan in plans:
        for line in plan.lines():
            click.echo(line)


# --- records ---------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--format", "format_", default="table", show_default=True, help="table, or a report: see `saebench list reports`."
)
@click.option(
    "--score", "scores", multiple=True, help="Only this score (key or metric.key); repeatable. Default: the main ones."
)
@click.option("--task", help="Only this task, name or name@version.")
@click.option("--output", type=click.Path(path_type=Path), help="Write to this file in place of stdout.")
@_debug_option
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
    with _errors(debug):
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
        console = _console(file)
        for board in found:
            console.print(board_table(board, scores))
            for note in notes(board):
                console.print(f"note: {note}", markup=False)


@main.command()
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
@_debug_option
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
    with _errors(debug):
        from saebench.compare import compare as compare_records
        from saebench.results import find_records

        found = compare_records(find_records(saes, results, task), scores)
        if as_json:
            click.echo(json.dumps([c.to_json() for c in found], indent=1, allow_nan=False))
            return
        from saebench.tables import comparison_table

        console = _console(sys.stdout)
        for comparison in found:
            console.print(comparison_table(comparison))
            console.print(comparison.sentence, markup=False)


# --- looking ---------------------------------------------------------------------------------------------------------


@main.command("list")
@click.argument("kind", type=click.Choice(["metrics", "tasks", "formats", "models", "reports"]))
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@_debug_option
def list_(kind: str, as_json: bool, debug: bool) -> None:
    """What there is of a kind, with a line about each.

    \b
    Examples:
      saebench list metrics
      saebench list tasks --json
    """
    with _errors(debug):
        rows = _task_rows() if kind == "tasks" else _plugin_rows(kind)
        if as_json:
            click.echo(json.dumps(rows, indent=1))
            return
        width = max((len(r["name"]) for r in rows), default=0)
        for row in rows:
            click.echo(f"{row['name']:<{width}}  {row['about']}")


def _task_rows() -> list[dict[str, str]]:
    from saebench.task import builtin_tasks, load_task

    tasks = [load_task(name) for name in builtin_tasks()]
    return [{"name": t.label, "about": t.title, "description": t.description} for t in tasks]


def _plugin_rows(kind: str) -> list[dict[str, str]]:
    from saebench.registry import registry

    rows = []
    for name, item in sorted(registry().kind(kind).items()):
        doc = (item.__doc__ if isinstance(item, type) else type(item).__doc__) or ""
        rows.append({"name": name, "about": doc.strip().split("\n")[0]})
    return rows


@main.command()
@click.argument("path")
@click.option("--format", help="The checkpoint's format. Default: recognised from its files.")
@click.option("--k", type=int, help="Active latents per token, for a TopK checkpoint that does not say.")
@click.option("--scale", type=float, help="Input scale, for a checkpoint that needs one and does not hold it.")
@click.option("--hook", help="Where the SAE reads, for a checkpoint that does not say.")
@click.option("--model", help="Run this model over a little text and count the latents that fire.")
@click.option("--ignore-key", "ignore_keys", multiple=True, help="A config key that changes nothing; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@_debug_option
def inspect(path: str, model: str | None, as_json: bool, debug: bool, **options: Any) -> None:
    """What a checkpoint is, where each convention was read, and what it does not say.

    \b
    Examples:
      saebench inspect results/baselines/smollm2-135m-layer15-topk32
      saebench inspect sae.pth --k 64 --hook model.layers.22.input_layernorm --json
      saebench inspect sae/ --model smollm2-135m-instruct
    """
    with _errors(debug):
        from saebench.inspection import inspect_sae

        found = inspect_sae(path, model=model, measure=model is not None, **options)
        if as_json:
            click.echo(json.dumps(found.to_json(), indent=1, allow_nan=False))
            return
        for line in found.lines():
            click.echo(line)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@click.option("--strict", is_flag=True, help="Exit with 1 if a plugin is broken.")
@_debug_option
def plugins(as_json: bool, strict: bool, debug: bool) -> None:
    """Which plugins are installed, what each brings, and why one was left out.

    \b
    Examples:
      saebench plugins
      saebench plugins --json
    """
    with _errors(debug):
        from dataclasses import asdict

        from saebench.registry import installed

        found = installed()
        if as_json:
            click.echo(json.dumps([asdict(p) for p in found.plugins], indent=1))
        else:
            for p in found.plugins:
                what = f"BROKEN: {p.error}" if p.error else ", ".join(p.provides) or "nothing"
                click.echo(f"{p.name} ({p.distribution} {p.version}): {what}")
        if strict and found.broken:
            raise SaebenchError(f"{len(found.broken)} broken: {', '.join(p.name for p in found.broken)}")


if __name__ == "__main__":
    main()
