"""Runs on planted models and on files of activations, from the command line's request to the record."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import save_file

import saebench
from saebench.cli import main
from saebench.errors import SaebenchError, UsageError
from saebench.results import Record
from saebench.runner import RunError
from saebench.sae import SAE
from saebench.sources.file import FileSource
from saebench.testing import identity_sae, random_sae, tiny_llama
from saebench.training.plan import read_requests
from tests.raising import check_message, raises

PLANTED = """
name = "tiny"
version = 1
metrics = ["planted", "fidelity", "sparsity", "geometry"]
[planted]
features = 40
d = 16
roots = 8
depth = 1
[samples]
contexts = 12
length = 32
"""


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(PLANTED)
    return path


def measure(sae: SAE, results: Path, **options: object) -> Record:
    [record] = saebench.run(sae, results=results, **options)  # type: ignore[arg-type]
    return record


def scores(record: Record) -> dict[tuple[str, str, float | None], float]:
    return {(row["metric"], row["key"], row["at"]): row["value"] for row in record.scores}


# --- planted ---------------------------------------------------------------------------------------------------------


def test_batches_change_no_score_of_a_planted_run(planted: Path, tmp_path: Path) -> None:
    sae = random_sae(16, 40)
    one, other = (measure(sae, tmp_path / str(b), planted=str(planted), batch_size=b) for b in (1, 5))
    assert scores(one) == scores(other)
    assert (one.model["id"], one.hook, one.model["type"]) == ("tiny", "activations", "planted")
    assert not one.errors
    assert ("fidelity", "ce_clean", None) not in scores(one)


def test_a_planted_record_is_found_again(planted: Path, tmp_path: Path) -> None:
    sae = random_sae(16, 40)
    first = measure(sae, tmp_path, planted=str(planted))
    again = measure(sae, tmp_path, planted=str(planted))
    assert (again.path, len(again.runs)) == (first.path, 1)


def test_another_planted_model_is_another_record(planted: Path, tmp_path: Path) -> None:
    sae = random_sae(16, 40)
    first = measure(sae, tmp_path, planted=str(planted))
    planted.write_text(PLANTED.replace("depth = 1", "depth = 1\nseed = 43"))
    assert measure(sae, tmp_path, planted=str(planted)).fingerprint != first.fingerprint


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "safetensors", "parquet"])
def test_every_kind_of_file_gives_the_same_scores(suffix: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    path = write(x, tmp_path / f"x.{suffix}")
    record = measure(random_sae(16, 40), tmp_path / "results", activations=path)
    sae = random_sae(16, 40)
    xh = sae(torch.from_numpy(x)).double().numpy()
    by_hand = 1 - ((x - xh) ** 2).sum() / ((x - x.mean(0, dtype=np.float64)) ** 2).sum()
    assert record.score("explained_variance")["value"] == pytest.approx(by_hand, rel=1e-6)
    assert {row["metric"] for row in record.scores} >= {"fidelity", "sparsity", "geometry"}


def test_a_model_run_and_its_dumped_activations_agree(tmp_path: Path) -> None:
    model = str(tiny_llama(tmp_path / "tiny"))
    ids = np.random.default_rng(0).integers(3, 97, (12, 16))
    np.save(tmp_path / "ids.npy", ids)
    sae = random_sae(seed=1)
    live = measure(sae, tmp_path / "a", model=model, hook="blocks.1.hook_resid_post", tokens=tmp_path / "ids.npy",
                   metrics=["fidelity", "sparsity"])  # fmt: skip
    from saebench.hookpoint import HookPoint
    from saebench.models import load_model
    from saebench.subject import Subject

    x, _ = Subject(load_model(model)).capture(torch.from_numpy(ids), HookPoint.parse("blocks.1.hook_resid_post"))
    np.save(tmp_path / "x.npy", x.numpy())
    dumped = measure(sae, tmp_path / "b", activations=tmp_path / "x.npy", metrics=["fidelity", "sparsity"])
    mine, theirs = scores(dumped), scores(live)
    assert len(mine) > 15
    for key, value in mine.items():
        assert value == pytest.approx(theirs[key], rel=1e-6, abs=1e-9), key


def test_two_files_are_two_boards(tmp_path: Path) -> None:
    rows = [np.random.default_rng(s).normal(size=(20, 16)).astype(np.float32) for s in (0, 1)]
    records = [
        measure(random_sae(16, 40), tmp_path / "r", activations=write(x, tmp_path / f"x{i}.npy"))
        for i, x in enumerate(rows)
    ]
    assert records[0].group != records[1].group


def test_labels_bring_probing_and_preservation(tmp_path: Path) -> None:
    """One-hot codes: the label is in every copy of x, so the identity SAE preserves accuracy exactly."""
    label = np.repeat(np.arange(4), 15)
    np.save(tmp_path / "x.npy", np.eye(8, dtype=np.float32)[label])
    pd.DataFrame({"kind": [f"class-{c}" for c in label]}).to_csv(tmp_path / "t.csv", index=False)
    record = measure(identity_sae(8), tmp_path / "r", activations=tmp_path / "x.npy", labels=tmp_path / "t.csv",
                     label_column="kind")  # fmt: skip
    assert record.score("preservation")["value"] == pytest.approx(1.0)
    assert "probing" in record.metrics


def test_blocks_of_patches_are_smooth_and_shuffled_ones_are_not(tmp_path: Path) -> None:
    """Moran's I of one latent that is on in the left half of 8 × 8 patches, against a null of permuted patches."""
    grid = np.zeros((30, 8, 8, 8), dtype=np.float32)
    random = np.random.default_rng(0)
    for image in grid:
        image[:, :4, random.integers(0, 4)] = 1
        image[:, 4:, random.integers(4, 8)] = 1
    grid *= random.uniform(0.9, 1.1, grid.shape)  # images that were all alike would have no interval
    blocks = grid.reshape(30, 64, 8)
    shuffled = np.stack([image[random.permutation(64)] for image in blocks])
    found = {}
    for name, x in (("blocks", blocks), ("shuffled", shuffled)):
        np.save(tmp_path / f"{name}.npy", x)
        record = measure(identity_sae(8), tmp_path / "r", activations=tmp_path / f"{name}.npy", grid="8,8")
        found[name] = record.score("moran")
    assert found["blocks"]["value"] > 0.5
    assert found["blocks"]["low"] > 0.4
    assert found["shuffled"]["value"] == pytest.approx(0, abs=0.04)


