"""`saebench leaderboard` and its kin for notebooks: filters, order, binary output, plots, tidy frames."""

import io
import json
import math
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

import saebench
from saebench.cli import main
from saebench.results import RecordError
from tests.raising import raises
from tests.synthetic import Make, make_record, plain
from tests.test_leaderboard import HOSTILE


def call(*args: Any) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return partial(make_record, tmp_path)


@pytest.fixture
def results(make: Make, tmp_path: Path) -> Path:
    """Four SAEs: two architectures, two widths, L0 30 to 33."""
    for i, (architecture, width) in enumerate([("topk", 64), ("topk", 128), ("jumprelu", 64), ("jumprelu", 128)]):
        about = {"name": "dcab"[i], "sha256": f"{i}" * 64, "architecture": architecture, "d_sae": width}
        make(f"sae-{i}", 0.01 * i, i, sae=about)
    return tmp_path


def names(*args: Any) -> list[str]:
    result = call("leaderboard", *args, "--format", "json")
    assert result.exit_code == 0, result.stderr
    return [row["name"] for board in json.loads(result.stdout) for row in board["rows"]]


def test_filters_and_order(results: Path) -> None:
    assert sorted(names(results)) == ["a", "b", "c", "d"]
    assert sorted(names(results, "--architecture", "TopK")) == ["c", "d"]
    assert sorted(names(results, "--width", 64)) == ["a", "d"]
    assert names(results, "--width", 64, "--architecture", "topk") == ["d"]
    assert sorted(names(results, "--max-l0", 31.5)) == ["c", "d"]
    assert names(results, "--sort", "name") == ["a", "b", "c", "d"]
    assert names(results, "--sort", "explained_variance") == ["d", "c", "a", "b"], "the best first"
    assert names(results, "--sort", "l0") == ["d", "c", "a", "b"], "the sparsest first"
    assert [n in "ad" for n in names(results, "--sort", "width")] == [True, True, False, False]


def test_what_filters_leave_is_ranked_among_itself(results: Path) -> None:
    result = call("leaderboard", results, "--architecture", "jumprelu", "--format", "json")
    rows = {row["name"]: row["scores"][0] for row in json.loads(result.stdout)[0]["rows"]}
    assert rows["a"]["key"] == "explained_variance"
    assert [rows["a"]["rank"], rows["b"]["rank"]] == [1, 2]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--architecture", "nothing"], 2, "unknown architecture 'nothing': known: jumprelu, topk"),
        (["--task", "zzz"], 2, "unknown task 'zzz': known: fidelity, fidelity@1"),
        (["--task", "fidelty"], 2, "did you mean 'fidelity'"),
        (["--width", 3], 1, "none of 4 records passes --width"),
        (["--width", 3, "--max-l0", 1], 1, "--width, --max-l0"),
        (["--sort", "explaned_variance"], 2, "did you mean 'explained_variance'"),
        (["--format", "parkett"], 2, "did you mean 'parquet'"),
    ],
)
def test_bad_flags_are_one_line(results: Path, flags: list[Any], code: int, words: str) -> None:
    result = call("leaderboard", results, *flags)
    assert result.exit_code == code, result.stderr
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_compare_names_the_tasks_there_are(results: Path) -> None:
    result = call("compare", "a", "b", "--results", results, "--task", "zzz")
    assert result.exit_code == 2
    assert result.stderr == "error: unknown task 'zzz': known: fidelity, fidelity@1\n"


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    result = call("leaderboard", tmp_path)
    assert result.exit_code == 1
    assert "saebench run" in result.stderr


def test_parquet_holds_what_csv_holds(results: Path, tmp_path: Path) -> None:
    output = tmp_path / "board.parquet"
    assert call("leaderboard", results, "--format", "parquet", "--output", output).exit_code == 0
    found = pd.read_parquet(output)
    piped = CliRunner().invoke(main, ["leaderboard", str(results), "--format", "parquet"])
    assert piped.stdout_bytes == output.read_bytes(), "into a pipe it needs no --output"
    table = pd.read_csv(io.StringIO(call("leaderboard", results, "--format", "csv").stdout), keep_default_na=False)
    assert list(found) == list(table)
    assert len(found) == len(table) == 16
    assert found["value"].tolist() == table["value"].tolist()
    assert [str(v) for v in found["sae"]] == [str(v) for v in table["sae"]]
    assert found["rank"].dropna().astype(int).tolist() == [int(v) for v in table["rank"] if v != ""]
    assert str(found["n"].dtype) == "Int64"


