"""`saebench run`: measure SAEs, with a progress bar, and show their scores."""

import json
from typing import TYPE_CHECKING, Any

import click

from saebench.commands.shell import console_on, debug_option, echo, errors, options
from saebench.errors import one_line
from saebench.running.request import Request

if TYPE_CHECKING:
    from rich.console import Console

    from saebench.results import Record
    from saebench.running.reporting import Outcome


@click.command()
@options(Request)
@click.option("--dry-run", is_flag=True, help="Show the planned passes and their cost; compute nothing.")
@click.option("--json", "as_json", is_flag=True, help="Write the records as a JSON list to stdout.")
@debug_option
def run(dry_run: bool, as_json: bool, debug: bool, **given: Any) -> None:
    """Measure SAEs on a task and write one record per SAE.

    \b
    Examples:
      saebench run --sae results/baselines/smollm2-135m-layer15-topk-k32
      saebench run --sae a/ --sae b/ --task fidelity --limit 16
      saebench run --sae 'runs/*'
      saebench run --sae a/ --task probing
      saebench run --sae a/ --data my.csv --text-column review --label-column stars
      saebench run --sae a/ --task autointerp-small --judge local:smollm2-135m-instruct
      saebench run --sae a/ --task autointerp --judge openai:gpt-6-luna --dry-run
      saebench run --sae a/ --task autointerp --judge openai:gpt-6-luna --max-cost 5
      saebench run --sae a/ --task autointerp --judge openai:MODEL --judge-url http://localhost:8000/v1
      saebench run --sae a/ --tokens ids.npy --metric fidelity --json
      torchrun --nproc-per-node 2 -m saebench run --sae a/
    """
    with errors(debug):
        request = Request(**given)
        if dry_run:
            _dry_run(request, as_json)
            return
        _run(request, as_json)


def _run(request: Request, as_json: bool) -> None:
    from saebench import ranks
    from saebench.runner import execute

    rank, _ = ranks.start()
    console = console_on()
    outcome = execute(request, RunProgress(console, quiet=rank > 0))
    if rank == 0:
        if as_json:
            echo(json.dumps([record.to_json() for record in outcome.records], indent=1, allow_nan=False))
        else:
            _show(outcome.records, console)
    bad = report_failures(outcome, quiet=rank > 0)
    end_with(bad, some=bool(outcome.records))


def report_failures(outcome: "Outcome", quiet: bool = False) -> list[int]:
    """Print each SAE and metric that failed; returns their exit codes."""
    if not quiet:
        for failure in outcome.failures:
            echo(f"error: {failure.name}: {one_line(failure.error, 1000)}", err=True)
        for record in outcome.records:
            for metric, message in record.errors.items():
                echo(f"error: {record.sae['name']}: metric {metric}: {message}", err=True)
    return [f.error.exit_code for f in outcome.failures] + [1 for r in outcome.records if r.errors]


def end_with(bad: list[int], some: bool) -> None:
    """Exit with 0 if nothing failed, with 2 if only the command itself is wrong, else with 1.

    Args:
        bad: the exit code of each failure.
        some: whether anything succeeded.
    """
    if bad:
        raise click.exceptions.Exit(1 if some or 1 in bad else 2)


class RunProgress:
    """A progress bar on a terminal, a line per stage elsewhere."""

    def __init__(self, console: "Console", quiet: bool) -> None:
        self.console, self.quiet = console, quiet
        self.bar: Any = None
        self.task: Any = None

    def message(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, markup=False, style="dim")

    def begin(self, label: str, total: int, done: int, unit: str = "contexts") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self.quiet:
            return
        if not self.console.is_terminal:
            self.message(f"{label}: {total} {unit}" + (f", {done} of them already done" if done else ""))
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
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
    """Print the tables of a run, a guide to reading them, and the paths of the records."""
    from saebench.board.run_table import reading_help, run_tables

    if not records:
        return
    for table in run_tables(records, console.width):
        console.print(table)
    console.print(reading_help(records), markup=False)
    for record in records:
        for warning in record.sae["warnings"]:
            console.print(f"note: {record.sae['name']}: {warning}", markup=False)
        console.print(f"record: {record.path}", markup=False, soft_wrap=True)


def _dry_run(request: Request, as_json: bool) -> None:
    from saebench.running.dry_run import dry_runs, over_limit

    plans = dry_runs(request, RunProgress(console_on(), quiet=False))
    if as_json:
        bodies = [plan.to_json() for plan in plans]
        echo(json.dumps(bodies[0] if len(bodies) == 1 else bodies, indent=1))
    else:
        for plan in plans:
            for line in plan.lines():
                echo(line)
    if over := over_limit(plans, request.max_cost):
        echo(over, err=as_json)
    end_with(
        [f.error.exit_code for plan in plans for f in plan.failures],
        some=any(plan.groups or plan.without_model for plan in plans),
    )
