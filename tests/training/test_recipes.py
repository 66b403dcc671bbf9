"""Each recipe's loss against its formula in float64, a few lines each; and what it becomes as a canonical SAE."""

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from saebench.errors import UsageError
from saebench.recipe import make_settings
from saebench.registry import installed
from saebench.training.trainer import Trainer
from tests.raising import raises

RECIPES = ("topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated")
N, D, WIDTH, K = 64, 16, 96, 6


def data(n: int = N, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(60, D, generator=g), dim=1)
    g.manual_seed(seed)
    return (torch.rand(n, 60, generator=g) < 0.06) * torch.rand(n, 60, generator=g) * 9 @ directions + 1.5


def trainer(name: str, **given) -> Trainer:
    recipe = installed().recipes[name]
    k = {"k": K} if name in ("topk", "batchtopk", "matryoshka", "jumprelu") else {}
    made = Trainer(recipe, make_settings(recipe, {"dtype": "float32", **k, **given}), D, width=WIDTH, seed=0, steps=50)
    made.initialise(data(512))
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():  # nothing at a special place: biases, norms and thresholds of their own
        made.dictionary.b_enc.copy_(0.1 * torch.randn(WIDTH, generator=g))
        for t in made.dictionary.extra.values():
            t.add_(0.1 * torch.randn(WIDTH, generator=g))
        if not recipe.unit_decoder:
            made.dictionary.W_dec.mul_(0.5 + torch.rand(WIDTH, 1, generator=g))
    return made


def pieces(t: Trainer, x: torch.Tensor):
    own = t.dictionary
    W_enc, W_dec, b_enc, b_dec = (p.detach().double() for p in (own.W_enc, own.W_dec, own.b_enc, own.b_dec))
    u = x.double() * t.scale
    return u, (u - b_dec) @ W_enc.T + b_enc, W_dec, b_dec, ((u - u.mean(0)) ** 2).sum(1).mean()


def sq(error: torch.Tensor) -> torch.Tensor:
    return (error**2).sum(1).mean()


def batch_codes(pre: torch.Tensor) -> torch.Tensor:
    return torch.where(pre >= pre.flatten().sort().values[-K * N], pre.relu(), 0)


def topk(t, x):
    u, pre, W, b, var = pieces(t, x)
    z = torch.where(pre >= pre.sort(1).values[:, -K, None], pre.relu(), 0)
    return sq(u - z @ W - b) / var


def batchtopk(t, x):
    u, pre, W, b, var = pieces(t, x)
    return sq(u - batch_codes(pre) @ W - b) / var


def matryoshka(t, x):
    u, pre, W, b, var = pieces(t, x)
    z = batch_codes(pre)
    edges = [3, 9, 21, 45, 96]
    return sum(sq(u - z[:, :m] @ W[:m] - b) for m in edges) / 5 / var


def jumprelu(t, x):
    u, pre, W, b, var = pieces(t, x)
    z = torch.where(pre > t.dictionary.extra["log_threshold"].detach().double().exp(), pre, 0)
    l0 = (z != 0).sum(1).double().mean()
    return sq(u - z @ W - b) / var + 2.0 * (l0 / K - 1) ** 2


def relu(t, x):
    u, pre, W, b, _ = pieces(t, x)
    return sq(u - pre.relu() @ W - b) + (pre.relu() @ W.norm(dim=1)).mean()


def gated(t, x):
    u, pre, W, b, _ = pieces(t, x)
    r, b_gate, b_mag = (t.dictionary.extra[n].detach().double() for n in ("r_mag", "b_gate", "b_mag"))
    gate = (pre + b_gate).relu()
    f = (gate > 0) * (pre * r.exp() + b_mag).relu()
    return sq(u - f @ W - b) + gate.sum(1).mean() + sq(u - gate @ W - b)