# --- bad input -------------------------------------------------------------------------------------------------------


def write(x: np.ndarray, path: Path) -> Path:
    if path.suffix == ".npy":
        np.save(path, x)
    elif path.suffix == ".safetensors":
        save_file({"x": x}, path)
    else:
        pd.DataFrame({"x": list(x), "id": range(len(x))}).to_parquet(path)
    return path


def test_files_that_are_no_activations_are_refused(tmp_path: Path) -> None:
    cases = {
        "object.npy": lambda p: np.save(p, np.array([[1, "a"]], dtype=object), allow_pickle=True),
        "whole.npy": lambda p: np.save(p, np.zeros((3, 4), dtype=np.int64)),
        "flat.npy": lambda p: np.save(p, np.zeros(4, dtype=np.float32)),
        "empty.npy": lambda p: np.save(p, np.zeros((0, 4), dtype=np.float32)),
        "ragged.parquet": lambda p: pd.DataFrame({"x": [[1.0, 2.0], [1.0]]}).to_parquet(p),
        "two.safetensors": lambda p: save_file(
            {"a": np.zeros((2, 2), np.float32), "b": np.zeros((2, 2), np.float32)}, p
        ),
        "noise.npy": lambda p: p.write_bytes(b"\x93NUMPY nonsense"),
        "x.pickle": lambda p: p.write_bytes(b""),
    }
    for name, make in cases.items():
        make(tmp_path / name)
        with raises(UsageError, name):
            FileSource(tmp_path / name)
    with raises(UsageError, "absent.npy"):
        FileSource(tmp_path / "absent.npy")


