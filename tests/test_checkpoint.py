"""Refusals of `load_sae` that hold for every format, options that contradict a checkpoint, and `save_sae`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saebench.plugins.formats.saelens import SAELens
from safetensors.torch import load_file, save_file

import saebench.loading.weights
from saebench import SAE, SaebenchError, load_sae, save_sae
from saebench.errors import UsageError
from saebench.format import CheckpointError, LoadOptions, MissingError
from saebench.loading.readers import SafetensorsFile, TorchFile
from saebench.sae import AbsTopK, Gated, GroupMax, JumpReLU, LayerNorm, ReLU, TokenScale, TopK
from saebench.testing import check_format, random_sae
from tests.raising import raises

REFERENCE = Path(__file__).parent / "formats" / "reference"
SAELENS = REFERENCE / "saelens"


@pytest.fixture
def copy(tmp_path: Path) -> Any:
    def make(case: str) -> Path:
        target = tmp_path / "copy"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(REFERENCE / case, target)
        return target

    return make


def edit(folder: Path, name: str = "cfg.json", **changes: Any) -> None:
    """Set config keys; a key given as `drop` names one to delete, `at` the inner object."""
    data = json.loads((folder / name).read_text())
    inner = data[changes.pop("at")] if "at" in changes else data
    inner.pop(changes.pop("drop", None), None)
    inner.update(changes)
    (folder / name).write_text(json.dumps(data))


def retensor(folder: Path, name: str = "sae_weights.safetensors", **changes: torch.Tensor | None) -> None:
    state = load_file(folder / name)
    state |= {k: v for k, v in changes.items() if v is not None}
    save_file({k: v for k, v in state.items() if changes.get(k, v) is not None}, folder / name)


def refused(path: Path, *words: str, **options: Any) -> str:
    with pytest.raises(SaebenchError) as caught:
        load_sae(path, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message, message
    return message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 0}, ["'k' is 0", "whole number"]),
        ({"k": 7.5}, ["'k' is 7.5", "whole number"]),
        ({"k": True}, ["'k' is true"]),
        ({"k": "5"}, ["'k' is"]),
        ({"k": 25}, ["k is 25", "24 latents"]),
        ({"apply_b_dec_to_input": "false"}, ["apply_b_dec_to_input", "true or false"]),
        ({"rescale_acts_by_decoder_norm": 1}, ["rescale_acts_by_decoder_norm", "true or false"]),
        ({"normalize_activations": "batch_norm"}, ["normalize_activations", "one of"]),
        ({"architecture": "topp"}, ["architecture"]),
        ({"architecture": "temporal"}, ["temporal"]),
        ({"d_in": 9}, ["'d_in' is 9", "8"]),
        ({"d_sae": 25}, ["d_sae"]),
        ({"new_switch": False}, ["unknown key 'new_switch'", "--ignore-key new_switch"]),
        ({"drop": "k"}, ["'k' is missing", "--k"]),
        ({"architecture": "standard", "drop": "rescale_acts_by_decoder_norm"}, ["'k' is 5", "no meaning"]),
        ({"metadata": 3}, []),
    ],
)
def test_config_damage_names_file_and_key(copy: Any, changes: dict[str, Any], words: list[str]) -> None:
    folder = copy("saelens/topk-none-sub")
    edit(folder, **changes)
    refused(folder, str(folder), *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"W_enc": torch.full((8, 24), torch.nan)}, ["W_enc", "NaN"]),
        ({"b_dec": torch.full((8,), torch.inf)}, ["b_dec", "infinite"]),
        ({"W_dec": torch.zeros(24, 8, dtype=torch.int8)}, ["W_dec", "int8"]),
        ({"W_enc": torch.ones(24, 8)}, ["shape"]),
        ({"b_enc": None}, ["'b_enc' is missing"]),
        ({"b_enc": torch.ones(23)}, ["'b_enc' has shape (23,), expected (24,)"]),
        ({"W_glu": torch.ones(8, 24)}, ["unknown entry 'W_glu'", "--ignore-key W_glu"]),
        ({"W_enc": torch.ones(0, 24)}, ["W_enc"]),
    ],
)
def test_tensor_damage_names_file_and_tensor(copy: Any, changes: dict[str, Any], words: list[str]) -> None:
    folder = copy("saelens/topk-none-sub")
    retensor(folder, **changes)
    refused(folder, str(folder), *words)


def test_ignore_key_vouches_for_a_key_and_a_tensor(copy: Any) -> None:
    folder = copy("saelens/topk-none-sub")
    before = load_sae(folder).sha256()
    edit(folder, new_switch=False)
    retensor(folder, W_glu=torch.ones(2))
    assert load_sae(folder, ignore_keys=["new_switch", "W_glu"]).sha256() == before


def test_missing_k_is_supplied_and_contradictions_are_refused(copy: Any) -> None:
    folder = copy("saelens/topk-none-sub")
    refused(folder, "--k 6", "k = 5", k=6)
    assert isinstance(load_sae(folder, k=5).activation, TopK)
    edit(folder, drop="k")
    with pytest.raises(MissingError) as caught:
        load_sae(folder)
    assert caught.value.option == "k"
    sae = load_sae(folder, k=7)
    assert sae.activation == TopK(7)
    assert any(f.source == "--k" for f in sae.metadata.facts)
    refused(copy("saelens/standard-none-sub"), "no TopK", k=3)


def test_a_scale_that_was_never_saved(copy: Any) -> None:
    folder = copy("saelens/legacy-scale")
    refused(folder, "normalize_activations", "--scale")
    refused(folder, "positive", scale=-2.0)
    refused(copy("saelens/standard-none-sub"), "needs no scale", scale=2.0)
    folder = copy("saelens/training-standard-scaled")
    (folder / "activation_scaler.json").unlink()
    refused(folder, "--scale")
    edit(copy("saelens/training-standard-scaled"), normalize_activations="none")
    refused(folder, "activation_scaler.json")


@pytest.mark.parametrize("case", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_threshold_that_was_never_learned(copy: Any, case: str) -> None:
    folder = copy(f"dictionary_learning/{case}")
    state = torch.load(folder / "ae.pt")
    state["threshold"] = torch.tensor(-1.0)
    torch.save(state, folder / "ae.pt")
    refused(folder, "threshold is -1", "never learned")


def test_batchtopk_training_checkpoint_without_threshold(copy: Any) -> None:
    folder = copy("saelens/training-batchtopk")
    retensor(folder, topk_threshold=torch.tensor(0.0, dtype=torch.float64))
    refused(folder, "topk_threshold", "never learned")


def test_ambiguity_is_refused_and_resolved(copy: Any) -> None:
    folder = copy("saelens/topk-none-sub")
    for file in (REFERENCE / "sparsify" / "topk" / "layers.3").iterdir():
        if file.name != "cfg.json":
            shutil.copy(file, folder)
    refused(folder, "could be saelens, sparsify", "--format")
    assert load_sae(folder, format="saelens").metadata.format == "saelens"
    with raises(UsageError, "did you mean 'saelens'"):
        load_sae(folder, format="saelenz")


def test_square_matrices_cannot_be_oriented(tmp_path: Path) -> None:
    square = {"W_enc": torch.randn(8, 8), "W_dec": torch.randn(8, 8), "b_enc": torch.ones(8), "b_dec": torch.ones(8)}
    torch.save(square, tmp_path / "layer3.sae.pt")
    refused(tmp_path, "square", k=2)


def test_wrong_folder_points_at_the_right_one() -> None:
    refused(REFERENCE / "sparsify" / "topk", "layers.3")
    refused(REFERENCE.parent, "no format recognises")
    with raises(UsageError, "no such file"):
        load_sae(REFERENCE / "absent")


def test_a_weights_file_names_its_checkpoint() -> None:
    by_folder = load_sae(SAELENS / "gated-none-sub")
    assert load_sae(SAELENS / "gated-none-sub" / "sae_weights.safetensors").sha256() == by_folder.sha256()


def test_duplicate_config_keys_are_ambiguous(copy: Any) -> None:
    folder = copy("saelens/topk-none-sub")
    text = (folder / "cfg.json").read_text()
    (folder / "cfg.json").write_text('{"k": 3, ' + text[1:])
    refused(folder, "'k' appears twice")


def test_hook_and_model_override(copy: Any) -> None:
    sae = load_sae(SAELENS / "topk-none-sub", hook="model.layers.7.mlp", model="other")
    assert sae.metadata.hook == "blocks.7.hook_mlp_out"
    assert sae.metadata.model == "other"
    with pytest.raises(UsageError):
        load_sae(SAELENS / "topk-none-sub", hook="nowhere")


def test_metadata_is_what_the_checkpoint_says() -> None:
    meta = load_sae(SAELENS / "export-matryoshka_batchtopk-rescale").metadata
    assert (meta.architecture, meta.group_sizes, meta.declared_l0) == ("matryoshka_batchtopk", (6, 8, 10), 4.0)
    assert (meta.model, meta.hook, meta.context_length) == ("tiny-llama", "blocks.3.hook_resid_post", 64)
    transcoder = load_sae(SAELENS / "skip_transcoder-none")
    assert transcoder.is_transcoder
    assert transcoder.metadata.hook_out == "blocks.3.hook_mlp_out"
    assert load_sae(REFERENCE / "sparsify" / "transcoder" / "layers.3.mlp").is_transcoder
    unsaid = load_sae(REFERENCE / "openai" / "topk" / "5.pt").metadata
    assert (unsaid.model, unsaid.hook, unsaid.prepend_bos) == (None, None, None)


@pytest.mark.parametrize("spec", ["hf:", "hf:owner", "hf:owner/../x", "saelens:", "saelens:release"])
def test_malformed_remote_specs(spec: str) -> None:
    with raises(UsageError, "write hf:"):
        load_sae(spec)


def test_saelens_specs_need_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with raises(UsageError, "pip install sae-lens"):
        load_sae("saelens:gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical")


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["saelens/topk-none-sub-rescale", "dictionary_learning/AutoEncoder"])
def test_mapped_weights_are_never_written_to(copy: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files are mapped and folded in place: what is loaded is the same, and the file stays as it was."""
    folder = copy(case)
    small = load_sae(folder)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(saebench.loading.weights, "_MAP_FROM", 0)
    mapped = load_sae(folder)
    assert mapped.sha256() == small.sha256()
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


