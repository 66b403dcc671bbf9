"""Write what people see first from the records in results/: results/README.md, and the picture and table in README.md.

Run by `make results-readme`; a test fails where either is not what this would write.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, replace
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from saebench.board.charts import Picture
from saebench.board.leaderboard import boards
from saebench.board.plots import scatter
from saebench.board.selection import sort_boards
from saebench.registry import installed
from saebench.report import Board, Column
from saebench.results import load_records
from saebench.text import clean

ROOT = Path(__file__).resolve().parent.parent
PICTURE = "docs/leaderboard.png"
BEGIN, END = "<!-- leaderboard: begin -->", "<!-- leaderboard: end -->"
# What the README shows: a picture of one score, and a few columns, of the board that has it for most SAEs.
_PICTURED = "explained_variance"
_SCORES = ("explained_variance", "loss_recovered_mean", "l0")

_INTRO = """# Results

Records that were measured with a committed saebench on a task it knows. Yours:

```
saebench run --sae PATH --results mine     # from a clean checkout
saebench submit mine                       # checks it, and puts it here with its units
make results-readme
```

The records here are of saebench's own baselines, trained on 3,786,752 tokens: `saebench train tasks/train/smollm2-135m.toml --out
baselines` makes the SAEs again, and `baselines/` holds the weights of three of them (SAELens v6, float16).

Only SAEs measured on the same model, hook point, task and text share a table. `make leaderboard` makes a page of it with plots
and every number.

"""


def found_boards() -> list[Board]:
    """The sparsest first, on the boards of tasks that do not measure it too."""
    return sort_boards(boards(load_records([ROOT / "results"])), "l0")


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
    able = [board for board in found if board.rows and _pictured(board)]
    return max(able, key=lambda board: len(board.rows)) if able else None


def _pictured(board: Board) -> Column | None:
    return next((c for c in board.columns if c.key == _PICTURED and c.at is None), None)


def _markdown(found: Sequence[Board]) -> str:
    text = installed().get("reports", "markdown").render(found)
    assert isinstance(text, str)
    return text


def digest(board: Board) -> str:
    """Of every number in the picture: it stands in the PNG, so that a test can tell whether it was drawn from these records."""
    column = _pictured(board)
    assert column is not None
    points = [
        (
            row.name,
            str(row.record.sae.get("architecture")),
            astuple(row.cells[column]),
            astuple(row.sparsity) if row.sparsity else None,
        )
        for row in board.rows
    ]
    return hashlib.sha256(json.dumps(points).encode()).hexdigest()


def draw(found: Sequence[Board]) -> None:
    """The picture, where there is a board to draw."""
    (ROOT / PICTURE).unlink(missing_ok=True)
    best = _best(found)
    if best is None or (column := _pictured(best)) is None:
        return
    chosen = _picture(best, column)
    about = PngInfo()
    about.add_text("Comment", digest(best))
    Image.open(BytesIO(chosen.draw("png"))).save(ROOT / PICTURE, pnginfo=about)


def _picture(board: Board, column: Column) -> Picture:
    """The score over the sparsity axis, with a title that names the question and the good direction."""
    spec = scatter(board, column, size=(620, 380)).spec
    title = {
        "text": "How much of the activations does an SAE explain, with how few latents?",
        "subtitle": f"Up and to the left is better. {clean(board.model, 40)}, {clean(board.hook, 40)}; 95 % intervals.",
        "anchor": "start", "fontSize": 16, "subtitleFontSize": 13, "offset": 12,
    }  # fmt: skip
    return Picture(spec | {"title": title})


def main() -> None:
    found = found_boards()
    (ROOT / "results" / "README.md").write_text(results_readme(found), encoding="utf-8")
    text = readme((ROOT / "README.md").read_text(encoding="utf-8"), found)
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    draw(found)


if __name__ == "__main__":
    main()
