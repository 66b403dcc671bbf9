"""Everything public is documented, and every page that is generated is what its command would write."""

import inspect
import re
import runpy
import shutil
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import saebench
from saebench import hookspecs
from saebench.cli import main
from saebench.registry import installed
from saebench.results import load_records
from tests.conftest import REPOSITORY
from tests.synthetic import make_record, plain

DOCS = REPOSITORY / "docs"
SHOWN = "smollm2-135m-layer15-topk-k32"
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


def test_what_is_said_of_scores_is_of_scores_that_there_are():
    scores_of = script("make_metrics.py")._scores
    for name in ("fidelity", "sparsity", "geometry", "autointerp", "autointerp_small"):
        metric = installed().metrics[name]
        keys = {score.key for score in scores_of(metric)}
        assert metric.about.keys() <= keys, name
        assert set(metric.headlines) <= keys, name
        assert len(metric.about) > 3, name


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
    best = made._best(found)
    assert (REPOSITORY / made.PICTURE).exists() == (best is not None)
    if best is not None:
        assert Image.open(REPOSITORY / made.PICTURE).text["Comment"] == made.digest(best), "run `make results-readme`"


def test_the_steering_page_shows_the_committed_records():
    made = script("make_steering.py")
    text = (DOCS / "steering.md").read_text(encoding="utf-8")
    assert made.page(text, load_records([REPOSITORY / "results"])) == text, "run `make results-readme`"


def test_with_records_there_is_a_table_and_a_picture(tmp_path: Path, monkeypatch: Any):
    """A dozen SAEs on two tasks, one of them without the pictured score and with one SAE more."""
    for i in range(12):
        sae = {"name": f"sae-{i}", "sha256": f"{i:064}", "architecture": ("topk", "gated")[i % 2], "d_sae": 64}
        make_record(tmp_path, f"sae-{i}", 0.01 * i, i, sae=sae)
    for i in range(13):
        task = {"name": "probing/x", "version": 1, "sha256": "p"}
        scores = [plain("probing", "accuracy", 0.5 + i / 100, "higher")]
        sae = {"name": f"sae-{i}", "sha256": f"{i:064}", "architecture": "topk", "d_sae": 64}
        make_record(tmp_path, f"probed-{i}", 0.01 * i, i, sae=sae, task=task, scores=scores,
                    metrics={"probing": {"version": 1, "units": None}})  # fmt: skip
    made = script("make_results.py")
    monkeypatch.setitem(made.draw.__globals__, "ROOT", tmp_path)
    shutil.copytree(tmp_path, tmp_path / "results", ignore=shutil.ignore_patterns("results"))
    found = [replace(board, notes=["a note"]) for board in made.found_boards()]
    marks = f"# title\n{made.BEGIN}\nold\n{made.END}\nrest"
    text = made.readme(marks, found)
    assert "old" not in text
    assert text.startswith("# title\n")
    assert text.endswith("\nrest")
    assert made.PICTURE in text
    names = re.findall(r"^\| (sae-\d+) ", text, re.MULTILINE)
    assert names == [f"sae-{i}" for i in range(12)], "the sparsest first, and the task that is pictured"
    assert "dead" not in text
    assert made.readme(text, found) == text, "twice is the same"
    everything = made.results_readme(found)
    assert "dead" in everything
    assert sorted(re.findall(r"^### .*(fidelity|probing/x)", everything, re.MULTILINE)) == ["fidelity", "probing/x"]
    probed = everything.partition("probing/x")[2].partition("###")[0]
    assert re.findall(r"^\| (sae-\d+) ", probed, re.MULTILINE) == [f"sae-{i}" for i in range(13)], (
        "by the L0 of the other task"
    )
    (tmp_path / "docs").mkdir()
    made.draw(found)
    picture = Image.open(tmp_path / made.PICTURE)
    fidelity = next(board for board in found if len(board.rows) == 12)
    assert picture.text["Comment"] == made.digest(fidelity)
    assert made.digest(fidelity) != made.digest(replace(fidelity, rows=fidelity.rows[:-1]))
    made.draw([])
    assert not (tmp_path / made.PICTURE).exists()


def test_the_readmes_numbers_are_the_records():
    """The table under "How to read the numbers", and what is said of its tokens, are of the SAE that `make demo` measures."""
    text = " ".join(
        (REPOSITORY / "README.md").read_text(encoding="utf-8").split("## How to read")[1].split("\n## ")[0].split()
    )
    [record] = [
        r for r in load_records(REPOSITORY / "results") if r.sae["name"] == SHOWN and r.task_label == "fidelity@1"
    ]
    rows = re.findall(r"\| (\w+)(?: [↑↓])? \| ([\d.]+) \| (?:([\d.]+) … ([\d.]+))? ?\|", text)
    assert len(rows) == 8
    for key, *numbers in rows:
        score = record.score(key)
        for written, name in zip(numbers, ("value", "low", "high"), strict=True):
            if written:
                places = len(written.partition(".")[2])
                assert f"{score[name]:.{places}f}" == written, (key, name)
    tokens, units = record.corpus["tokens"], record.units("fidelity")
    words = f"{tokens['scored']:,} scored tokens ({tokens['outliers']} outliers and {tokens['special']} special tokens"
    assert words in text
    share = 1 - units["variance"].sum() / units["variance_all"].sum()
    assert tokens["outliers"] == 10
    assert f"ten tokens of thirty-two thousand hold {100 * share:.0f} % of all variance" in text
