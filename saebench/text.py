"""Untrusted names as harmless text, and numbers as tables print them."""

import math
import unicodedata
from typing import Protocol


def clean(text: object, limit: int = 80) -> str:
    """An untrusted name as one line without control or bidi characters, of at most `limit` characters."""
    start = str(text)[: 4 * limit]
    kept = "".join(" " if c.isspace() else c for c in start if c.isspace() or unicodedata.category(c)[0] != "C")
    line = " ".join(kept.split()) or "unnamed"
    return line if len(line) <= limit else line[: limit - 1] + "…"


def printable(text: str) -> str:
    """Text without control, bidi and other invisible characters; newlines and tabs stay.

    Everything that the command line prints passes through here: names, keys and paths are untrusted.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c)[0] != "C")


class Estimate(Protocol):
    """A number with its interval, or a state in place of the number."""

    @property
    def state(self) -> str: ...
    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def number(value: float, places: int | None = None) -> str:
    """A value with four significant digits, or with `places` digits after the point; never "-0"."""
    text = f"{value:.4g}" if places is None else f"{value:.{places}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _places(cell: Estimate) -> int | None:
    """Digits after the point that show two digits of the interval's width; None: use significant digits."""
    if cell.low is None or cell.high is None or cell.high <= cell.low:
        return None
    places = 1 - math.floor(math.log10((cell.high - cell.low) / 2))
    return min(places, 6) if places >= 0 else 0


def value_text(cell: Estimate) -> str:
    """The value, or the state if there is no value."""
    return cell.state if cell.value is None else number(cell.value, _places(cell))


def interval_text(cell: Estimate) -> str:
    """The interval as `low … high`; empty without an interval."""
    if cell.low is None or cell.high is None:
        return ""
    places = _places(cell)
    return f"{number(cell.low, places)} … {number(cell.high, places)}"
