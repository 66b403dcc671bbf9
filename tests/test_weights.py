"""Metrics of the weights alone: no language model is loaded or named, and the numbers are those of a run that has one."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import saebench
from saebench.cli import main
from saebench.errors import UsageError
from tests.raising import raises
from tests.running import measure, same, values


def test_geometry_needs_no_language_model(two_saes, llama, tokens, tmp_path: Path, monkeypatch) -> None:
    with_model = measure(two_saes, llama, tokens, tmp_path / "model", metrics=["geometry"])
    for name in ("load_model", "Subject"):
        monkeypatch.setattr(f"saebench.running.setting.{name}", lambda *_, **__: pytest.fail("loaded the model"))
    # The checkpoints name a model that does not exist.
    flags = [part for sae in two_saes for part in ("--sae", str(sae))]
    arguments = ["run", *flags, "--metric", "geometry", "--results", str(tmp_path / "weights")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    found = {r.sae["name"]: r for r in saebench.load_records(tmp_path / "weights")}
    for record in with_model:
        mine = found[record.sae["name"]]
        same(mine, record)
        assert (mine.task_label, mine.model["id"], mine.errors, mine.sae["warnings"]) == (
            "weights@1",
            "weights",
            {},
            [],
        )
    assert len({r.fingerprint for r in found.values()}) == 2
    assert len({r.group for r in found.values()}) == 1
    assert "already measured" in CliRunner().invoke(main, arguments).output
    board = CliRunner().invoke(main, ["leaderboard", str(tmp_path / "weights"), "--format", "csv"])
    assert "decoder_norm" in board.output


def test_the_task_can_be_named_and_refuses_metrics_of_activations(two_saes, tmp_path: Path) -> None:
    [record] = saebench.run(two_saes[0], task="weights", results=tmp_path)
    assert {metric for metric, _, _ in values(record)} == {"geometry"}
    with raises(UsageError, "sparsity", "weights@1", "--task"):
        saebench.run(two_saes[0], task="weights", metrics=["geometry", "sparsity"], results=tmp_path)


@pytest.mark.parametrize("more", [{"hook": "blocks.0.hook_resid_post"}, {"metrics": ["geometry", "sparsity"]}])
def test_other_runs_of_geometry_add_to_the_record_of_their_model(more, two_saes, llama, tokens, tmp_path: Path) -> None:
    [record] = measure(two_saes[0], llama, tokens, tmp_path, **{"metrics": ["geometry"], **more})
    assert (record.model["type"], record.task["name"]) == ("llama", "tokens")


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (["--metric", "geometry"], "weights@1: 0 contexts"),
        (["--planted", "planted-1k", "--limit", "9"], "planted-1k@1: 9 contexts of 256"),
        (["--activations", "x.npy"], "activations/x@1: 30 contexts of 1 "),
    ],
)
def test_a_dry_run_without_a_model_names_its_saes(flags, shown, two_saes, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((30, 32), np.float32))
    done = CliRunner().invoke(main, ["run", "--sae", str(two_saes[0]), *flags, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert shown in done.stdout
    assert "no language model: 1 SAE(s): first" in done.stdout
