"""Shared by all commands: printing, errors as one line with an exit code, --debug."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from saebench.errors import SaebenchError, one_line
from saebench.text import printable

if TYPE_CHECKING:
    from rich.console import Console


def echo(text: str, err: bool = False) -> None:
    """Print a line on stdout or stderr, without characters that could steer a terminal."""
    click.echo(printable(text), err=err)


def console_on(file: Any = None) -> "Console":
    """A rich console on stderr, or on `file`; 140 columns wide where `file` is no terminal.

    It prints no character of a text that could steer a terminal; styles stay.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class _Clean(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(printable(segment.text), segment.style)

    file = file or sys.stderr
    return _Clean(file=file, highlight=False, width=None if file.isatty() else 140)


def warn(message: Warning | str, *_: Any, **__: Any) -> None:
    echo(f"warning: {one_line(Warning(str(message)))}", err=True)


@contextmanager
def errors(debug: bool) -> Iterator[None]:
    """Print one line and exit with a code on any error; the traceback only with --debug."""
    from saebench import ranks

    try:
        yield
    except SaebenchError as error:
        if debug:
            raise
        echo(f"error: {one_line(error, 1000)}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        echo("interrupted: what was finished is kept; run the same command to go on", err=True)
        sys.exit(130)
    except (click.ClickException, click.exceptions.Exit, SystemExit, BrokenPipeError):
        raise  # click ends quietly where nobody reads on
    except OSError as error:  # most often stdout, on a full disk
        if debug:
            raise
        echo(f"error: {one_line(error)}: see that there is space, and that the files may be read and written", err=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        echo(f"error: {kind}: {one_line(error)} (a bug in saebench: --debug shows where)", err=True)
        sys.exit(1)
    finally:
        if "torch" in sys.modules:
            ranks.stop()


def debug_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--debug", is_flag=True, help="Show the traceback of an error.")(command)