FORMULAS = dict(zip(RECIPES, (topk, batchtopk, matryoshka, jumprelu, relu, gated), strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_is_its_formula(name):
    t = trainer(name)
    t.done = 40  # after every warm-up
    x = data(seed=3)
    wanted = float(FORMULAS[name](t, x))
    assert t.step(x)["loss"] == pytest.approx(wanted, rel=2e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_gradients_are_those_of_the_formula_by_finite_differences(name):
    """Along the negative gradient, the loss falls as fast as the gradient says. jumprelu's thresholds are straight-through."""
    t = trainer(name)
    t.done = 40
    x = data(seed=3)
    t._optimiser.step = lambda *a, **k: None  # type: ignore[method-assign]
    object.__setattr__(t.settings, "clip", 0.0)
    t.recipe = type("Free", (), {"unit_decoder": False, "loss": t.recipe.loss})()
    t.step(x)
    names = ("W_enc", "b_dec") if name != "relu" else ("W_enc", "W_dec", "b_dec")
    for which in names:
        p = getattr(t.dictionary, which)
        step = 1e-4 * p.grad / p.grad.norm()
        start = p.detach().clone()
        p.data.copy_(start + step)
        up = FORMULAS[name](t, x)
        p.data.copy_(start - step)
        down = FORMULAS[name](t, x)
        p.data.copy_(start)
        slope = float(up - down) / (2 * float(step.norm()))
        if name == "gated" and which == "b_dec":
            continue  # the frozen term gives b_dec no gradient through its own decoder
        assert slope == pytest.approx(float(p.grad.norm()), rel=0.05), which


@pytest.mark.parametrize("name", RECIPES)
def test_the_canonical_sae_is_what_was_trained(name):
    """In the model's own space, unit decoder rows, the same reconstruction: scale and norms are folded."""
    t = trainer(name)
    for i in range(5):
        t.step(data(seed=i))
    x = data(seed=9)
    sae = t.sae()
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(WIDTH), atol=1e-5)
    _, pre, W, b, _ = pieces(t, x)
    z = sae.encode(x).dense().double() * t.scale
    if name == "topk":
        own = torch.where(pre >= pre.sort(1).values[:, -K, None], pre.relu(), 0)
    elif name in ("batchtopk", "matryoshka"):
        own = torch.where(pre > t.dictionary.state["threshold"], pre, 0)
    elif name == "jumprelu":
        own = torch.where(pre > t.dictionary.extra["log_threshold"].detach().double().exp(), pre, 0)
    elif name == "relu":
        own = pre.relu() * W.norm(dim=1)
        W = W / W.norm(dim=1, keepdim=True)
    else:
        r, b_gate, b_mag = (t.dictionary.extra[n].detach().double() for n in ("r_mag", "b_gate", "b_mag"))
        own = torch.where(pre + b_gate > 0, (pre * r.exp() + b_mag).relu(), 0)
    assert torch.allclose(z, own, atol=1e-4)
    assert torch.allclose(sae(x).double() * t.scale, own @ W + b, atol=1e-4)


def test_metadata_says_what_it_is():
    for name, architecture in zip(
        RECIPES, ("topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "standard", "gated"), strict=True
    ):
        t = trainer(name)
        t.step(data(seed=0))
        meta = t.sae().metadata
        assert meta.architecture == architecture
        assert meta.declared_l0 == (K if name not in ("relu", "gated") else None)
        assert meta.group_sizes == ((3, 6, 12, 24, 51) if name == "matryoshka" else None)


def test_thresholds_give_the_training_l0():
    for name, tolerance in (("batchtopk", 0.05), ("matryoshka", 0.05), ("jumprelu", 0.1)):
        recipe = installed().recipes[name]
        t = Trainer(recipe, make_settings(recipe, {"k": 3, "dtype": "float32"}), D, width=WIDTH, seed=0, steps=300)
        t.initialise(data(4096))
        for i in range(300):
            t.step(data(1024, seed=i))
        l0 = float(t.sae().encode(data(8192, seed=999)).counts().float().mean())
        assert l0 == pytest.approx(3, rel=tolerance), name


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("topk", {"kk": 3}, "did you mean 'k'"),
        ("topk", {"k": 2.5}, "whole number"),
        ("topk", {"k": 0}, "k is 0"),
        ("topk", {"k": 97}, "97"),
        ("topk", {"lr": -1}, "lr is -1"),
        ("topk", {"warmup": 1.0}, "warmup"),
        ("topk", {"dtype": "float8"}, "float8"),
        ("relu", {"k": 3}, "unknown setting of recipe relu 'k'"),
        ("matryoshka", {"groups": [0.5, 0.6]}, "sum to 1"),
        ("matryoshka", {"groups": [0.001, 0.999]}, "empty"),
    ],
)
def test_bad_settings_are_refused(name, given, words):
    recipe = installed().recipes[name]
    with raises(UsageError, words):
        Trainer(recipe, make_settings(recipe, given), D, width=WIDTH, seed=0, steps=5)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("topk", {"auxk": -1}),
        ("topk", {"auxk_coefficient": -0.1}),
        ("topk", {"lr": float("inf")}),
        ("topk", {"auxk_coefficient": float("nan")}),
        ("batchtopk", {"threshold_decay": 1.0}),
        ("batchtopk", {"threshold_decay": -0.1}),
        ("batchtopk", {"auxk": -1}),
        ("matryoshka", {"threshold_decay": 1.0}),
        ("matryoshka", {"groups": []}),
        ("matryoshka", {"groups": "0.5,0.5"}),
        ("matryoshka", {"groups": [0.5, "0.5"]}),
        ("matryoshka", {"groups": [float("nan"), 0.5]}),
        ("matryoshka", {"groups": 1.0}),
        ("jumprelu", {"bandwidth": 0.0}),
        ("jumprelu", {"threshold_rate": 0.0}),
        ("jumprelu", {"sparsity": -1.0}),
        ("jumprelu", {"sparsity": float("inf")}),
        ("jumprelu", {"sparsity_warmup": -0.1}),
        ("relu", {"l1": -1.0}),
        ("relu", {"l1_warmup": 1.1}),
        ("gated", {"l1": -1.0}),
        ("gated", {"l1": float("inf")}),
    ],
)
def test_settings_out_of_range_are_named(name: str, given: dict) -> None:
    with raises(UsageError, f"{next(iter(given))} is ", "expected"):
        make_settings(installed().recipes[name], given)


# --- what a step takes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_step_takes_is_stated(name: str):
    """Against torch's own counts: bytes alive at the fullest moment, multiply-adds of dense products."""
    recipe, width, n = installed().recipes[name], 2048, 1024
    made = Trainer(recipe, make_settings(recipe, {}), D, width=width, seed=0, steps=50)
    x = data(n)
    made.initialise(x)
    made.step(x)  # makes Adam's moments
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        made.step(x)
    with FlopCounterMode(display=False) as counted:
        made.step(x)
    changes = [e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = float(np.cumsum(changes).max()) / (4 * n * width)
    assert held / 1.25 < recipe.cost.held < 1.25 * held
    products = counted.get_total_flops() / (2 * n * D * width)
    dense = name in ("jumprelu", "relu", "gated")
    assert products == recipe.cost.products if dense else products <= recipe.cost.products
