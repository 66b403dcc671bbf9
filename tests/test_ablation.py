"""Ablated losses, with every shortcut taken, against the whole model run naively for each context."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from saebench.corpus import Contexts
from saebench.forward.ablation import Ablations
from saebench.forward.calibration import Calibration
from saebench.hookpoint import HookPoint
from saebench.subject import Copy, Subject
from tests.tiny_models import VOCABULARY, contexts_of, logits_with, look, random_ids, tiny

T = 6


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {name: tiny(name) for name in ("llama", "gpt2", "gemma2")}


def calibration(subject: Subject, threshold: float, seed: int = 3, width: int | None = None) -> Calibration:
    mean = torch.randn(width or subject.d_model, generator=torch.Generator().manual_seed(seed))
    return Calibration(1.0, threshold, mean, torch.zeros(1, subject.d_model))


def texts() -> dict[str, Contexts]:
    """Contexts in every arrangement of special tokens."""
    ids = random_ids(7, T)
    none, first, middle, other = (torch.zeros(7, T, dtype=torch.bool) for _ in range(4))
    bos = ids.clone()
    bos[:, 0], first[:, 0] = 1, True
    mixed = ids.clone()
    mixed[::2, 0], other[::2, 0] = 1, True  # only some begin with BOS
    late = mixed.flip(0)[1:]  # … and here the first context does not
    two = bos.clone()
    two[3, 0], two[5, 0] = 2, 7  # another special token at the start; and one that is none
    starts = first.clone()
    starts[5, 0] = False
    inside = bos.clone()
    inside[1, 3], inside[4, T - 1], middle[1, 3], middle[4, T - 1] = 2, 2, True, True
    return {
        "no special": contexts_of(ids, none),
        "BOS": contexts_of(bos, first),
        "some BOS": contexts_of(mixed, other),
        "some BOS, not the first": contexts_of(late, other.flip(0)[1:]),
        "starts differ": contexts_of(two, starts),
        "special in the middle": contexts_of(inside, first | middle),
    }


def run(
    subject: Subject,
    contexts: Contexts,
    place: HookPoint,
    calib: Calibration,
    cache: Path,
    batch: int = 3,
    stop: int | None = None,
):
    """What a pass does with ablations: (zero, mean, scored) [N, T], and the object."""
    ablations = Ablations(subject, contexts, place, calib, cache)
    zero, mean, kept, clean = [], [], [], 0
    for at in np.split(np.arange(len(contexts)), range(batch, len(contexts), batch))[:stop]:
        ids, special = (torch.from_numpy(a[at]) for a in (contexts.token_ids, contexts.special))
        box: list[Tensor] = []

        def splice(_: Tensor, x: Tensor, ids: Tensor = ids, special: Tensor = special, box: list = box) -> list[Copy]:
            box.append(calib.scored(x, special))
            return ablations.copies(x, ids, box[0])

        _, hidden = subject.fork(ids, place, place, splice, ablations.most_copies)
        clean += len(hidden)
        z, m = ablations.losses(at, hidden, ids, box[0])
        zero.append(z), mean.append(m), kept.append(box[0])
    return torch.cat(zero), torch.cat(mean), torch.cat(kept), ablations


def naive(subject: Subject, contexts: Contexts, place: HookPoint, calib: Calibration) -> tuple[Tensor, Tensor, Tensor]:
    ids, special = torch.from_numpy(contexts.token_ids), torch.from_numpy(contexts.special)
    x = look(subject, place.layer, place.site, ids)
    scored = ~special & (x.norm(dim=-1) <= calib.threshold)
    out = []
    for rows in (torch.zeros_like(x), torch.where(scored[..., None], calib.mean, x)):
        log_p = logits_with(subject, place.layer, place.site, ids, rows).double().log_softmax(-1)
        out.append(-log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0])
    return out[0], out[1], scored


def compare(
    subject: Subject, contexts: Contexts, place: HookPoint, calib: Calibration, cache: Path, batch: int = 3
) -> None:
    zero, mean, scored, _ = run(subject, contexts, place, calib, cache, batch)
    expected_zero, expected_mean, expected_scored = naive(subject, contexts, place, calib)
    assert torch.equal(scored, expected_scored)
    at = scored[:, :-1]  # predictions from scored positions that have a next token
    assert at.any()
    assert torch.allclose(zero[:, :-1][at].double(), expected_zero[at], atol=3e-5)
    assert torch.allclose(mean[:, :-1][at].double(), expected_mean[at], atol=3e-5)


@pytest.mark.parametrize("text", list(texts()))
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_on_the_residual_stream_shared_rows_equal_the_whole_computation(
    subjects, tmp_path: Path, name: str, outliers: bool, text: str
):
    subject, contexts = subjects[name], texts()[text]
    for place in (HookPoint(0, "resid_pre"), HookPoint(1, "resid_post")):
        norms = look(subject, place.layer, place.site, torch.from_numpy(contexts.token_ids)).norm(dim=-1)
        threshold = float(norms.flatten().quantile(0.9)) if outliers else math.inf
        compare(subject, contexts, place, calibration(subject, threshold), tmp_path)


@pytest.mark.parametrize("site", ["mlp_out", "resid_mid", "attn_out", "z", "ln1_out"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_inside_a_block_they_equal_it_too(subjects, tmp_path: Path, name: str, site: str):
    subject, contexts, place = subjects[name], texts()["special in the middle"], HookPoint(1, site)
    x = look(subject, 1, site, torch.from_numpy(contexts.token_ids))
    threshold = float(x.norm(dim=-1).flatten().quantile(0.9))
    compare(subject, contexts, place, calibration(subject, threshold, width=x.shape[-1]), tmp_path)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_batches_do_not_matter(subjects, tmp_path: Path, batch: int):
    place = HookPoint(1, "resid_post")
    compare(subjects["llama"], texts()["some BOS"], place, calibration(subjects["llama"], math.inf), tmp_path, batch)


def test_zeroing_a_llamas_residual_stream_costs_exactly_ln_v(subjects, tmp_path: Path):
    subject, contexts = subjects["llama"], texts()["BOS"]
    zero, _, scored, _ = run(subject, contexts, HookPoint(1, "resid_post"), calibration(subject, math.inf), tmp_path)
    assert torch.allclose(zero[scored], torch.tensor(math.log(VOCABULARY)), atol=1e-6)


def test_a_model_that_looks_at_its_tokens_above_the_hook_point_is_not_given_shared_rows(tmp_path: Path):
    """Gemma 3n and others feed token embeddings to every layer: no one row stands for all contexts there."""
    subject, place = tiny("llama"), HookPoint(0, "resid_post")
    embeddings, seen = subject.model.get_input_embeddings(), []
    subject.model.model.register_forward_pre_hook(
        lambda m, a, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )

    def add(m: object, args: tuple, out: Tensor) -> Tensor:
        own = torch.nn.functional.embedding(seen[-1], embeddings.weight)
        return out + own.repeat(len(out) // len(own), 1, 1)

    subject.blocks[1].register_forward_hook(add)
    subject.forks = False
    for text in ("BOS", "no special"):
        compare(subject, texts()[text], place, calibration(subject, math.inf), tmp_path)


@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_cached_losses_equal_computed_ones(subjects, tmp_path: Path, site: str):
    subject, contexts, place = subjects["llama"], texts()["special in the middle"], HookPoint(1, site)
    calib = calibration(subject, math.inf)
    zero, mean, _, first = run(subject, contexts, place, calib, tmp_path)
    assert not first.cached
    first.keep()
    again_zero, again_mean, _, second = run(subject, contexts, place, calib, tmp_path)
    assert second.cached
    assert second.most_copies == 0
    assert torch.equal(zero, again_zero)
    assert torch.equal(mean, again_mean)


def test_the_cache_is_of_this_mean_threshold_place_text_and_model(subjects, tmp_path: Path):
    subject, contexts, place = subjects["llama"], texts()["BOS"], HookPoint(1, "resid_post")
    calib = calibration(subject, math.inf)
    run(subject, contexts, place, calib, tmp_path)[3].keep()
    assert Ablations(subject, contexts, place, calib, tmp_path).cached
    others = {
        "mean": (subject, contexts, place, calibration(subject, math.inf, seed=4)),
        "threshold": (subject, contexts, place, calibration(subject, 100.0)),
        "place": (subject, contexts, HookPoint(0, "resid_post"), calib),
        "text": (subject, contexts.head(5), place, calib),
        "model": (tiny("llama", seed=1), contexts, place, calib),
    }
    for what, arguments in others.items():
        assert not Ablations(*arguments, tmp_path).cached, what


def test_an_interrupted_pass_leaves_nothing_in_the_cache(subjects, tmp_path: Path):
    subject, contexts, place = subjects["llama"], texts()["BOS"], HookPoint(1, "resid_post")
    run(subject, contexts, place, calibration(subject, math.inf), tmp_path, stop=2)[3].keep()
    assert not list(tmp_path.rglob("*.safetensors"))
