"""Write the table of options and keys in docs/training.md from the training request's declarations.

Run by `make docs`; a test fails where the page is not what this would write.
"""

from pathlib import Path

from saebench.options import Option, keys_of, options_of
from saebench.training.request import TrainRequest

PAGE = Path(__file__).resolve().parent / "training.md"
BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"


def page(text: str) -> str:
    """docs/training.md with a new table between its two marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    found = {one.name: one for one in [*keys_of(TrainRequest), *options_of(TrainRequest)]}
    rows = "\n".join(map(_row, found.values()))
    table = f"| In a file | On the command line | Meaning |\n|---|---|---|\n{rows}"
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _row(one: Option) -> str:
    plain = one.default is not None and not isinstance(one.default, bool) and not one.required and one.kind != "flag"
    default = f" Default: {one.default}." if plain else ""
    key = f"`{one.name}`" if one.key else ""
    flag = f"`{one.flag}`" if one.flag else ""
    return f"| {key} | {flag} | {one.help}{default} |"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
