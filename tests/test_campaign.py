"""One TOML for a campaign: its grid by hand, shards that partition it, and records equal to single runs'."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import saebench
from saebench.cli import main
from saebench.errors import UsageError
from saebench.running.campaign import Shard, read_campaign, shard_of
from saebench.running.request import Request
from tests.raising import check_message, raises
from tests.running import same

GRID = """
model = ["org/a", "b"]
task = ["fidelity", "probing"]
metric = "sparsity"
limit = 4
[[saes]]
sae = "runs/{model}/{layer}/*"
hook = "blocks.{layer}.hook_resid_post"
layer = [3, 7]
[[saes]]
sae = ["x", "y"]
model = "c"
"""


def written(text: str, folder: Path) -> Path:
    path = folder / "campaign.toml"
    path.write_text(text)
    return path


def units(runs: list[Request]) -> list[tuple[object, ...]]:
    return [(run.model, run.hook, run.task, str(sae)) for run in runs for sae in run.sources]


def test_lists_multiply_and_places_are_filled(tmp_path: Path) -> None:
    runs = read_campaign(written(GRID, tmp_path), tmp_path / "r")
    expected = {
        (model, f"blocks.{layer}.hook_resid_post", task, f"runs/{model[-1]}/{layer}/*")
        for model in ("org/a", "b") for layer in (3, 7) for task in ("fidelity", "probing")
    } | {("c", None, task, sae) for task in ("fidelity", "probing") for sae in "xy"}  # fmt: skip
    assert set(units(runs)) == expected
    assert len(units(runs)) == len(expected)
    assert {(tuple(run.metrics), run.limit, run.folder) for run in runs} == {(("sparsity",), 4, tmp_path / "r")}


@pytest.mark.parametrize("count", [1, 3, 4, 16])
def test_shards_partition_the_runs(count: int, tmp_path: Path) -> None:
    runs = read_campaign(written(GRID, tmp_path))
    parts = [units(shard_of(runs, Shard(i, count), print)) for i in range(1, count + 1)]
    assert [unit for part in parts for unit in part] == units(runs)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shards_write_the_records_of_single_runs(two_saes, llama, tokens, tmp_path: Path) -> None:
    text = f"""
model = "{llama}"
tokens = "{tokens}"
metric = ["sparsity", "fidelity"]
results = "{tmp_path / "sharded"}"
layer = [0, 1]
sae = "{two_saes[0].parent}/*"
hook = "blocks.{{layer}}.hook_resid_post"
"""
    path = written(text, tmp_path)
    for shard in ("1/3", "3/3", "2/3"):
        done = CliRunner().invoke(main, ["campaign", str(path), "--shard", shard])
        assert done.exit_code == 0, done.output
    single = [
        record for layer in (0, 1)
        for record in saebench.run(two_saes, model=str(llama), tokens=tokens, metrics=["sparsity", "fidelity"],
                                   results=tmp_path / "single", hook=f"blocks.{layer}.hook_resid_post")
    ]  # fmt: skip
    sharded = {r.fingerprint: r for r in saebench.load_records(tmp_path / "sharded")}
    assert sharded.keys() == {r.fingerprint for r in single}
    for record in single:
        same(sharded[record.fingerprint], record)
    again = CliRunner().invoke(main, ["campaign", str(path)])
    assert again.stderr.count("already measured") == 4
    assert all(len(r.runs) == 1 for r in saebench.load_records(tmp_path / "sharded"))


def test_a_run_that_fails_costs_the_others_nothing(two_saes, llama, tokens, tmp_path: Path) -> None:
    text = f"""
model = ["{tmp_path}/no-model", "{llama}"]
tokens = "{tokens}"
metric = "sparsity"
hook = "blocks.1.hook_resid_post"
sae = "{two_saes[0]}"
"""
    done = CliRunner().invoke(main, ["campaign", str(written(text, tmp_path)), "--results", str(tmp_path / "r")])
    assert done.exit_code == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error")]
    check_message(line, "no-model")
    assert len(saebench.load_records(tmp_path / "r")) == 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["no SAE", "sae"]),
        ("sae = 3", ["sae", "3"]),
        ("sae = 'a'\nlimt = 3", ["limt", "limit"]),
        ("sae = 'a'\nlimit = true", ["limit", "True"]),
        ("sae = 'a'\ndtype = 'float8'", ["dtype", "float8"]),
        ("sae = 'a'\nmodel = []", ["empty list"]),
        ("sae = 'runs/{layer}'", ["{layer}"]),
        ("sae = 'runs/{where}'", ["{where}"]),
        ("saes = 3", ["[[saes]]"]),
        ("sae = 'a'\nlayer = 1\n[[saes", []),
    ],
)
def test_files_that_are_no_campaign(text: str, parts: list[str], tmp_path: Path) -> None:
    with raises(UsageError, "campaign.toml", *parts):
        read_campaign(written(text, tmp_path))


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3"])
def test_shards_that_do_not_exist(text: str) -> None:
    with raises(UsageError, "--shard", text):
        Shard.parse(text)