def test_small_files_may_be_overwritten(copy: Any) -> None:
    folder = copy("saelens/topk-none-sub")
    sae = load_sae(folder)
    before = sae.sha256()
    file = folder / "sae_weights.safetensors"
    file.write_bytes(bytes(file.stat().st_size // 2))
    assert sae.sha256() == before


def test_transposed_equals_transpose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.randn(37, 301)
    save_file({"w": wide}, tmp_path / "w.safetensors")
    torch.save({"w": wide.half()}, tmp_path / "w.pt")
    out = SafetensorsFile(tmp_path / "w.safetensors").transposed("w", 37, 301)
    assert out.is_contiguous()
    assert torch.equal(out, wide.T)
    assert torch.equal(TorchFile(tmp_path / "w.pt").transposed("w", 37, 301), wide.half().float().T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_widened(copy: Any, dtype: torch.dtype) -> None:
    folder = copy("saelens/jumprelu-none-sub")
    given = {k: v.to(dtype) for k, v in load_file(folder / "sae_weights.safetensors").items()}
    save_file(given, folder / "sae_weights.safetensors")
    sae = load_sae(folder)
    assert sae.metadata.dtype == str(dtype).removeprefix("torch.")
    assert torch.equal(sae.W_enc, given["W_enc"].float())
    assert sae.W_dec.dtype == torch.float32


# --- writing ---------------------------------------------------------------------------------------------------------


def variants() -> dict[str, SAE]:
    generator = torch.Generator().manual_seed(0)

    def r(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.5

    base = {
        "relu": ReLU(), "topk": TopK(5), "abstopk": AbsTopK(5), "jumprelu": JumpReLU(r(24).abs()),
        "scalar-jumprelu": JumpReLU(torch.tensor(0.3)), "gated": Gated(r(24), r(24), r(24)),
    }  # fmt: skip
    out = {}
    for name, activation in base.items():
        for transform in (LayerNorm(), TokenScale()):
            b_enc = torch.zeros(24) if name == "gated" else r(24)
            out[f"{name}-{type(transform).__name__}"] = SAE(
                r(8, 24), r(24, 8), b_enc, r(8), activation, "topk" in name, transform
            )
    return out


@pytest.mark.parametrize("name", variants())
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    sae, x = variants()[name], torch.randn(20, 8)
    save_sae(sae, tmp_path / "new" / "folder")
    again = load_sae(tmp_path / "new" / "folder")
    assert torch.equal(again.encode(x).dense(), sae.encode(x).dense())
    assert torch.equal(again(x), sae(x))
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in (tmp_path / "new" / "folder").iterdir()), (
        "others may read"
    )


CASES = sorted(p.parent for p in REFERENCE.glob("*/*/expected.safetensors"))
# What SAELens has nothing for, and what of it is said; every other case must be written.
REFUSED = {
    "llama3_interpretability/topk": "no normalization that computes LayerNorm",
    "llamascopium/topk": "no architecture that computes NormTopK",
    "llamascopium/topk-inference": "no architecture that computes NormTopK",
    "llamascopium/topk-no-decoder-bias": "no architecture that computes NormTopK",
    "llamascopium/topk-transcoder": "no architecture that computes NormTopK",
    "llamascopium/topk-ungated-transcoder": "no transcoder of this activation",
    "openai/identity": "no architecture that computes Identity",
    "openai/topk-signed": "no architecture that computes SignedTopK",
    "sparsify/groupmax": "no architecture that computes GroupMax",
    "sparsify/groupmax-skip-transcoder": "no architecture that computes GroupMax",
    "sparsify/skip": "no transcoder of this activation",
    "sparsify/skip-transcoder": "no transcoder of this activation",
    "sparsify/transcoder": "no transcoder of this activation",
}


@pytest.mark.parametrize("case", CASES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_reference_survives_conversion(case: Path, tmp_path: Path) -> None:
    """Whatever is loaded is written as SAELens exactly, or is one of the few that SAELens cannot compute."""
    said = json.loads((case / "options.json").read_text()) if (case / "options.json").is_file() else {}
    sae = load_sae(case / said.pop("path", "."), **said)
    if reason := REFUSED.get(f"{case.parent.name}/{case.name}"):
        with raises(CheckpointError, f"SAELens has {reason}", "cannot be written exactly"):
            save_sae(sae, tmp_path)
        assert not any(tmp_path.iterdir())
        return
    save_sae(sae, tmp_path)
    again, x = load_sae(tmp_path), load_file(case / "expected.safetensors")["x"]
    assert torch.equal(again.encode(x).dense(), sae.encode(x).dense())
    torch.testing.assert_close(again(x), sae(x), rtol=1e-6, atol=1e-6)  # a transposed skip may round otherwise
    kept = ("model", "hook", "hook_out", "context_length", "prepend_bos", "group_sizes", "architecture", "declared_l0")
    assert [getattr(again.metadata, n) for n in kept] == [getattr(sae.metadata, n) for n in kept]


def test_the_refused_references_are_there() -> None:
    assert REFUSED.keys() <= {f"{case.parent.name}/{case.name}" for case in CASES}


def test_what_saelens_cannot_compute_is_refused(tmp_path: Path) -> None:
    sae = random_sae(8, 24)
    for changed in (
        SAE(sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec, GroupMax(4), True),
        SAE(sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec, TopK(4), True, LayerNorm(eps=1e-6, eps_on_output=True)),
        SAE(sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec, TopK(4), False, W_skip=torch.eye(8)),
    ):
        with pytest.raises(CheckpointError):
            save_sae(changed, tmp_path)
    assert not any(tmp_path.iterdir())
    with raises(UsageError, "can only be read"):
        save_sae(sae, tmp_path, format="sparsify")


def test_writing_over_what_is_loaded(tmp_path: Path) -> None:
    sae = random_sae(8, 24)
    save_sae(sae, tmp_path)
    loaded = load_sae(tmp_path)
    save_sae(loaded, tmp_path)
    assert load_sae(tmp_path).sha256() == loaded.sha256()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cfg.json", "sae_weights.safetensors"]


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 12), st.integers(2, 40), st.integers(0, 2**20), st.booleans())
def test_round_trip_holds_for_any_shape(tmp_path_factory: Any, d: int, n: int, seed: int, dense: bool) -> None:
    sae = random_sae(d, n, k=None if dense else 1 + seed % n, seed=seed)
    folder = tmp_path_factory.mktemp("sae")
    save_sae(sae, folder)
    assert load_sae(folder).sha256() == sae.sha256()


# --- the conformance check -------------------------------------------------------------------------------------------


def test_check_format_accepts_ours() -> None:
    case = SAELENS / "jumprelu-none-sub"
    expected = load_file(case / "expected.safetensors")
    check_format(SAELens(), case, x=expected["x"], latents=expected["latents"], out=expected["out"])


class Careless(SAELens):
    """A format that a broken config does not disturb."""

    def load(self, path: Path, options: LoadOptions) -> SAE:
        state = load_file(path / "sae_weights.safetensors")
        meta = load_sae(SAELENS / "standard-none-sub").metadata
        return SAE(state["W_enc"], state["W_dec"], state["b_enc"], state["b_dec"], ReLU(), False, metadata=meta)


def test_check_format_finds_what_is_wrong(tmp_path: Path) -> None:
    case = SAELENS / "standard-none-sub"
    expected = load_file(case / "expected.safetensors")
    with pytest.raises(AssertionError, match="latents"):
        check_format(Careless(), case, x=expected["x"], latents=expected["latents"])
    with pytest.raises(AssertionError, match="cut"):
        check_format(Careless(), SAELENS / "standard-none-nosub")


@pytest.mark.parametrize(
    ("case", "file", "place", "key", "value"),
    [
        ("saelens/topk-none-sub", "cfg.json", "metadata", "hook_head_index", 3),
        ("saelens/topk-none-sub", "cfg.json", "metadata", "hook_point_head_index", 0),
        ("saelens/legacy-scale", "cfg.json", "", "hook_head_index", 3),
        ("connor_rob/hook_z", "attn_cfg.json", "", "concat_heads", False),
    ],
)
def test_an_sae_of_one_head_is_refused(copy: Any, case: str, file: str, place: str, key: str, value: Any) -> None:
    folder = copy(case)
    body = json.loads((folder / file).read_text())
    (body[place] if place else body)[key] = value
    (folder / file).write_text(json.dumps(body))
    options = {"scale": 2.0} if "legacy" in case else {}
    with raises(CheckpointError, file, key, "head"):
        load_sae(folder, **options)
    (body[place] if place else body)[key] = None
    (folder / file).write_text(json.dumps(body))
    load_sae(folder, **options)