def bomb(path: Path) -> None:
    """2.7 · 10^8 zeros in lists: 0.2 MB on disk, 1 GB in memory."""
    lists = pa.array([np.zeros(1 << 16, np.float32)] * 64, pa.list_(pa.float32()))
    with pq.ParquetWriter(path, pa.schema({"x": lists.type}), compression="zstd") as writer:
        for _ in range(65):
            writer.write_table(pa.table({"x": lists}))


def absurd(path: Path) -> None:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())


def test_hostile_files_of_activations_are_refused_at_once(tmp_path: Path) -> None:
    cases: dict[str, Callable[[Path], object]] = {
        "pipe.npy": os.mkfifo,
        "pipe.parquet": os.mkfifo,
        "device.npy": lambda p: p.symlink_to("/dev/zero"),
        "device.parquet": lambda p: p.symlink_to("/dev/zero"),
        "device.safetensors": lambda p: p.symlink_to("/dev/zero"),
        "folder.npy": Path.mkdir,
        "absurd.npy": absurd,
        "archive.npy": lambda p: np.savez(p.open("wb"), x=np.zeros((2, 2), np.float32)),
        "bomb.parquet": bomb,
        "texts.parquet": lambda p: pd.DataFrame({"x": [["a"], ["b"]]}).to_parquet(p),
        "short.safetensors": lambda p: p.write_bytes(b"\xff" * 40),
    }
    for name, make in cases.items():
        make(tmp_path / name)
        before = pa.total_allocated_bytes()
        with raises(UsageError, name):
            FileSource(tmp_path / name)
        assert pa.total_allocated_bytes() - before < 2**24, name


def test_nan_yields_no_number(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
    x[7, 3] = np.nan
    record = measure(random_sae(16, 40), tmp_path / "r", activations=write(x, tmp_path / "x.npy"), metrics=["fidelity"])
    assert not record.scores
    check_message(record.errors["fidelity"], "x.npy", "item 7")


def test_another_width_is_refused(tmp_path: Path) -> None:
    path = write(np.zeros((20, 12), np.float32) + np.arange(12, dtype=np.float32), tmp_path / "x.npy")
    with pytest.raises(RunError) as error:
        measure(random_sae(16, 40), tmp_path / "r", activations=path)
    check_message(str(error.value), "16", "12")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"labels": "t.csv"}, ("t.csv", "3", "20")),
        ({"labels": "t.csv", "label_column": "colour"}, ("colour",)),
        ({"grid": "3,4"}, ("3,4", "12", "1")),
        ({"grid": "3"}, ("--grid", "3")),
        ({"planted": "planted-1k"}, ("--planted", "--activations")),
        ({"metrics": ["effects"]}, ("effects",)),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, object], parts: tuple[str, ...], tmp_path: Path
) -> None:
    path = write(np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32), tmp_path / "x.npy")
    pd.DataFrame({"label": ["a", "b", "a"]}).to_csv(tmp_path / "t.csv", index=False)
    if "labels" in options:
        options = options | {"labels": tmp_path / str(options["labels"])}
    with raises(SaebenchError, *parts):
        measure(random_sae(16, 40), tmp_path / "r", activations=path, **options)


def test_labels_and_grids_without_a_file_are_refused(tmp_path: Path) -> None:
    with raises(UsageError, "--labels", "--activations"):
        measure(random_sae(16, 40), tmp_path, labels="t.csv")


# --- training --------------------------------------------------------------------------------------------------------


