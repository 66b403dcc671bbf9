"""Write the table of docs/steering.md from the records of `steering-small` and `effects-small` in results/.

Run by `make results-readme`; a test fails where the page is not the output of this script.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saebench.results import Record, load_records
from saebench.text import interval_text, value_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "steering.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
TASKS = ("steering-small", "effects-small")
_ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}


@dataclass(frozen=True)
class Cell:
    """A score of a record, as `saebench.text` shows it."""

    value: float
    low: float | None
    high: float | None
    state: str = ""


def table(records: Sequence[Record]) -> str:
    """A row per score, a column per SAE; value, 95 % interval and number of latents."""
    ours = [record for record in records if record.task["name"] in TASKS]
    names = sorted({record.sae["name"] for record in ours}, key=lambda name: ("random" in name, name))
    cells = {(r.task["name"], s["key"], r.sae["name"]): s for r in ours for s in r.scores}
    lines = [f"| score | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for task in TASKS:
        keys = dict.fromkeys(s["key"] for r in ours if r.task["name"] == task for s in r.scores)
        lines += [f"| **{task}** |" + " |" * len(names)] if keys else []
        for key in keys:
            row = [cells.get((task, key, name)) for name in names]
            arrow = next(_ARROWS[s["direction"]] for s in row if s)
            lines.append(f"| `{key}`{arrow} | {' | '.join(map(_shown, row))} |")
    return "\n".join(lines) + "\n"


def _shown(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "–"
    cell = Cell(score["value"], score["low"], score["high"])
    interval = f" ({interval_text(cell)})" if interval_text(cell) else ""
    return f"{value_text(cell)}{interval}, n {score['n']}"


def page(text: str, records: Sequence[Record]) -> str:
    """The page with the part between its two marks made anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(records)}{END}{after}"


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), load_records([ROOT / "results"])), encoding="utf-8")


if __name__ == "__main__":
    main()
