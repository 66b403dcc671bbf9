"""Write what people see first from the records in results/: results/README.md, and the picture and table in README.md.

Run by `make results-readme`; a test fails where either is not what this would write.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saebench.leaderboard import Board, boards
from saebench.plots import write_plots
from saebench.registry import installed
from saebench.results import load_records
from saebench.selection import sort_boards

ROOT = Path(__file__).resolve().parent.parent
PICTURE = "docs/leaderboard.png"
BEGIN, END = "<!-- leaderboard: begin -->", "<!-- leaderboard: end -->"
# What the README shows of the fullest board.
_PLOT = "pareto-explained_variance.png"
_SCORES = ("explained_variance", "loss_recovered_mean", "l0")

_INTRO = """# Results

Records that were measured with a committed saebench on a task it knows. Yours:

```
saebench run --sae PATH --results mine     # from a clean checkout
saebench submit mine                       # checks it, and puts it here with its units
make results-readme
```

Only SAEs measured on the same model, hook point, task and text share a table. `make leaderboard` makes a page of it with plots
and every number.

"""


def found_boards() -> list[Board]:
    found = boards(load_records([ROOT / "results"]))
    return sort_boards(found, "l0") if any(c.key == "l0" for b in found for c in b.columns) else found


def results_readme(found: Sequence[Board]) -> str:
    """All of results/README.md."""
    body = _markdown(found) if found else "No record yet.\n"
    return _INTRO + body


def readme(text: str, found: Sequence[Board]) -> str:
    """README.md with what stands between its two marks made new."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    shown = ""
    if best := _best(found):
        few = replace(best, columns=[c for c in best.columns if c.key in _SCORES and c.at is None], notes=[], partial=0)
        alt = "Explained variance against latents per token, with intervals and a Pareto front per architecture"
        shown = f"![{alt}]({PICTURE})\n\n{_markdown([few])}\nAll of it: [results/](results/README.md).\n"
    return f"{before}{BEGIN}\n{shown}{END}{after}"


def _best(found: Sequence[Board]) -> Board | None:
    whole = [board for board in found if board.rows]
    return max(whole, key=lambda board: len(board.rows)) if whole else None


def _markdown(found: Sequence[Board]) -> str:
    text = installed().get("reports", "markdown").render(found)
    assert isinstance(text, str)
    return text


def draw(found: Sequence[Board]) -> None:
    """The picture, where the fullest board has one."""
    (ROOT / PICTURE).unlink(missing_ok=True)
    best = _best(found)
    if best is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in write_plots([best], Path(folder)):
            if path.name == _PLOT:
                shutil.copyfile(path, ROOT / PICTURE)


def main() -> None:
    found = found_boards()
    (ROOT / "results" / "README.md").write_text(results_readme(found), encoding="utf-8")
    text = readme((ROOT / "README.md").read_text(encoding="utf-8"), found)
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    draw(found)


if __name__ == "__main__":
    main()
