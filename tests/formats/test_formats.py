"""What is particular to one format: refusals, orientation, and what is read from a path. Numbers are in test_reference."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saebench import SaebenchError, load_sae
from saebench.inspection import inspect_sae
from tests.raising import raises

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture
def copy(tmp_path: Path) -> Any:
    def make(case: str, name: str = "copy") -> Path:
        target = tmp_path / name
        shutil.copytree(REFERENCE / case, target)
        return target

    return make


def refused(path: Path, *words: str, **options: Any) -> None:
    with pytest.raises(SaebenchError) as caught:
        load_sae(path, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# --- dictionary_learning ---------------------------------------------------------------------------------------------


def test_dictionary_learning_k_in_both_places_must_agree(copy: Any) -> None:
    folder = copy("dictionary_learning/AutoEncoderTopK")
    config = json.loads((folder / "config.json").read_text())
    config["trainer"]["k"] = 6
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "'k' is 5", "trainer.k", "is 6")


def test_dictionary_learning_trainer_keys_are_checked(copy: Any) -> None:
    folder = copy("dictionary_learning/AutoEncoder")
    config = json.loads((folder / "config.json").read_text())
    config["trainer"]["apply_temperature"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "trainer.apply_temperature", "--ignore-key apply_temperature")
    load_sae(folder, ignore_keys=["apply_temperature"])


def test_dictionary_learning_hook_from_the_layer(copy: Any) -> None:
    folder = copy("dictionary_learning/AutoEncoder")
    config = json.loads((folder / "config.json").read_text())
    config["trainer"]["submodule_name"] = None
    (folder / "config.json").write_text(json.dumps(config))
    assert load_sae(folder).metadata.hook == "blocks.3.hook_resid_post"
    config["buffer"]["io"] = "in"
    (folder / "config.json").write_text(json.dumps(config))
    assert load_sae(folder).metadata.hook is None


def test_dictionary_learning_backup_without_its_factor(copy: Any) -> None:
    folder = copy("dictionary_learning/BatchTopKSAE-backup")
    state = torch.load(folder / "ae.pt")
    torch.save(state | {"norm_factor": None}, folder / "ae.pt")
    refused(folder, "norm_factor")


def test_matryoshka_groups_must_add_up(copy: Any) -> None:
    folder = copy("dictionary_learning/MatryoshkaBatchTopKSAE")
    state = torch.load(folder / "ae.pt")
    torch.save(state | {"group_sizes": torch.tensor([6, 8, 11])}, folder / "ae.pt")
    refused(folder, "group_sizes", "24")


# --- sparsify --------------------------------------------------------------------------------------------------------


def test_sparsify_says_where_it_was_trained(copy: Any) -> None:
    folder = copy("sparsify/topk", "my-run")
    (folder / "config.json").write_text(json.dumps({"sae": {}, "model": "org/model", "ctx_len": 2048}))
    meta = load_sae(folder / "layers.3").metadata
    assert (meta.hook, meta.model, meta.context_length) == ("layers.3", "org/model", 2048)


def test_sparsify_transcoder_hooks() -> None:
    meta = load_sae(REFERENCE / "sparsify/transcoder/layers.3.mlp").metadata
    assert (meta.hook, meta.hook_out) == ("model.layers.3.post_attention_layernorm", "blocks.3.hook_mlp_out")


def test_sparsify_signed_and_indivisible_groups(copy: Any) -> None:
    folder = copy("sparsify/topk") / "layers.3"
    edit(folder / "cfg.json", signed=True)
    sae, x = load_sae(folder), torch.randn(50, 8)
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    kept = pre.abs() >= pre.abs().topk(6).values[:, -1:]
    torch.testing.assert_close(sae.encode(x).dense(), torch.where(kept, pre, 0.0))
    assert float(sae.encode(x).values.min()) < 0
    edit(folder / "cfg.json", signed=False, activation="groupmax", k=7)
    refused(folder, "groupmax with k = 7")
    edit(folder / "cfg.json", activation="topk", num_latents=25)
    refused(folder, "25 latents")


# --- Gemma Scope -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "model", "hook", "hook_out"),
    [
        ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "google/gemma-2-2b", "blocks.20.hook_resid_post", None),
        ("gemma-scope-9b-it-mlp/layer_3/width_16k/average_l0_9", "google/gemma-2-9b-it", "blocks.3.hook_mlp_out", None),
        ("gemma-scope-2b-pt-att/layer_0/width_16k/average_l0_1", "google/gemma-2-2b", "blocks.0.attn.hook_z", None),
        ("elsewhere/layer_20/width_16k", None, None, None),
    ],
)  # fmt: skip
def test_gemma_scope_place_is_in_the_path(
    tmp_path: Path, folders: str, model: str | None, hook: str | None, hook_out: str | None
) -> None:
    target = tmp_path / folders
    source = REFERENCE / "gemma_scope/res/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_71"
    shutil.copytree(source, target)
    meta = load_sae(target).metadata
    assert (meta.model, meta.hook, meta.hook_out) == (model, hook, hook_out)


def test_gemma_scope_archives_with_objects_or_other_bytes(tmp_path: Path) -> None:
    arrays = {"W_enc": np.ones((8, 24), dtype=">f4"), "W_dec": np.asfortranarray(np.ones((24, 8), dtype="f4"))}
    rest = {"b_enc": np.ones(24, dtype="f4"), "b_dec": np.ones(8, dtype="f4"), "threshold": np.ones(24, dtype="f4")}
    np.savez_compressed(tmp_path / "params.npz", **arrays, **rest)
    sae = load_sae(tmp_path)
    assert float(sae.W_enc.sum()) == 8 * 24
    assert sae.W_dec.is_contiguous()
    np.savez(tmp_path / "params.npz", **(rest | arrays | {"b_dec": np.array([{}], dtype=object)}))
    refused(tmp_path, "b_dec", format="gemma_scope")


def test_gemma_scope_2_cross_layer_is_no_sae(tmp_path: Path) -> None:
    state = {
        "w_enc": torch.ones(8, 24), "w_dec": torch.ones(24, 3, 8), "b_enc": torch.ones(24), "b_dec": torch.ones(8),
        "threshold": torch.ones(24),
    }  # fmt: skip
    save_file(state, tmp_path / "params.safetensors")
    refused(tmp_path, "cross-layer")
    save_file(state | {"w_dec": torch.ones(24, 8), "threshold": -torch.ones(24)}, tmp_path / "params.safetensors")
    refused(tmp_path, "never learned")


# --- OpenMOSS --------------------------------------------------------------------------------------------------------


def test_llama_scope_fold_by_hand() -> None:
    """The derivation in float64 from the stored numbers: scale to the model's space, then unit decoder rows."""
    folder = REFERENCE / "llama_scope/jumprelu"
    cfg = json.loads((folder / "hyperparams.json").read_text())
    state = {k: v.double() for k, v in load_file(folder / "checkpoints/final.safetensors").items()}
    norms = cfg["dataset_average_activation_norm"]
    s_in, s_out = math.sqrt(8) / norms["in"], math.sqrt(8) / norms["out"]
    norm = state["decoder.weight"].norm(dim=0)
    sae = load_sae(folder)
    torch.testing.assert_close(sae.W_enc.double(), (state["encoder.weight"] * norm[:, None] * s_in / s_out).T)
    torch.testing.assert_close(sae.b_enc.double(), state["encoder.bias"] * norm / s_out)
    torch.testing.assert_close(sae.W_dec.double(), (state["decoder.weight"] / norm).T)
    torch.testing.assert_close(sae.b_dec.double(), state["decoder.bias"] / s_out)


