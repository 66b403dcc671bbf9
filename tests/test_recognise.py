"""What is said of a checkpoint that did not arrive whole: which file, what is wrong with it, and what to do."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from saebench import SaebenchError, load_sae
from saebench.cli import main

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
        (lambda data: data[: len(data) * 3 // 4], ["cut short", "download it again"]),
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
    assert f"{tmp_path / 'copy'} does" in refusal(tmp_path)
    shutil.rmtree(tmp_path / "copy")
    (tmp_path / "config.json").unlink()
    assert refusal(tmp_path).startswith(f"{tmp_path / 'rng_state.pth'}: not readable as torch weights")


def test_a_torch_file_of_before_the_zip_archives(tmp_path: Path) -> None:
    folder = arrived("dictionary_learning/BatchTopKSAE", tmp_path)
    state = torch.load(folder / "ae.pt")
    torch.save(state, folder / "ae.pt", _use_new_zipfile_serialization=False)
    message = refusal(folder)
    assert "before torch 1.6" in message
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
