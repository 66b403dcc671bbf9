"""Language models by name, folder and file: their identity in records."""

from pathlib import Path

import pytest

import saebench
from saebench.models import load_model, model_title
from saebench.testing import tiny_llama
from tests.conftest import HOOK


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "a.b.c", "v1.5", "plain"])
def test_a_folder_keeps_its_whole_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert model_title(f"{tmp_path}/{name}") == model_title(f"{tmp_path}/{name}/") == name


def test_a_gguf_file_loses_its_ending_only(tmp_path: Path) -> None:
    (tmp_path / "Llama-3.2-1B.Q4_K_M.gguf").touch()
    assert model_title(f"{tmp_path}/Llama-3.2-1B.Q4_K_M.gguf") == "Llama-3.2-1B.Q4_K_M"
    assert model_title("meta-llama/Llama-3.2-1B") == "meta-llama/Llama-3.2-1B"


def test_two_models_of_one_series_have_folders_of_their_own(tokens: Path, two_saes: list[Path], tmp_path: Path) -> None:
    for seed, name in enumerate(["Llama-3.2-1B", "Llama-3.2-3B"]):
        tiny_llama(tmp_path / name, seed=seed)
        assert load_model(str(tmp_path / name)).id == name
        saebench.run(
            saes=[two_saes[0]], model=str(tmp_path / name), hook=HOOK, tokens=tokens, metrics=["sparsity"],
            results=tmp_path / "results",
        )  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "results").iterdir() if p.name[0] != ".") == [
        "Llama-3.2-1B",
        "Llama-3.2-3B",
    ]
