"""Steps: the decoder's norm, dead latents, resuming, several processes."""

import os
import socket
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp

from saebench.arithmetic.ranks import variance
from saebench.errors import NonFiniteError, UsageError
from saebench.recipe import Batch, make_settings
from saebench.registry import installed
from saebench.training.auxk import auxk_loss
from saebench.training.toy import toy
from saebench.training.trainer import Trainer, schedule
from tests.raising import raises
from tests.training.test_recipes import RECIPES, WIDTH, D, K, data


def make(name: str = "topk", **given: Any) -> Trainer:
    recipe = installed().recipes[name]
    k = {"k": K} if hasattr(recipe.settings(), "k") else {}
    t = Trainer(recipe, make_settings(recipe, {"dtype": "float32", **k, **given}), D, width=WIDTH, seed=0, steps=40)
    t.initialise(data(512))
    return t


def test_rows_stay_unit_and_their_gradient_has_no_radial_part():
    t = make()
    for i in range(5):
        t.step(data(seed=i))
    W = t.dictionary.W_dec
    assert torch.allclose(W.norm(dim=1), torch.ones(WIDTH), atol=1e-6)
    moment = t._optimiser.state[W]["exp_avg"]
    before = make()
    before.step(data(seed=0))
    assert before.dictionary.W_dec.grad is not None
    start = make().dictionary.W_dec
    assert float((before.dictionary.W_dec.grad * start).sum(1).abs().max()) < 1e-6
    assert float(moment.norm()) > 0


def test_the_scale_gives_mean_square_one_and_b_dec_is_the_mean():
    t, x = make(), data(512)
    assert float((x * t.scale).double().pow(2).mean()) == pytest.approx(1, rel=1e-5)
    assert torch.allclose(t.dictionary.b_dec, x.mean(0) * t.scale, atol=1e-6)


def test_the_scale_of_the_data_does_not_matter():
    first, second = make(), make()
    second.initialise(data(512) * 1000)
    for i in range(5):
        a, b = first.step(data(seed=i)), second.step(data(seed=i) * 1000)
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.parametrize("n_dead", [1, 5, 40])
def test_auxk_is_its_formula_however_few_are_dead(n_dead):
    t = make()
    own = t.dictionary
    x = data(seed=1) * t.scale
    error = x - x.mean(0) + 0.3
    dead = torch.zeros(WIDTH, dtype=torch.bool)
    dead[torch.arange(n_dead) * 2 + 3] = True
    found = auxk_loss(own, Batch(x, variance(x), 0, 1, dead), error, 8)
    pre = ((x - own.b_dec).double() @ own.W_enc.double().T + own.b_enc)[:, dead].relu()
    if n_dead > 8:
        pre = torch.where(pre >= pre.sort(1).values[:, -8, None], pre, 0)
    e = error.double()
    wanted = ((e - pre @ own.W_dec.double()[dead]) ** 2).sum(1).mean() / ((e - e.mean(0)) ** 2).sum(1).mean()
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    found.backward()
    assert own.W_dec.grad is not None
    assert bool((own.W_dec.grad[~dead] == 0).all())
    assert bool((own.W_dec.grad[dead] != 0).any())


@pytest.mark.parametrize(("auxk", "back"), [(8, True), (0, False)])
def test_a_dead_latent_comes_back_through_the_auxiliary_loss_alone(auxk: int, back: bool):
    t = make(dead_after=1000, auxk=auxk)
    with torch.no_grad():
        t.dictionary.b_enc[:16] = -1.5
    died = torch.zeros(16, dtype=torch.bool)
    returned = died.clone()
    for i in range(40):
        t.step(data(256, seed=i))
        died |= t._silent[:16] >= 1000
        returned |= died & (t._silent[:16] == 0)
    assert int(died.sum()) >= 8
    assert (int(returned.sum()) > 0) == back


@pytest.mark.parametrize("name", RECIPES)
def test_resuming_gives_the_same_bits(name, tmp_path):
    whole = make(name, dead_after=300)
    for i in range(12):
        whole.step(data(seed=i))
    half = make(name, dead_after=300)
    for i in range(6):
        half.step(data(seed=i))
    torch.save(half.state_dict(), tmp_path / "state.pt")
    again = make(name, dead_after=300)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for i in range(6, 12):
        figures = again.step(data(seed=i))
    assert again.sae().sha256() == whole.sae().sha256()
    assert again.tokens == whole.tokens == 12 * 64
    assert all(torch.isfinite(torch.tensor(v)) for v in figures.values())


def test_a_gradient_that_is_not_finite_stops_before_any_parameter_changes():
    t = make()
    t.step(data(seed=0))
    before = t.sae().sha256()
    t.dictionary.W_dec.register_hook(lambda gradient: gradient * torch.inf)
    with raises(NonFiniteError, "gradient of step 1"):
        t.step(data(seed=1))
    assert t.sae().sha256() == before


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_a_batch_in_which_nothing_fires_says_nothing_about_the_threshold(name: str):
    t = make(name)
    t.step(data(seed=0))
    before = float(t.dictionary.state["threshold"])
    with torch.no_grad():
        t.dictionary.b_enc.fill_(-1e4)
    t.step(data(seed=1))
    assert float(t.dictionary.state["threshold"]) == before > 0


