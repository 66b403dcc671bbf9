"""Language models by name, folder and file: their identity in records."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import saebench
from saebench.cli import main
from saebench.errors import UsageError
from saebench.hookpoint import HookPoint
from saebench.models import load_model, model_title, require_tokens
from saebench.subject import Subject
from saebench.testing import random_sae, tiny_llama
from tests.conftest import HOOK, write_sae
from tests.raising import check_message, raises


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


def tiny_gpt2(folder: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=12, n_embd=32, n_layer=3, n_head=4)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_contexts_longer_than_the_position_table(
    more: list[str], two_saes: list[Path], tokens: Path, tmp_path: Path
) -> None:
    model = tiny_gpt2(tmp_path / "gpt2")
    line = ["run", "--sae", two_saes[0], "--model", model, "--tokens", tokens, "--results", tmp_path / "results", *more]
    result = CliRunner().invoke(main, list(map(str, line)))
    assert result.exit_code == 2, result.output + result.stderr
    [message] = {x for x in (result.output + result.stderr).splitlines() if "positions" in x}
    check_message(message, "16 tokens", "12 positions", "gpt2")
    assert "bug" not in message


def test_tokens_beyond_the_embedding(llama: Path) -> None:
    loaded = load_model(str(llama))
    require_tokens(loaded, np.full((2, 128), 96))
    with raises(UsageError, 97, "embedding", loaded.id):
        require_tokens(loaded, np.full((2, 8), 97))
    with raises(UsageError, 129, 128):
        require_tokens(loaded, np.zeros((2, 129), dtype=np.int64))


def test_a_vision_tower_as_deep_as_the_text_model(tokens: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    }  # fmt: skip
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=95)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "both")
    subject = Subject(load_model(str(tmp_path / "both")))
    ids = torch.from_numpy(np.load(tokens)[:2])
    x, _ = subject.capture(ids, HookPoint(0, "resid_post"))
    with torch.no_grad():
        expected = subject.model(input_ids=ids, output_hidden_states=True).hidden_states[1]
    assert torch.equal(x, expected)
    records = saebench.run(
        saes=[write_sae(tmp_path / "sae", random_sae())], model=str(tmp_path / "both"), hook=HOOK, tokens=tokens,
        metrics=["fidelity"], results=tmp_path / "results",
    )  # fmt: skip
    assert len(list(records)) == 1