def test_llama_scope_names_its_model_in_a_file_beside(copy: Any) -> None:
    folder = copy("llama_scope/jumprelu")
    assert load_sae(folder).metadata.model is None
    about = {"model_name": "meta-llama/Llama-3.1-8B", "model_from_pretrained_path": "/theirs", "d_model": 8}
    (folder / "lm_config.json").write_text(json.dumps(about))
    assert load_sae(folder).metadata.model == "meta-llama/Llama-3.1-8B"
    (folder / "lm_config.json").write_text(json.dumps(about | {"model_name": ["gpt2"]}))
    refused(folder, "lm_config.json", "model_name")
    (folder / "lm_config.json").write_text("{")
    refused(folder, "lm_config.json")


def test_llama_scope_refusals(copy: Any) -> None:
    folder = copy("llama_scope/jumprelu")
    config = folder / "hyperparams.json"
    edit(config, norm_activation="token-wise")
    refused(folder, "norm_activation")
    edit(config, norm_activation="dataset-wise", dataset_average_activation_norm={"in": 3.0})
    refused(folder, "dataset_average_activation_norm.out")
    edit(config, dataset_average_activation_norm={"in": 3.0, "out": 3.0}, act_fn="topk")
    refused(folder, "act_fn")
    edit(config, act_fn="jumprelu", use_glu_encoder=True)
    refused(folder, "use_glu_encoder")


def test_llamascopium_refusals(copy: Any) -> None:
    folder = copy("llamascopium/jumprelu")
    edit(folder / "config.json", act_fn="batchtopk")
    refused(folder, "batchtopk", ignore_keys=["activation_function.log_jumprelu_threshold"])
    edit(folder / "config.json", act_fn="jumprelu", sae_type="crosscoder")
    refused(folder, "sae_type")
    edit(folder / "config.json", sae_type="sae", norm_activation="batch-wise")
    refused(folder, "batch-wise")


# --- files of one ----------------------------------------------------------------------------------------------------


def test_openai_refusals(copy: Any) -> None:
    folder = copy("openai/topk")
    state = torch.load(folder / "5.pt")
    torch.save(state | {"activation": "GELU"}, folder / "5.pt")
    refused(folder, "GELU")
    torch.save(state | {"activation_state_dict": {"k": 4, "postact_fn": "ReLU"}}, folder / "5.pt")
    refused(folder, "contradicts")
    for key in ("activation.k", "activation.postact_fn"):
        state.pop(key)
    torch.save(state | {"activation_state_dict": {"postact_fn": "ReLU"}}, folder / "5.pt")
    refused(folder, "--k")
    assert load_sae(folder, k=3).metadata.declared_l0 == 3


