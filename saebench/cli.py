"""The command line: the group of commands. Heavy imports happen inside the commands."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from saebench import __version__
from saebench.commands import (
    audit,
    campaign,
    comparing,
    dashboard,
    looking,
    plugins,
    records,
    run,
    steer,
    train,
)
from saebench.commands.shell import echo, warn
from saebench.commands.terminal import guard_streams
from saebench.text import printable


@contextmanager
def _printable_errors() -> Iterator[None]:
    """Remove unprintable characters from click's own errors, which quote arguments."""
    try:
        yield
    except click.ClickException as error:
        error.message = printable(error.message)  # type: ignore[misc]  # the one thing that show() prints
        raise


class _Group(click.Group):
    """The group of commands; suggests the nearest command for an unknown one."""

    def main(self, *args: Any, **more: Any) -> Any:
        guard_streams()
        return super().main(*args, **more)

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with _printable_errors():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with _printable_errors():
            return super().invoke(ctx)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from saebench.errors import unknown

        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            echo(f"error: {unknown('command', args[0], self.list_commands(ctx))}", err=True)
            ctx.exit(2)
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Measure, and train, sparse autoencoders on language models.

    \b
    saebench run --sae PATH          measure every metric of a task, with intervals, in one pass
    saebench campaign FILE           measure SAEs × layers × models × tasks of a file, whole or in shards
    saebench train RECIPE            train an SAE, or all SAEs of a file in one pass
    saebench compare A B             paired differences on the same contexts
    saebench stability A B           agreement of SAEs that differ in their seed
    saebench audit --metric M        reliability of a metric's scores
    saebench steer --sae PATH …      continuations with a latent's direction added
    saebench dashboard --sae PATH …  every latent on one offline page
    saebench leaderboard             every record in results/, with ranks
    """
    warnings.showwarning = warn
    # Silence the progress bars of libraries; tqdm reads this when it is first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")


for _command in (
    run.run, campaign.campaign, steer.steer, dashboard.dashboard, train.train, records.leaderboard, records.compare,
    comparing.stability, audit.audit, records.submit, looking.list_, looking.inspect, plugins.plugins, plugins.new_plugin,
):  # fmt: skip
    main.add_command(_command)


if __name__ == "__main__":
    main()
