"""Shared by all commands: printing, errors as one line with an exit code, --debug."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench.errors import SaebenchError, one_line
from saebench.options import Option, options_of
from saebench.text import printable

if TYPE_CHECKING:
    from rich.console import Console


def echo(text: str, err: bool = False) -> None:
    """Print a line on stdout or stderr, without terminal control characters."""
    click.echo(printable(text), err=err)


def console_on(file: Any = None) -> "Console":
    """A rich console on stderr, or on `file`; 140 columns wide if `file` is no terminal.

    Control characters in texts are removed; styles are kept.
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
        echo("interrupted: finished results are kept; run the same command to resume", err=True)
        sys.exit(130)
    except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
        raise  # click handles these, a closed pipe quietly
    except OSError as error:  # most often stdout, on a full disk
        if debug:
            raise
        echo(f"error: {one_line(error)}: check free space and file permissions", err=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        echo(f"error: {kind}: {one_line(error)} (a bug in saebench: --debug shows the traceback)", err=True)
        sys.exit(1)
    except BaseException as error:  # saebench itself exits through click
        if debug or isinstance(error.__context__, BrokenPipeError):  # rich exits on a closed pipe
            raise
        kind = type(error).__name__
        click.echo(
            f"error: a plugin ended the command ({kind}: {one_line(error)}): --debug shows the traceback", err=True
        )
        sys.exit(1)
    finally:
        if "torch" in sys.modules:
            ranks.stop()


def options(request: type, unset: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a command with the command-line options of a request.

    Args:
        unset: pass None for options missing from the command line, since a file may set them.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for found in reversed(options_of(request)):
            command = (_unset_option if unset else _click_option)(found)(command)
        return command

    return decorate


def _kind(found: Option) -> dict[str, Any]:
    """An option's kind as click's parameters."""
    kinds: dict[str, dict[str, Any]] = {
        "text": {},
        "int": {"type": int},
        "float": {"type": float},
        "path": {"type": click.Path(path_type=Path)},
        "choice": {"type": click.Choice(found.choices)},
        "flag": {"is_flag": True},
        "many": {"multiple": True},
    }
    return dict(kinds[found.kind])


def _click_option(found: Option) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    more = _kind(found)
    shown = found.kind != "flag" and found.default not in (None, ())
    if not found.required:
        more |= {"default": found.default, "show_default": shown}
    return click.option(found.flag, found.name, required=found.required, metavar=found.metavar, help=found.help, **more)


def _unset_option(found: Option) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    more = _kind(found)
    if found.kind == "flag":
        more = {"flag_value": not found.flag.startswith("--no-")}
    shown = "" if found.kind == "flag" or found.default is None or found.required else f" Default: {found.default}."
    return click.option(found.flag, found.name, default=None, metavar=found.metavar, help=found.help + shown, **more)


def debug_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--debug", is_flag=True, help="Show the traceback of an error.")(command)
