"""`--sae` with a folder of SAEs, or a pattern: it stands for all of them, and one that is damaged costs the others nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

import saebench
from saebench.cli import main
from saebench.running.names import default_names
from saebench.running.sources import expand
from saebench.testing import random_sae
from tests.conftest import write_sae
from tests.raising import raises


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three SAEs, one of them a folder deeper, as sparsify leaves them; and things that are none."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(["b", "a", "deep/layers.1"]):
        write_sae(folder / name, random_sae(seed=seed))
    (folder / "deep" / "config.json").write_text("{}")
    (folder / "README.md").write_text("SAEs\n")
    (folder / "empty").mkdir()
    shutil.copytree(folder / "a", folder / ".hidden")
    return folder


def found(*sources: str | Path, format: str | None = None) -> tuple[list[str], list[str]]:
    said: list[str] = []
    return [str(s) for s in expand(sources, format, said.append)], said


def test_a_folder_or_a_pattern_stands_for_the_saes_in_it_by_name(runs: Path) -> None:
    three = [f"{runs}/a", f"{runs}/b", f"{runs}/deep/layers.1"]
    assert found(runs) == (three, [f"{runs}: 3 SAEs"])
    assert found(f"{runs}/*") == (three, [f"{runs}/*: 3 SAEs; no SAE: README.md, empty"])
    assert found(f"{runs}/[ab]", f"{runs}/*")[0] == three  # none twice
    assert found(f"{runs}/deep") == (three[2:], [f"{runs}/deep: 1 SAE"])
    assert found(runs, format="saelens")[0] == three
    assert found(runs, format="goodfire") == ([str(runs)], [])


def test_what_is_one_sae_or_none_stays_as_it_is(runs: Path) -> None:
    for source in (f"{runs}/a", f"{runs}/empty", f"{runs}/no-such", f"{runs}/no*such", "hf:owner/repo/*"):
        assert found(source) == ([source], [])
    sae = random_sae()
    assert expand([sae], None, print) == [sae]


def test_a_damaged_one_stands_for_itself(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs/a/sae_weights.safetensors").write_bytes(b"")
    (tmp_path / "runs/b/cfg.json").unlink()
    (tmp_path / "runs/deep/layers.1/sae_weights.safetensors").unlink()
    expected = [f"{tmp_path}/runs/{name}" for name in ("a", "b", "deep/layers.1")]
    assert found(tmp_path / "runs")[0] == expected
    assert found(f"{tmp_path}/runs/*")[0] == expected


def test_a_checkpoint_of_the_middle_of_a_run_is_not_its_end(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "run")
    shutil.copytree(runs / "b", tmp_path / "run/checkpoints/5")
    assert found(tmp_path / "run") == ([f"{tmp_path}/run"], [])
    (tmp_path / "run/sae_weights.safetensors").write_bytes(b"")
    assert found(tmp_path / "run") == ([f"{tmp_path}/run"], [])


def test_a_damaged_file_beside_them_hides_none(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs/junk.pt").write_bytes(b"\x00" * 100)
    assert found(tmp_path / "runs")[0] == [f"{tmp_path}/runs/{name}" for name in ("a", "b", "deep/layers.1", "junk.pt")]


def test_what_is_something_else_is_no_sae_that_lacks_a_file(runs: Path, tmp_path: Path) -> None:
    """A language model beside the SAEs has a config.json and weights, and so has another format's SAE."""
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs/model").mkdir()
    (tmp_path / "runs/model/config.json").write_text("{}")
    save_file({"lm_head.weight": torch.zeros(3, 2)}, tmp_path / "runs/model/model.safetensors")
    assert found(tmp_path / "runs")[0] == [f"{tmp_path}/runs/{name}" for name in ("a", "b", "deep/layers.1")]


def test_each_is_taken_once(runs: Path, tmp_path: Path) -> None:
    """Whatever names it again: a link, a pattern that goes into it, or itself beside its folder."""
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs/latest").symlink_to(tmp_path / "runs/b")
    three = [f"{tmp_path}/runs/{name}" for name in ("a", "b", "deep/layers.1")]
    assert found(tmp_path / "runs")[0] == three
    assert found(f"{tmp_path}/runs/**")[0] == three
    assert found(f"{tmp_path}/runs/b", tmp_path / "runs") == (
        [f"{tmp_path}/runs/b", three[0], three[2]], [f"{tmp_path}/runs: 2 SAEs"],
    )  # fmt: skip


@pytest.mark.parametrize("nothing", ["", " "])
def test_an_empty_name_is_not_this_folder(nothing: str) -> None:
    with raises(saebench.SaebenchError, "--sae", "empty"):
        found(nothing)


def test_names_that_are_the_same_get_the_folder_above(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("s0/topk", "s1/topk", "s1/relu", "x/trainer_0", "y/trainer_0")]
    for path in paths:
        path.mkdir(parents=True)
    assert default_names(paths) == ["s0-topk", "s1-topk", "relu", "x-trainer_0", "y-trainer_0"]


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["run", *map(str, args)])


def test_one_of_them_costs_the_others_nothing(runs: Path, llama: Path, tokens: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs/a/sae_weights.safetensors").write_bytes(b"")
    shutil.copytree(tmp_path / "runs/b", tmp_path / "runs/c")
    rest = ("--model", llama, "--tokens", tokens, "--results", tmp_path / "r", "--metric", "geometry", "--json")
    result = run("--sae", tmp_path / "runs", *rest)
    assert result.exit_code == 1
    assert [r["sae"]["name"] for r in json.loads(result.stdout)] == ["b", "deep-layers.1"]
    assert f"{tmp_path / 'runs'}: 4 SAEs" in result.stderr.replace("\n", "")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 2
    assert "file is empty" in errors[0]
    assert errors[1] == "error: c: the same SAE as 'b': give it once"


def test_names_are_counted_as_the_saes_are(runs: Path, llama: Path, tokens: Path, tmp_path: Path) -> None:
    common = {"model": str(llama), "tokens": tokens, "results": tmp_path, "metrics": ["geometry"]}
    records = saebench.run(runs, names=["x", "y", "z"], **common)
    assert [r.sae["name"] for r in records] == ["x", "y", "z"]
    with raises(saebench.SaebenchError, "--name", 1, 3):
        saebench.run(runs, names=["x"], **common)