def train(out: Path, *arguments: str) -> None:
    result = CliRunner().invoke(
        main, ["train", "topk", "--width", "24", "--k", "4", "--batch-size", "64", "--out", str(out), *arguments]
    )
    assert result.exit_code == 0, result.output


def test_training_on_a_planted_model_finds_its_features(planted: Path, tmp_path: Path) -> None:
    """Better than a random SAE on samples that it was not trained on; and the same run gives the same bits."""
    for name in ("a", "b"):
        train(tmp_path / name, "--planted", str(planted), "--tokens", "40000", "--set", "lr=0.003")
    trained = tmp_path / "a" / "topk-k4"
    assert saebench.load_sae(trained).sha256() == saebench.load_sae(tmp_path / "b" / "topk-k4").sha256()
    good = measure(saebench.load_sae(trained), tmp_path / "r", planted=str(planted))
    bad = measure(random_sae(16, 24), tmp_path / "r", planted=str(planted))
    assert good.score("mcc")["value"] > bad.score("mcc")["value"] + 0.05
    assert good.score("explained_variance")["value"] > 0.5


def test_training_on_a_file_needs_no_model(tmp_path: Path) -> None:
    path = write(np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32), tmp_path / "x.npy")
    train(tmp_path / "run", "--activations", str(path))
    assert saebench.load_sae(tmp_path / "run" / "topk-k4").d_in == 16


@pytest.mark.parametrize("clash", [("--model", "m"), ("--hook", "blocks.0.hook_resid_post"), ("--data", "t.csv")])
def test_a_planted_run_takes_no_option_of_a_language_model(clash: tuple[str, str], tmp_path: Path) -> None:
    arguments = ["train", "topk", "--planted", "planted-1k", "--width", "24", "--out", str(tmp_path / "o"), *clash]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    check_message(result.output.strip().removeprefix("error: "), "--planted", clash[0])


TABLE = '[[saes]]\nrecipe = "topk"\nwidth = 24\nk = 4\nname = "topk-k4"\n'


def test_a_file_trains_on_a_planted_model_as_the_command_does(planted: Path, tmp_path: Path) -> None:
    train(tmp_path / "command", "--planted", str(planted), "--tokens", "4096")
    run = tmp_path / "run.toml"
    run.write_text(f'planted = "{planted}"\ntokens = 4096\nbatch_size = 64\n{TABLE}')
    done = CliRunner().invoke(main, ["train", str(run), "--out", str(tmp_path / "file")])
    assert done.exit_code == 0, done.output
    one, other = (saebench.load_sae(tmp_path / name / "topk-k4") for name in ("command", "file"))
    assert one.sha256() == other.sha256()
    assert (other.metadata.model, other.metadata.hook) == ("tiny", "activations")


@pytest.mark.parametrize("key", ['model = "m"', 'hook = "h"', 'data = "t.csv"', "context_length = 8", "max_norm = 3.0"])
def test_a_planted_file_takes_no_key_of_a_language_model(key: str, planted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text(f'planted = "{planted}"\n{key}\n{TABLE}')
    with raises(UsageError, "run.toml", "planted", key.partition(" ")[0]):
        read_requests(run)


@pytest.mark.parametrize(
    ("source", "clash"),
    [("planted", ("--hook", "h")), ("planted", ("--no-bos",)), ("model", ("--planted", "planted-1k"))],
)
def test_options_of_another_source_do_not_go_with_a_file(
    source: str, clash: tuple[str, ...], planted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run.toml"
    keys = f'planted = "{planted}"' if source == "planted" else 'model = "m"\nhook = "blocks.0.hook_resid_post"'
    run.write_text(f"{keys}\n{TABLE}")
    result = CliRunner().invoke(main, ["train", str(run), "--out", str(tmp_path / "o"), *clash])
    assert result.exit_code == 2
    check_message(
        result.output.strip().removeprefix("error: "), "bos" if clash[0] == "--no-bos" else clash[0], "run.toml"
    )
