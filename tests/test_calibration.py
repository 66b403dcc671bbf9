"""Calibration against numpy, its cache, and the check that an SAE behaves as it claims."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from saebench.errors import NonFiniteError, SaebenchError
from saebench.forward.calibration import CONTEXTS, SAMPLE, Calibration, calibrate, check_l0
from saebench.hookpoint import HookPoint
from saebench.subject import Subject
from saebench.testing import random_sae
from tests.raising import raises
from tests.tiny_models import contexts_of, look, random_ids, tiny

PLACE = HookPoint(1, "resid_post")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return tiny("llama")


@pytest.fixture
def contexts():
    ids = random_ids(CONTEXTS + 8, 7)
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, 0], special[3, 4] = True, True
    return contexts_of(ids, special)


@pytest.mark.parametrize("max_norm", [None, 1.1, 0.9])
def test_equal_to_numpy(subject, contexts, tmp_path: Path, max_norm):
    got = calibrate(subject, contexts, PLACE, PLACE, max_norm, 5, tmp_path)
    x = look(subject, 1, "resid_post", torch.from_numpy(contexts.token_ids[:CONTEXTS])).double().numpy()
    rows = x[~contexts.special[:CONTEXTS]]
    norms = np.linalg.norm(rows, axis=-1)
    median = np.median(norms)
    assert got.median_norm == pytest.approx(median, rel=1e-6)
    assert got.threshold == pytest.approx(np.inf if max_norm is None else max_norm * median, rel=1e-6)
    inside = rows[norms <= got.threshold]
    assert 0 < len(inside) <= SAMPLE
    assert (len(inside) < len(rows)) == (max_norm is not None)
    assert np.allclose(got.mean, inside.mean(0), atol=1e-6)
    assert np.allclose(got.sample, inside, atol=1e-5)
    everything = torch.from_numpy(x).float()
    scored = got.scored(everything, torch.from_numpy(contexts.special[:CONTEXTS]))
    assert int(scored.sum()) == len(inside)


def test_a_transcoder_is_calibrated_where_it_writes_and_sampled_where_it_reads(subject, contexts, tmp_path: Path):
    read, write = HookPoint(1, "ln2_out"), HookPoint(1, "mlp_out")
    got = calibrate(subject, contexts, read, write, None, 5, tmp_path)
    ids, keep = torch.from_numpy(contexts.token_ids[:CONTEXTS]), torch.from_numpy(~contexts.special[:CONTEXTS])
    assert torch.allclose(got.mean, look(subject, 1, "mlp_out", ids)[keep].double().mean(0).float(), atol=1e-6)
    assert torch.allclose(got.sample, look(subject, 1, "ln2_out", ids)[keep], atol=1e-5)


def same(a: Calibration, b: Calibration) -> bool:
    numbers = (a.median_norm, a.threshold) == (b.median_norm, b.threshold)
    return numbers and torch.equal(a.mean, b.mean) and torch.equal(a.sample, b.sample)


@pytest.mark.parametrize("max_norm", [None, 1.1])
def test_the_cache_gives_back_the_same_bits_without_the_model(subject, contexts, tmp_path: Path, monkeypatch, max_norm):
    first = calibrate(subject, contexts, PLACE, PLACE, max_norm, 5, tmp_path)
    monkeypatch.setattr(subject, "capture", lambda *_: pytest.fail("ran the model again"))
    assert same(first, calibrate(subject, contexts, PLACE, PLACE, max_norm, 5, tmp_path))
    assert same(first, calibrate(subject, contexts.head(CONTEXTS), PLACE, PLACE, max_norm, 3, tmp_path))


def test_another_place_text_or_norm_is_another_calibration(subject, contexts, tmp_path: Path):
    calibrate(subject, contexts, PLACE, PLACE, 1.1, 5, tmp_path)
    calibrate(subject, contexts, HookPoint(0, "resid_post"), HookPoint(0, "resid_post"), 1.1, 5, tmp_path)
    calibrate(subject, contexts, HookPoint(0, "resid_post"), PLACE, 1.1, 5, tmp_path)
    calibrate(subject, contexts, PLACE, PLACE, None, 5, tmp_path)
    calibrate(subject, contexts.head(9), PLACE, PLACE, 1.1, 5, tmp_path)
    calibrate(subject, replace(contexts, special=~contexts.special), PLACE, PLACE, 1.1, 5, tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 6


def test_a_cache_file_that_is_damaged_is_made_again(subject, contexts, tmp_path: Path):
    first = calibrate(subject, contexts, PLACE, PLACE, 1.1, 5, tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    assert same(first, calibrate(subject, contexts, PLACE, PLACE, 1.1, 5, tmp_path))


def test_a_cache_that_cannot_be_written_is_no_error(subject, contexts, tmp_path: Path):
    (tmp_path / "file").write_text("")
    found = calibrate(subject, contexts, PLACE, PLACE, 1.1, 5, tmp_path / "file")
    assert same(found, calibrate(subject, contexts, PLACE, PLACE, 1.1, 5, tmp_path / "folder"))
    assert (tmp_path / "file").read_text() == ""


def test_activations_that_are_not_finite_are_an_error_with_its_place(contexts, tmp_path: Path):
    broken = tiny("llama")
    broken.blocks[0].mlp.down_proj.weight.data[0, 0] = torch.inf
    with raises(NonFiniteError, "blocks.1.hook_resid_post"):
        calibrate(broken, contexts, PLACE, PLACE, None, 5, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_nothing_but_special_tokens_is_an_error(subject, contexts, tmp_path: Path):
    with raises(SaebenchError, "special"):
        calibrate(subject, replace(contexts, special=np.ones_like(contexts.special)), PLACE, PLACE, 1.1, 5, tmp_path)


@pytest.mark.parametrize(
    ("declared", "fits"), [(8, True), (4, True), (16, True), (3.9, False), (16.1, False), (None, True)]
)
def test_l0_may_be_off_by_a_factor_of_two(declared, fits: bool):
    sae = random_sae(16, 64, k=8)
    sae = replace(sae, metadata=replace(sae.metadata, declared_l0=declared, path="my-sae"))
    sample = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) * 10
    calibration = Calibration(1.0, 1.0, torch.zeros(16), sample)
    if fits:
        assert check_l0(sae, calibration) == float((sae.encode(sample).dense() != 0).sum(-1).double().mean()) == 8
    else:
        with raises(SaebenchError, "my-sae", "8.0"):
            check_l0(sae, calibration)


def test_a_topk_read_as_relu_is_caught():
    sae = random_sae(16, 64, k=None)
    sae = replace(sae, metadata=replace(sae.metadata, declared_l0=8))
    with raises(SaebenchError, "8"):
        check_l0(sae, Calibration(1.0, 1.0, torch.zeros(16), torch.randn(50, 16)))
