"""Submitting: a good record goes in byte for byte, and every way to be bad is named and keeps everything out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from saebench.board.submission import problems
from saebench.catalog import load_task
from saebench.cli import main
from saebench.results import Record, fingerprint, load_records, read_record, record_path
from tests.conftest import REPOSITORY
from tests.synthetic import declared, plain, units

COMMITTED = load_records([REPOSITORY / "results"])


def call(*args: Any) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def submit(*args: Any) -> Result:
    return call("submit", *args)


def good(root: Path, name: str = "an-sae", shift: float = 0.0, **changes: Any) -> Path:
    """A record that may be submitted: of the real task, with units that give its scores."""
    from saebench.stats import Ratio

    task, frame = load_task("fidelity"), units(shift)
    scores = [declared("fidelity", "explained_variance", frame, Ratio("sse", "variance", 1.0, -1.0), "higher")]
    scores += [plain(metric, "a", 0.25) for metric in task.metrics if metric != "fidelity"]
    body: dict[str, Any] = {
        "fingerprint": "", "partial": False, "sae": {"name": name, "sha256": f"{shift:064.6f}"},
        "model": {"id": "tiny", "sha256": "m", "revision": None}, "hook": "blocks.1.hook_resid_post",
        "hook_out": "blocks.1.hook_resid_post",
        "task": {"name": task.name, "version": task.version, "sha256": task.sha256()}, "corpus": {"fingerprint": "c"},
        "settings": {"model_dtype": "float32", "sae_dtype": "float32", "max_norm": 10.0, "seed": 0, "limit": None},
        "metrics": {metric: {"version": 1, "units": None} for metric in task.metrics}, "scores": scores,
        "runs": [{"provenance": {"commit": "a" * 40, "dirty": False}}],
    }  # fmt: skip
    record = Record(**(body | changes))
    record.fingerprint = record.fingerprint or fingerprint(record.identity)
    path = record_path(root, record)
    record.write(path, {"fidelity": frame})
    return path


def spoil(path: Path, **changes: Any) -> Path:
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | changes))
    return path


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder, less the lock that writers take."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def test_a_good_record_goes_in_with_its_units(tmp_path):
    path = good(tmp_path / "theirs")
    result = submit(path, "--results", tmp_path / "ours")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("added: ")
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")
    again = submit(tmp_path / "theirs", "--results", tmp_path / "ours")
    assert again.exit_code == 0
    assert again.stdout.startswith("already there: ")
    in_place = submit(tmp_path / "ours", "--results", tmp_path / "ours")
    assert in_place.stdout.startswith("already there: ")
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")


def test_a_name_that_is_taken_gets_another_and_its_units_follow(tmp_path):
    first, other = good(tmp_path / "a"), good(tmp_path / "b", corpus={"fingerprint": "other"})
    assert first.name == other.name
    result = submit(first, other, "--results", tmp_path / "ours")
    assert result.exit_code == 0, result.stderr
    found = load_records([tmp_path / "ours"])
    assert len(found) == 2
    for record in found:
        assert problems(record) == []
        assert record.metrics["fidelity"]["units"]["file"].startswith(record.path.stem + ".")


def test_a_measured_record_lacks_nothing_but_what_its_run_did(two_saes, llama, tokens, tmp_path):
    ran = call("run", "--sae", two_saes[0], "--model", llama, "--tokens", tokens, "--results", tmp_path)
    assert ran.exit_code == 0, ran.stderr
    [record] = load_records([tmp_path])
    record.runs = [{"provenance": {"commit": "a" * 40, "dirty": False}}]
    [problem] = problems(record)
    assert problem.startswith("unknown task 'tokens'")


def test_the_fingerprint_is_a_hash_of_exactly_what_it_was(tmp_path):
    """Written out once more: a change here would make every record that exists a stranger."""
    record = read_record(good(tmp_path))
    identity = {
        "sae": record.sae["sha256"], "model": "m", "hook": record.hook, "hook_out": record.hook_out, "task": record.task,
        "corpus": "c", "settings": {"model_dtype": "float32", "sae_dtype": "float32", "seed": 0, "limit": None,
                                    "max_norm": 10.0},
    }  # fmt: skip
    assert record.fingerprint == fingerprint(identity)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 99}, "schema 99"),
        ({"partial": True}, "partial"),
        ({"errors": {"sparsity": "out of memory"}}, "sparsity failed: out of memory"),
        ({"runs": []}, "provenance is missing"),
        ({"runs": [{"provenance": {"commit": None, "dirty": None}}]}, "from a checkout"),
        ({"runs": [{"provenance": {"commit": "a" * 40, "dirty": True}}]}, "uncommitted changes"),
        ({"runs": [{"provenance": {"commit": "a" * 40, "dirty": False}}, 3]}, "runs"),
        ({"task": {"name": "fidelity", "version": 1, "sha256": "x"}}, "another sha256"),
        ({"task": {"name": "fidelity", "version": 99, "sha256": "x"}}, "version 1 here, not 99"),
        ({"task": {"name": "/etc/x.toml", "version": 1, "sha256": "x"}}, "unknown task"),
        ({"fingerprint": "f" * 64}, "fingerprint and identity disagree"),
        ({"hook": "blocks.0.hook_resid_post"}, "fingerprint and identity disagree"),
        ({"metrics": {}}, "not among its metrics"),
        ({"metrics": {"fidelity": 3}}, "metrics.fidelity is 3"),
        ({"metrics": {"fidelity": {"version": 1, "units": {"file": 3, "sha256": "s"}}}}, "units.file is 3"),
        ({"metrics": {"fidelity": {"version": 1, "units": {"file": "../../../etc/passwd", "sha256": "s"}}}}, "passwd"),
        ({"scores": []}, "has no score"),
        ({"sae": {"name": "\x1b[31mred", "sha256": "s"}}, "plain line"),
        ({"sae": {"name": "x" * 10_000_000, "sha256": "s"}}, "10,000,000 characters"),
        ({"sae": {"name": "x" * 300, "sha256": "s"}}, "plain line"),
    ],
)
def test_every_way_to_be_bad_is_named_and_keeps_all_out(changes, words, tmp_path):
    bad = spoil(good(tmp_path / "theirs"), **changes)
    fine = good(tmp_path / "fine", "fine", 0.1)
    result = submit(fine, bad, "--results", tmp_path / "ours")
    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stderr) < 2000
    assert not (tmp_path / "ours").exists()


def test_units_must_be_there_and_give_the_scores(tmp_path):
    path = good(tmp_path / "theirs")
    frame = path.with_name("fidelity@1.fidelity.parquet")
    whole, right = frame.read_bytes(), json.loads(path.read_text())

    forged = json.loads(path.read_text())
    forged["scores"][0]["value"] += 1e-6
    path.write_text(json.dumps(forged))
    assert "its units give" in submit(path, "--results", tmp_path / "ours").stderr

    path.write_text(json.dumps(right))
    pd.DataFrame({"x": [1]}).to_parquet(frame)
    assert "sha256 differs" in submit(path, "--results", tmp_path / "ours").stderr
    frame.unlink()
    assert "cannot be read" in submit(path, "--results", tmp_path / "ours").stderr
    frame.write_bytes(whole)
    right["metrics"]["fidelity"]["units"] = None
    path.write_text(json.dumps(right))
    assert "no units" in submit(path, "--results", tmp_path / "ours").stderr
    assert not (tmp_path / "ours").exists()


def test_what_contradicts_or_holds_less_is_refused(tmp_path):
    first = good(tmp_path / "a")
    submit(first, "--results", tmp_path / "ours")
    before = files(tmp_path / "ours")
    record = read_record(first)
    other = good(tmp_path / "b", shift=0.0)
    frame = units(0.2)
    from saebench.stats import Ratio

    body = json.loads(other.read_text())
    body["scores"][0] = declared("fidelity", "explained_variance", frame, Ratio("sse", "variance", 1.0, -1.0), "higher")
    rewritten = Record(**body)
    rewritten.write(other, {"fidelity": frame})
    assert rewritten.fingerprint == record.fingerprint
    result = submit(other, "--results", tmp_path / "ours")
    assert result.exit_code == 1
    assert "contradicts" in result.stderr
    assert files(tmp_path / "ours") == before

    more = read_record(record_path(tmp_path / "ours", record))
    more.metrics["extra"] = {"version": 1, "units": None}
    more.scores.append(plain("extra", "e", 1.0))
    more.write(more.path, {})
    assert "has more metrics (extra)" in submit(first, "--results", tmp_path / "ours").stderr
    shutil.copytree(tmp_path / "ours", tmp_path / "more")
    assert submit(first, "--results", tmp_path / "fresh").exit_code == 0
    assert submit(tmp_path / "more", "--results", tmp_path / "fresh").stdout.startswith("replaced: ")
    assert files(tmp_path / "fresh") == files(tmp_path / "more")


def test_nothing_to_submit(tmp_path):
    assert "no record found" in submit(tmp_path, "--results", tmp_path / "ours").stderr
    assert "no such file" in submit(tmp_path / "no.json").stderr


# --- what this repository holds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", COMMITTED, ids=[str(r.path.relative_to(REPOSITORY)) for r in COMMITTED if r.path])
def test_every_committed_record_may_stand_in_results(record):
    assert problems(record) == []
    assert record_path(REPOSITORY / "results", record) == record.path


def test_limits_cannot_narrow_an_interval(tmp_path: Path) -> None:
    """A record declares the limits of a score itself: only those of a share, a gap or a gap between gaps are accepted."""
    path = good(tmp_path)
    body = json.loads(path.read_text())
    [row] = [r for r in body["scores"] if r["key"] == "explained_variance"]
    low, high = row["value"] - 1e-4, row["value"] + 1e-4
    assert low > row["low"]
    row |= {"low": low, "high": high, "within": [low, high]}
    spoil(path, scores=body["scores"])
    assert any("declared limits" in problem for problem in problems(read_record(path)))
    row |= {"within": [0, 1]}
    spoil(path, scores=body["scores"])
    assert any("its units give" in problem for problem in problems(read_record(path)))


def test_a_record_of_another_version_says_so(tmp_path: Path) -> None:
    path = good(tmp_path)
    body = json.loads(path.read_text())
    body["metrics"]["fidelity"]["version"] = 7
    spoil(path, metrics=body["metrics"])
    assert any("fidelity is version 7, and 1 is installed: measure it again" in p for p in problems(read_record(path)))