def test_llama3_interpretability_needs_its_k() -> None:
    refused(REFERENCE / "llama3_interpretability/topk", "--k")


def test_qwen_scope_reads_k_and_model_from_the_repository(tmp_path: Path) -> None:
    folder = tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_5"
    folder.mkdir()
    shutil.copy(REFERENCE / "qwen_scope/topk/layer3.sae.pt", folder)
    meta = load_sae(folder / "layer3.sae.pt").metadata
    assert (meta.declared_l0, meta.model, meta.hook) == (5, "Qwen/Qwen3-1.7B-Base", "blocks.3.hook_resid_post")
    refused(folder / "layer3.sae.pt", "--k 7", k=7)


def test_qwen_scope_orients_by_the_biases(tmp_path: Path) -> None:
    state = torch.load(REFERENCE / "qwen_scope/topk/layer3.sae.pt")
    other = state | {"W_enc": state["W_enc"].T.contiguous(), "W_dec": state["W_dec"].T.contiguous()}
    torch.save(other, tmp_path / "layer3.sae.pt")
    stored = load_sae(REFERENCE / "qwen_scope/topk/layer3.sae.pt", k=5)
    assert load_sae(tmp_path, k=5).sha256() == stored.sha256()
    torch.save(other | {"W_dec": state["W_dec"]}, tmp_path / "layer3.sae.pt")
    refused(tmp_path, "transposed", k=5)


def test_goodfire_place_is_in_the_name() -> None:
    meta = load_sae(REFERENCE / "goodfire/relu").metadata
    assert (meta.model, meta.hook) == ("Llama-3.1-8B-Instruct", "blocks.19.hook_resid_post")


def test_transcoder_places_and_split_files(tmp_path: Path) -> None:
    meta = load_sae(REFERENCE / "transcoders/mwhanna").metadata
    assert (meta.model, meta.hook, meta.hook_out) == (
        "Qwen/Qwen3-4B", "model.layers.3.mlp.input", "blocks.3.hook_mlp_out",
    )  # fmt: skip
    state = load_file(REFERENCE / "transcoders/mwhanna/layer_3.safetensors")
    save_file({f"{n}_3": state[n] for n in ("W_enc", "b_enc", "b_dec")}, tmp_path / "W_enc_3.safetensors")
    save_file({"W_dec_3": state["W_dec"][:, None].contiguous()}, tmp_path / "W_dec_3.safetensors")
    split, x = load_sae(tmp_path / "W_enc_3.safetensors"), torch.randn(5, 8)
    assert torch.equal(split(x), load_sae(REFERENCE / "transcoders/mwhanna/layer_3.safetensors")(x))
    save_file({"W_dec_3": torch.ones(24, 2, 8)}, tmp_path / "W_dec_3.safetensors")
    refused(tmp_path / "W_enc_3.safetensors", "cross-layer")


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_lists_what_is_missing_with_its_flag() -> None:
    found = inspect_sae(REFERENCE / "llama3_interpretability/topk")
    assert [m.flag for m in found.missing] == ["--k", "--hook", "--model"]
    assert found.sha256 is None
    assert found.declared_l0 is None
    assert not any(f.source == "--k" for f in found.facts)
    told = inspect_sae(
        REFERENCE / "llama3_interpretability/topk", k=5, hook="model.layers.22.input_layernorm", model="m"
    )
    assert told.missing == ()
    assert told.declared_l0 == 5
    assert [m.flag for m in inspect_sae(REFERENCE / "saelens/legacy-scale").missing] == ["--scale"]


@pytest.mark.parametrize("case", ["saelens/gated-none-sub", "llama_scope/jumprelu", "dictionary_learning/BatchTopKSAE"])
def test_inspect_is_json_and_lines(case: str) -> None:
    found = inspect_sae(REFERENCE / case)
    sae = load_sae(REFERENCE / case)
    again = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert again["sha256"] == sae.sha256()
    assert (again["d_in"], again["d_sae"], again["dtype"]) == (8, 24, "float32")
    assert again["norms"]["W_dec"]["high"] == pytest.approx(float(sae.W_dec.norm(dim=1).max()))
    assert again["norms"]["W_enc"]["low"] == pytest.approx(float(sae.W_enc.norm(dim=0).min()))
    text = "\n".join(found.lines())
    for fact in sae.metadata.facts:
        assert fact.source in text


def test_inspect_refuses_what_load_refuses(tmp_path: Path) -> None:
    with raises(SaebenchError, "no such file"):
        inspect_sae(tmp_path / "absent")
    with raises(SaebenchError, "cannot be measured without --k"):
        inspect_sae(REFERENCE / "llama3_interpretability/topk", measure=True)
    with raises(SaebenchError, "--model and --hook"):
        inspect_sae(REFERENCE / "openai/topk", measure=True)
