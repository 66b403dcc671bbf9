"""`saebench campaign`: the runs of a TOML file, or one shard of them."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from saebench.commands.run import RunProgress, end_with, report_failures
from saebench.commands.shell import console_on, debug_option, echo, errors
from saebench.errors import SaebenchError, one_line

if TYPE_CHECKING:
    from saebench.running.request import Request


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--shard", metavar="N/M", default="1/1", show_default=True, help="Only the N-th of M parts of the runs.")
@click.option("--results", type=click.Path(path_type=Path), help="Folder of the records. Default: as in the file.")
@click.option("--dry-run", is_flag=True, help="Show the runs and their SAEs; compute nothing.")
@debug_option
def campaign(file: Path, shard: str, results: Path | None, dry_run: bool, debug: bool) -> None:
    """Measure SAEs × layers × models × tasks, as one TOML file names them.

    Keys are the options of `saebench run`; lists of model, hook, task and layer multiply. Finished records are skipped, and
    shards may write into one results folder.

    \b
    Examples:
      saebench campaign campaign.toml --dry-run
      saebench campaign campaign.toml
      saebench campaign campaign.toml --shard $SLURM_ARRAY_TASK_ID/16
    """
    with errors(debug):
        from saebench.running.campaign import Shard, read_campaign, shard_of

        runs = shard_of(read_campaign(file, results), Shard.parse(shard), lambda _: None)
        if dry_run:
            for run in runs:
                echo(f"{run.task} on {run.model or 'the model of each checkpoint'} at {run.hook or 'its hook point'}:")
                for sae in run.sources:
                    echo(f"  {sae}")
            echo(f"{len(runs)} run(s), {sum(len(run.sources) for run in runs)} SAE(s) in shard {shard}")
            return
        _run_all(runs)


def _run_all(runs: "list[Request]") -> None:
    """Every run in turn; one that fails costs the others nothing."""
    from saebench import ranks
    from saebench.runner import execute

    rank, _ = ranks.start()
    progress = RunProgress(console_on(), quiet=rank > 0)
    bad: list[int] = []
    done = 0
    for number, run in enumerate(runs, 1):
        progress.message(f"run {number} of {len(runs)}: {run.task} on {run.model or 'the model of each checkpoint'}")
        try:
            outcome = execute(run, progress)
        except SaebenchError as error:
            bad.append(error.exit_code)
            echo(f"error: run {number} of {len(runs)}: {one_line(error, 1000)}", err=True)
            continue
        done += len(outcome.records)
        bad += report_failures(outcome, quiet=rank > 0)
    if rank == 0:
        echo(f"{done} record(s); `saebench leaderboard` shows them")
    end_with(bad, some=bool(done))
