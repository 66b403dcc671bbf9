"""Errors a user can act on: one line with the fault, its place, and the fix."""

import difflib
from collections.abc import Iterable


class SaebenchError(Exception):
    """A request that cannot be fulfilled; the message is complete without a traceback. Exit code 1."""

    exit_code = 1


class UsageError(SaebenchError):
    """An invalid command: an unknown name, a missing path, contradicting options. Exit code 2."""

    exit_code = 2


class NonFiniteError(SaebenchError):
    """Activations or scores that are not finite; recorded as an error, never as a number."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, truncated to `limit` characters; the name of its type if it has no text.

    The text may quote untrusted names, so unprintable characters (terminal escapes, text direction) are removed.
    """
    try:
        start = str(error)[: 20 * limit]
    except Exception:  # an exception of a plugin or library may fail to print
        start = ""
    text = " ".join("".join(c if c.isprintable() else " " for c in start).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU or the machine ran out of memory; on a CPU, PyTorch has only a message for it, no type."""
    from torch import OutOfMemoryError  # imported late: `saebench --help` must not load torch

    # Linux and macOS; Windows; the C++ library; an overflow of the size.
    messages = ("can't allocate memory", "not enough memory", "std::bad_alloc", "Storage size calculation overflowed")
    return isinstance(error, OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in messages)
    )


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """A UsageError for an unknown name, with the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names) or 'none'}"
    return UsageError(f"unknown {kind} '{name}': {hint}")


class MissingScore(KeyError):
    """A score that is not in the record."""

    def __init__(self, key: str, known: list[str]) -> None:
        super().__init__(key)
        self.known = known

    def __str__(self) -> str:
        near = difflib.get_close_matches(str(self.args[0]), self.known, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(set(self.known))) or 'none'}"
        return f"no score '{self.args[0]}'; {hint}"
