"""Everything public is documented, and every page that is generated is what its command would write."""

import inspect
import runpy
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import saebench
from saebench import hookspecs
from saebench.cli import main
from saebench.leaderboard import boards
from saebench.registry import installed
from tests.conftest import REPOSITORY
from tests.synthetic import make_record

DOCS = REPOSITORY / "docs"
TEXT = "".join((REPOSITORY / name).read_text(encoding="utf-8") for name in ("README.md", "plugins/README.md"))
HOOKS = [name for name, item in vars(hookspecs).items() if inspect.isfunction(item) and name.startswith("saebench_")]


def script(name: str) -> types.SimpleNamespace:
    return types.SimpleNamespace(**runpy.run_path(str(DOCS / name)))


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented(hook):
    assert inspect.getdoc(getattr(hookspecs, hook))
    assert f"`{hook}`" in TEXT, f"plugins/README.md does not mention {hook}"


def test_the_hooks_were_found():
    assert len(HOOKS) == len({hook for hook, _ in __import__("saebench.registry", fromlist=["KINDS"]).KINDS.values()})


@pytest.mark.parametrize("name", saebench.__all__)
def test_every_public_name_is_documented(name):
    item = getattr(saebench, name)
    if inspect.isfunction(item) or inspect.isclass(item):
        assert item.__doc__, f"{name} has no docstring"
        assert not (item.__doc__ or "").startswith(f"{name}("), f"{name} has only a dataclass's made-up docstring"
    assert f"`{name}`" in TEXT, f"neither README mentions {name}"


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_is_documented(command):
    assert f"saebench {command}" in TEXT, f"neither README mentions saebench {command}"


# --- generated pages -------------------------------------------------------------------------------------------------


def test_the_metric_pages_are_current():
    pages = script("make_metrics.py").pages()
    written = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "metrics").glob("*.md")}
    assert written == pages, "run `make docs`"


def test_each_page_names_every_score_and_its_docstring():
    for name in ("fidelity", "sparsity", "geometry"):
        page = (DOCS / "metrics" / f"{name}.md").read_text(encoding="utf-8")
        metric = installed().metrics[name]
        assert inspect.cleandoc(metric.__doc__ or "") in page
        assert "| `" in page
    page = (DOCS / "metrics" / "fidelity.md").read_text(encoding="utf-8")
    assert "`1 − Σ sse / Σ variance`" in page
    assert "`Σ kl / Σ tokens`" in page


def test_the_readmes_show_the_committed_records():
    made = script("make_results.py")
    found = made.found_boards()
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert made.readme(text, found) == text, "run `make results-readme`"
    written = (REPOSITORY / "results" / "README.md").read_text(encoding="utf-8")
    assert written == made.results_readme(found), "run `make results-readme`"
    assert (REPOSITORY / made.PICTURE).exists() == any(board.rows for board in found)


def test_with_records_there_is_a_table_and_a_picture(tmp_path: Path, monkeypatch: Any):
    found = boards([make_record(tmp_path, "good", 0.0, 1), make_record(tmp_path, "bad", 0.05, 2)])
    found = [replace(board, notes=["a note"]) for board in found]
    made = script("make_results.py")
    marks = f"# title\n{made.BEGIN}\nold\n{made.END}\nrest"
    text = made.readme(marks, found)
    assert "old" not in text
    assert text.startswith("# title\n")
    assert text.endswith("\nrest")
    assert made.PICTURE in text
    assert "| good |" in text
    assert "dead" not in text
    assert made.readme(text, found) == text, "twice is the same"
    assert "dead" in made.results_readme(found)
    (tmp_path / "docs").mkdir()
    monkeypatch.setitem(made.draw.__globals__, "ROOT", tmp_path)
    made.draw(found)
    assert (tmp_path / made.PICTURE).read_bytes().startswith(b"\x89PNG")
    made.draw([])
    assert not (tmp_path / made.PICTURE).exists()
