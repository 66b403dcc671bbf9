"""Scores as an HTML table for a notebook."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from saebench.text import clean, interval_text, value_text


@dataclass(frozen=True)
class _Number:
    value: float | None
    low: float | None
    high: float | None
    state: str = "scored"


def scores_html(title: str, about: str, scores: Sequence[Mapping[str, Any]], errors: Mapping[str, str]) -> str:
    """A table of the scores that are no points of a curve, and every error; all text is cleaned and escaped.

    Args:
        title, about: the two lines above the table.
        scores: rows of `Record.scores`.
        errors: metric name -> message.
    """
    head = "".join(f"<th>{name}</th>" for name in ("metric", "score", "value", "95 % interval", "n", "unit"))
    body = "".join(_row(row) for row in scores if row["at"] is None)
    failed = "".join(f"<p>{escape(clean(m))} failed: {escape(clean(e, 300))}</p>" for m, e in errors.items())
    return (
        f"<div><p><b>{escape(clean(title))}</b><br>{escape(about)}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{failed}</div>"
    )


def _row(row: Mapping[str, Any]) -> str:
    number = _Number(row["value"], row["low"], row["high"])
    better = {"higher": " ↑", "lower": " ↓"}.get(str(row["direction"]), "")
    key = f"{clean(row['key'])}{better}"
    texts = (row["metric"], key, value_text(number), interval_text(number), row["n"], row["unit"])
    return "<tr>" + "".join(f"<td>{escape(clean(t)) if t not in ('', None) else ''}</td>" for t in texts) + "</tr>"