def test_binary_is_not_sent_to_a_terminal(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    from saebench.commands import records as command

    monkeypatch.setattr(command.sys, "stdout", Terminal())
    with raises(saebench.SaebenchError, "--output"):
        command._write_report(command._boards((results,), (), None, False, {}), "parquet", None)


def test_plots_are_written(results: Path, tmp_path: Path) -> None:
    result = call("leaderboard", results, "--plots", tmp_path / "figures")
    assert result.exit_code == 0, result.stderr
    drawn = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert {"pareto-explained_variance.png", "pareto-explained_variance.svg"} <= set(drawn)
    assert result.stderr.count("plot: ") == len(drawn)


def test_output_goes_into_a_folder_that_is_made_for_it(results: Path, tmp_path: Path) -> None:
    for format_, start in (("table", "tiny · "), ("markdown", "### "), ("csv", "model,")):
        output = tmp_path / "not" / "yet" / f"board.{format_}"
        done = call("leaderboard", results, "--format", format_, "--output", output)
        assert done.exit_code == 0, done.stderr
        assert done.stdout == ""
        assert output.read_text().startswith(start)
    assert "explained_variance" in (tmp_path / "not/yet/board.table").read_text()


@pytest.mark.parametrize("format_", ["table", "html", "csv", "parquet"])
def test_output_that_cannot_be_written_is_one_line(results: Path, tmp_path: Path, format_: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "folder", tmp_path / "file" / "board", Path("/dev/full")):
        done = call("leaderboard", results, "--format", format_, "--output", output)
        assert done.exit_code == 1
        assert "could not be written" in done.stderr
        assert "bug" not in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_full_disk_behind_stdout_is_one_line(results: Path) -> None:
    for format_ in ("table", "csv"):
        with open("/dev/full", "w") as full:
            command = [sys.executable, "-m", "saebench", "leaderboard", str(results), "--format", format_]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "No space left" in done.stderr
        assert "bug" not in done.stderr


def test_a_pipe_named_as_output_stays_a_pipe(results: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    assert call("leaderboard", results, "--format", "csv", "--output", pipe).exit_code == 0
    reader.join(30)
    assert got[0].startswith("model,")
    assert pipe.is_fifo()


def probed(make: Make, of: dict[str, Any], accuracy: float) -> None:
    """The record of an SAE on a task that measures no l0."""
    scores = [plain("probing", "accuracy", accuracy, "higher") | {"low": accuracy - 0.01, "high": accuracy + 0.01}]
    task = {"name": "probing/wordnet", "version": 1, "sha256": "p"}
    make("probed", accuracy, sae=of, task=task, corpus={"fingerprint": "words"}, scores=scores,
         metrics={"probing": {"version": 1, "units": None}})  # fmt: skip


def test_a_task_without_l0_is_filtered_and_drawn_by_the_saes_own(results: Path, make: Make, tmp_path: Path) -> None:
    for record, accuracy in zip(saebench.load_records([results]), (0.5, 0.6, 0.7, 0.8), strict=True):
        probed(make, record.sae, accuracy)
    assert sorted(names(results, "--max-l0", 31.5, "--task", "probing/wordnet")) == ["c", "d"]
    assert names(results, "--sort", "l0", "--task", "probing/wordnet") == ["d", "c", "a", "b"]
    drawn = call("leaderboard", results, "--task", "probing/wordnet", "--plots", tmp_path / "figures")
    assert "pareto-accuracy.svg" in drawn.stderr
    assert "(L0), of fidelity@1" in (tmp_path / "figures" / "pareto-accuracy.svg").read_text()


def test_a_score_of_one_task_leaves_out_the_other_boards(results: Path, make: Make) -> None:
    probed(make, saebench.load_records([results])[0].sae, 0.5)
    for format_ in ("table", "markdown", "csv", "json", "html"):
        text = call("leaderboard", results, "--score", "accuracy", "--format", format_).stdout
        assert "probing/wordnet" in text
        assert "explained_variance" not in text, "other scores are not shown, in any format"
    both = call("leaderboard", results, "--score", "accuracy", "--score", "l0", "--format", "json")
    keys = [{s["key"] for s in board["rows"][0]["scores"]} for board in json.loads(both.stdout)]
    assert sorted(map(sorted, keys)) == [["accuracy"], ["l0"]]
    wrong = call("leaderboard", results, "--score", "acuracy", "--format", "json")
    assert wrong.exit_code == 2
    assert "did you mean 'accuracy'" in wrong.stderr


def test_a_board_without_rows_is_its_title_and_the_reason(make: Make, tmp_path: Path) -> None:
    for seed in (1, 2):
        make("cut", seed=seed, partial=True)
    result = call("leaderboard", tmp_path)
    assert result.exit_code == 0
    title, note = result.stdout.splitlines()
    assert title == "tiny · blocks.1.hook_resid_post · fidelity@1 · float32/float32"
    assert "2 are partial" in note
    assert "--partial" in note


# --- for notebooks ---------------------------------------------------------------------------------------------------


def test_load_results_is_tidy(results: Path, make: Make) -> None:
    make("cut", 0.5, 9, partial=True)
    frame = saebench.load_results(results)
    assert len(frame) == 20
    assert frame.groupby("sae")["partial"].first().to_dict() == {
        "a": False, "b": False, "c": False, "cut": True, "d": False
    }  # fmt: skip
    for record in saebench.load_records([results]):
        mine = frame[frame["sha256"] == record.sae["sha256"]].set_index("key")
        for row in record.scores:
            line = mine.loc[row["key"]]
            assert line["value"] == row["value"]
            assert line["n"] == row["n"]
            assert (row["low"] is None) == math.isnan(line["low"])
        assert set(mine["path"]) == {str(record.path)}
    ev = frame[(frame["key"] == "explained_variance") & (frame["width"] == 64)]
    assert ev["direction"].tolist() == ["higher"] * len(ev)
    assert set(ev["task"]) == {"fidelity@1"}


def test_the_group_of_a_frame_says_what_is_comparable(make: Make, tmp_path: Path) -> None:
    """Equal where a board would take both records, different wherever anything moves a number that is not the SAE."""
    base = make("base")
    settings = base.settings
    alike = [
        make("another"),
        make("read", hook="blocks.0.hook_resid_post"),
    ]
    others = [
        make("weights", model=base.model | {"sha256": "other"}),
        make("place", hook_out="blocks.2.hook_resid_post"),
        make("version", task=base.task | {"version": 2}),
        make("task", task=base.task | {"sha256": "other"}),
        make("text", corpus={"fingerprint": "other"}),
        make("dtype", settings=settings | {"model_dtype": "bfloat16"}),
        make("norm", settings=settings | {"max_norm": None}),
        make("seed", settings=settings | {"seed": 3}),
        make("judge", settings=settings | {"judge": {"model": "one"}}),
        make("judged otherwise", settings=settings | {"judge": {"model": "two"}}),
    ]
    found = saebench.load_results(tmp_path).groupby("sae")["group"].agg(["first", "nunique"])
    assert (found["nunique"] == 1).all()
    group = found["first"]
    assert {group[r.sae["name"]] for r in alike} == {group["base"]}
    different = [group[r.sae["name"]] for r in others]
    assert len({group["base"], *different}) == 1 + len(others)


def test_one_folder_needs_no_list(results: Path) -> None:
    expected = [r.fingerprint for r in saebench.load_records([results])]
    assert len(expected) == 4
    for path in (str(results), results, [str(results)]):
        assert [r.fingerprint for r in saebench.load_records(path)] == expected
    [one] = saebench.load_records(str(next(results.rglob("*@1.json"))))
    assert one.fingerprint in expected


def test_an_empty_frame_has_the_same_columns(results: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty, full = saebench.load_results(tmp_path / "empty"), saebench.load_results(results)
    assert empty.empty
    assert dict(empty.dtypes) == dict(full.dtypes)
    with raises(RecordError, "no such file"):
        saebench.load_results(tmp_path / "nowhere")


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_text_in_notebooks_and_parquet(make: Make, tmp_path: Path, name: str) -> None:
    record, name = make("plain"), name.replace("\0", "")[:1000]  # longer ones and NUL are refused with the record
    record.sae |= {"name": name, "architecture": name, "d_sae": None}
    record.errors["use"] = name
    assert record.path is not None
    record.write(record.path, {})
    html = record._repr_html_()
    assert "<script" not in html
    assert len(html) < 20_000
    frame = saebench.load_results(tmp_path)
    assert frame["sae"].str.len().max() <= 1000
    assert frame["width"].isna().all()
    written = call("leaderboard", tmp_path, "--format", "parquet", "--output", tmp_path / "out.parquet")
    assert written.exit_code == 0, written.stderr
    assert pd.read_parquet(tmp_path / "out.parquet")["sae"].str.len().max() <= 300


def test_a_record_in_a_notebook_shows_its_scores(make: Make) -> None:
    html = make("an <b>SAE</b>")._repr_html_()
    assert "an &lt;b&gt;SAE&lt;/b&gt;" in html
    assert "explained_variance ↑" in html
    assert html.count("<tr>") == 4, "a head, three scores, and no point of a curve"
