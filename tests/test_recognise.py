"""What is said of a checkpoint that did not arrive whole: which file, what is wrong with it, and what to do."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import saebench
from saebench import SaebenchError, load_sae
from saebench.cli import main
from saebench.errors import UsageError
from saebench.format import CheckpointError
from saebench.loading import recognise as recognise_module
from saebench.loading.recognise import checkpoints_at
from saebench.testing import random_sae
from tests.conftest import write_sae
from tests.raising import raises

REFERENCE = Path(__file__).parent / "formats" / "reference"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 10633216\n"

# A checkpoint of each kind of file, and its file of weights.
WEIGHTS = {
    "saelens/topk-none-sub": "sae_weights.safetensors",
    "sparsify/topk/layers.3": "sae.safetensors",
    "dictionary_learning/BatchTopKSAE": "ae.pt",
    "gemma_scope/res/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_71": "params.npz",
    "llamascopium/jumprelu": "sae_weights.safetensors",
    "transcoders/circuit-tracer-jumprelu": "layer_3.safetensors",
    "openai/topk": "5.pt",
}


def arrived(case: str, tmp_path: Path) -> Path:
    """A copy of the checkpoint alone, without what the tests of formats keep beside it."""
    folder = tmp_path / "copy"
    shutil.copytree(REFERENCE / case, folder)
    for name in ("expected.safetensors", "options.json"):
        (folder / name).unlink(missing_ok=True)
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(SaebenchError) as caught:
        load_sae(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("case", WEIGHTS)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) * 3 // 4], ["truncated", "download it again"]),
        (lambda data: POINTER, ["git-LFS pointer", "git lfs pull"]),
        (lambda data: b"", ["empty", "download it again"]),
        (lambda data: b"<html>404 Not Found</html>", ["damaged", "download it again"]),
    ],
    ids=["cut", "pointer", "empty", "page"],
)
@pytest.mark.parametrize("named", ["folder", "file"])
def test_weights_that_did_not_arrive_whole(case: str, damage, words: list[str], named: str, tmp_path: Path) -> None:
    folder = arrived(case, tmp_path)
    file = folder / WEIGHTS[case]
    file.write_bytes(damage(file.read_bytes()))
    message = refusal(folder if named == "folder" else file)
    assert message.startswith(f"{file}: cannot be read")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("case", "removed", "words"),
    [
        ("saelens/topk-none-sub", "cfg.json", ["holds sae_weights.safetensors, but not ", "cfg.json (saelens)"]),
        (
            "saelens/topk-none-sub",
            "sae_weights.safetensors",
            ["holds cfg.json, but not ", "sae_weights.safetensors (saelens)"],
        ),
        ("sparsify/topk/layers.3", "sae.safetensors", ["holds cfg.json", "sae.safetensors (sparsify)"]),
        ("sparsify/topk/layers.3", "cfg.json", ["holds sae.safetensors, but not cfg.json (sparsify)"]),
        (
            "dictionary_learning/BatchTopKSAE",
            "config.json",
            ["holds ae.pt, but not ", "config.json (dictionary_learning)"],
        ),
        ("dictionary_learning/BatchTopKSAE", "ae.pt", ["holds config.json, but not ", "ae.pt (dictionary_learning)"]),
        ("llamascopium/jumprelu", "config.json", ["holds sae_weights", "config.json (llamascopium)"]),
    ],
)
def test_a_missing_file_is_named(case: str, removed: str, words: list[str], tmp_path: Path) -> None:
    folder = arrived(case, tmp_path)
    (folder / removed).unlink()
    message = refusal(folder)
    assert all(word in message for word in [str(folder), "download what is missing", *words]), message
    left = next(p for p in folder.iterdir() if p.is_file())
    if left.suffix != ".json":
        assert refusal(left) == message


def test_half_a_checkpoint_is_not_mistaken_for_a_run(tmp_path: Path) -> None:
    """A checkpoint from the middle of training lies below the one that was named, and is another SAE."""
    folder = arrived("dictionary_learning/BatchTopKSAE", tmp_path)
    shutil.copytree(folder, folder / "checkpoints")
    (folder / "config.json").unlink()
    assert "not config.json" in refusal(folder)


def test_a_runs_folder_points_at_the_sae_whatever_else_lies_there(tmp_path: Path) -> None:
    arrived("sparsify/topk/layers.3", tmp_path)
    np.save(tmp_path / "state.npy", np.zeros(3))
    torch.save({"generator": np.random.default_rng(0)}, tmp_path / "rng_state.pth")  # a pickle that nothing here opens
    (tmp_path / "config.json").write_text("{}")
    assert f"{tmp_path / 'copy'}: name" in refusal(tmp_path)
    shutil.rmtree(tmp_path / "copy")
    (tmp_path / "config.json").unlink()
    assert refusal(tmp_path).startswith(f"{tmp_path / 'rng_state.pth'}: not readable as torch weights")


def test_a_torch_file_of_before_the_zip_archives(tmp_path: Path) -> None:
    folder = arrived("dictionary_learning/BatchTopKSAE", tmp_path)
    state = torch.load(folder / "ae.pt")
    torch.save(state, folder / "ae.pt", _use_new_zipfile_serialization=False)
    message = refusal(folder)
    assert "before 1.6" in message
    assert "save it again" in message


def test_a_failing_disk_is_not_called_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("saebench.loading.weights.safe_open", failing)
    message = refusal(arrived("sparsify/topk/layers.3", tmp_path))
    assert "cannot be read: [Errno 5] Input/output error" in message
    assert "download" not in message


def test_inspect_says_it_too(tmp_path: Path) -> None:
    folder = arrived("saelens/topk-none-sub", tmp_path)
    (folder / "sae_weights.safetensors").write_bytes(POINTER)
    result = CliRunner().invoke(main, ["inspect", str(folder)])
    assert result.exit_code == 1
    assert "git-LFS pointer" in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_each_sae_of_a_run_is_recognised_once(
    two_saes: list[Path], llama: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    matching = recognise_module._matching

    def counted(path: Path, formats: Any) -> Any:
        asked.append(path.name)
        return matching(path, formats)

    monkeypatch.setattr(recognise_module, "_matching", counted)
    saebench.run(saes=two_saes, model=str(llama), tokens=tokens, metrics=["geometry"], results=tmp_path / "results")
    assert sorted(asked) == ["first", "second"]


def test_a_folder_of_many_files_is_refused_at_once(tmp_path: Path) -> None:
    for i in range(recognise_module._MOST_CHILDREN + 1):
        (tmp_path / f"{i}.txt").touch()
    with raises(UsageError, tmp_path, "5,001", "pattern"):
        checkpoints_at(tmp_path)
    write_sae(tmp_path, random_sae())  # unless it is an SAE itself
    assert [c.path for c in checkpoints_at(tmp_path)] == [tmp_path]


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop root, so the operating system's answer is planted."""
    runs = tmp_path / "runs"
    for seed, name in enumerate(["good", "locked"]):
        write_sae(runs / name, random_sae(seed=seed))
    locked = runs / "locked" / "sae_weights.safetensors"
    opened = Path.open

    def denied(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)
    with raises(CheckpointError, locked, "Permission denied"):
        load_sae(runs / "locked")
    assert [Path(c).name for c in checkpoints_at(runs)] == ["good", "locked"]  # its error is reported, not swallowed

    def forbidden(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    (runs / "closed").mkdir()
    monkeypatch.setattr(Path, "iterdir", forbidden)
    with raises(CheckpointError, runs / "closed", "Permission denied"):
        load_sae(runs / "closed")
    with raises(CheckpointError, "cannot be read", "too long"):
        load_sae(tmp_path / ("x" * 300))