def test_what_is_not_finite_stops_and_changes_nothing():
    t = make()
    t.step(data(seed=0))
    before = t.sae().sha256()
    with raises(NonFiniteError, "step 1"):
        t.step(torch.full((64, D), torch.nan))
    assert t.sae().sha256() == before
    with raises(NonFiniteError, "mean square"):
        make().initialise(torch.zeros(8, D))


def test_what_is_not_finite_is_not_exported():
    t = make()
    with torch.no_grad():
        t.dictionary.b_enc[3] = torch.nan
    with raises(NonFiniteError, "b_enc"):
        t.sae()


@pytest.mark.parametrize(("name", "norm"), [("topk", 0.5), ("batchtopk", 0.5), ("matryoshka", 0.5), ("relu", 1.0)])
def test_encoder_and_decoder_start_with_the_same_directions(name: str, norm: float):
    own = make(name).dictionary
    torch.testing.assert_close(own.W_dec.norm(dim=1), torch.ones(WIDTH))
    torch.testing.assert_close(own.W_enc, norm * own.W_dec)
    torch.testing.assert_close(make(name, encoder_norm=0.25).dictionary.W_enc, 0.25 * own.W_dec)


def test_thresholds_have_a_rate_of_their_own():
    """Adam's first step is the learning rate, whatever the gradient."""
    t = make("jumprelu", warmup=0.0, threshold_rate=5.0, lr=1e-3, sparsity_warmup=0.0)
    before = t.dictionary.extra["log_threshold"].detach().clone()
    bias = t.dictionary.b_enc.detach().clone()
    t.step(data(seed=0))
    moved = (t.dictionary.extra["log_threshold"] - before).abs()
    assert float(moved.max()) == pytest.approx(5e-3, rel=1e-3)
    assert float((t.dictionary.b_enc - bias).abs().max()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_no_threshold_is_exported_before_anything_fired(name: str):
    with raises(NonFiniteError, "no latent fired"):
        make(name).sae()


def test_the_schedule_rises_holds_and_falls():
    rates = [schedule(i, 100, 0.1, 0.2) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)
    assert [schedule(i, 3, 0.0, 0.0) for i in range(3)] == [1.0] * 3


@pytest.mark.parametrize("frozen", ["decoder", "encoder"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_frozen_half_keeps_its_bits_and_the_rest_learns(name: str, frozen: str) -> None:
    t = make(name, frozen=frozen, dead_after=300)
    own = t.dictionary
    before = {key: p.detach().clone() for key, p in own.named_parameters()}
    figures = [t.step(data(seed=i)) for i in range(25)]
    moved = {key for key, p in own.named_parameters() if not torch.equal(p.detach(), before[key])}
    kept, trained = ("W_dec", "W_enc") if frozen == "decoder" else ("W_enc", "W_dec")
    assert kept not in moved
    assert {trained, "b_enc", "b_dec"} <= moved
    assert figures[-1]["loss"] < figures[0]["loss"]
    torch.testing.assert_close(before["W_dec"].norm(dim=1), torch.ones(WIDTH))
    sae = t.sae()
    assert sae.metadata.architecture == f"{t.recipe.architecture}_frozen_{frozen}"
    rows = sae.W_dec if frozen == "decoder" else sae.W_enc.T
    torch.testing.assert_close(
        torch.nn.functional.normalize(rows, dim=1), torch.nn.functional.normalize(before[kept], dim=1)
    )


def test_the_toy_tells_a_trained_decoder_from_a_frozen_one() -> None:
    recipe = installed().recipes["topk"]
    trained, frozen = (toy(recipe, steps=200, frozen=half).mcc for half in (None, "decoder"))
    assert trained > 0.8 > 0.6 > frozen


def test_frozen_is_decoder_or_encoder() -> None:
    with raises(UsageError, "frozen", "both"):
        make("topk", frozen="both")


# --- several processes -----------------------------------------------------------------------------------------------


def curve(name: str, rank: int, ranks: int) -> tuple[list[dict[str, float]], torch.Tensor]:
    t = make(name, dead_after=200)
    rows = [data(64, seed=i).chunk(ranks)[rank] for i in range(10)]
    figures = [t.step(x) for x in rows]
    return figures, t.sae().W_dec


def _worker(rank: int, port: int, queue: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {name: curve(name, rank, 2) for name in RECIPES}
    queue.put((rank, {name: (figures, W.numpy()) for name, (figures, W) in found.items()}))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_make_the_steps_of_one():
    """Every recipe, batchtopk included: its selection is the exact global one."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_worker, args=(rank, port, queue)) for rank in range(2)]
    for w in workers:
        w.start()
    found = dict(queue.get(timeout=120) for _ in workers)
    for w in workers:
        w.join(30)
        assert w.exitcode == 0
    for name in RECIPES:
        alone, W = curve(name, 0, 1)
        for rank in range(2):
            figures, theirs = found[rank][name]
            for a, b in zip(alone, figures, strict=True):
                assert b == pytest.approx(a, rel=1e-4, abs=1e-6), name
            assert torch.allclose(W, torch.from_numpy(theirs), atol=1e-4), name
