"""Errors a user can act on: one line that says what is wrong, where, and what to do next."""

import difflib
from collections.abc import Iterable


class SaebenchError(Exception):
    """Something that was asked for cannot be done; the message is the whole story. Exit code 1."""

    exit_code = 1


class UsageError(SaebenchError):
    """The command itself is wrong: an unknown name, a missing path, options that contradict. Exit code 2."""

    exit_code = 2


class NonFiniteError(SaebenchError):
    """Activations or scores that are not finite: an error entry in the record, never a number."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, cut where it is long; its type where it has no text.

    Names in it may be anybody's: what would move a terminal's cursor, or turn the direction of writing, is left out.
    """
    try:
        start = str(error)[: 20 * limit]
    except Exception:  # a stranger's exception
        start = ""
    text = " ".join("".join(c if c.isprintable() else " " for c in start).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine: on a CPU, PyTorch says so in words only."""
    from torch import OutOfMemoryError  # not at the top: `saebench --help` needs no torch

    # Linux and macOS, Windows, the C++ library, and more bytes than can be counted.
    said = ("can't allocate memory", "not enough memory", "std::bad_alloc", "Storage size calculation overflowed")
    return isinstance(error, OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """A UsageError for a misspelt name, with the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names) or 'none'}"
    return UsageError(f"unknown {kind} '{name}': {hint}")
