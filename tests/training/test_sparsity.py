"""A target L0 by a controller on λ, and snapshots of a run."""

from collections.abc import Callable
from pathlib import Path

import pytest

import saebench
from saebench.errors import UsageError
from saebench.recipe import make_settings
from saebench.registry import installed
from saebench.streams import generator
from saebench.training.checkpoints import RunFolder
from saebench.training.plan import expand, read_requests
from saebench.training.request import SaeSpec, TrainRequest
from saebench.training.run import train
from saebench.training.toy import ToyNetwork
from saebench.training.trainer import Trainer
from tests.raising import raises

from .conftest import Heard, same_weights

Make = Callable[..., TrainRequest]
GRID = Path(__file__).resolve().parents[2] / "tasks" / "train" / "grid.toml"


def _trained(name: str, steps: int, **given: float) -> tuple[Trainer, float]:
    """A trainer after its last step on the toy network, and the L0 of its SAE on fresh activations."""
    network, recipe = ToyNetwork.random(128, 64, 0), installed().recipes[name]
    settings = make_settings(recipe, {"dtype": "float32", "lr": 1e-2, **given})
    trainer = Trainer(recipe, settings, 64, width=192, seed=0, steps=steps)
    stream = generator("toy/data", 0)
    trainer.initialise(network.sample(4096, stream))
    for _ in range(steps):
        trainer.step(network.sample(256, stream))
    z = trainer.sae().encode(network.sample(20_000, stream)).dense()
    return trainer, float((z != 0).sum(1).float().mean())


@pytest.mark.parametrize(
    ("name", "l0", "l1"), [("relu", 3.0, 0.2), ("relu", 8.0, 5.0), ("gated", 3.0, 5.0), ("gated", 8.0, 0.2)]
)
def test_l0_is_reached_from_any_first_penalty(name: str, l0: float, l1: float) -> None:
    trainer, found = _trained(name, 500, l0=l0, l1=l1)
    assert found == pytest.approx(l0, rel=0.05)
    assert trainer.sae().metadata.declared_l0 == l0


@pytest.mark.parametrize("k", [3, 8])
def test_jumprelu_reaches_its_k(k: int) -> None:
    assert _trained("jumprelu", 500, k=k)[1] == pytest.approx(k, rel=0.05)


@pytest.mark.parametrize("name", ["relu", "gated"])
def test_without_a_target_the_penalty_stays(name: str) -> None:
    trainer, _ = _trained(name, 20, l1=1.5)
    assert float(trainer.dictionary.state["l1"]) == 1.5
    assert trainer.sae().metadata.declared_l0 is None


def test_a_target_that_makes_no_sense_is_refused() -> None:
    recipe = installed().recipes["relu"]
    for given, parts in (
        ({"l0": 0.0}, ("l0", 0.0)),
        ({"l0": "many"}, ("l0", "many")),
        ({"l0": 4, "l1": 0.0}, ("l1", 0.0)),
    ):
        with raises(UsageError, *parts):
            make_settings(recipe, given)
    with raises(UsageError, "l0", 200, 192):
        Trainer(recipe, make_settings(recipe, {"l0": 200}), 64, width=192, seed=0, steps=10)


def test_snapshots_are_the_sae_at_that_step(request_for: Make, tmp_path: Path) -> None:
    """Half-way through a run without decay: the SAE of a run of half as many steps over the same batches."""
    settings = {"k": 4, "dtype": "float32", "warmup": 0.0, "decay": 0.0}
    spec = SaeSpec("topk-k4", "topk", 48, 0, settings, (0.25, 0.5))
    train(request_for(saes=(spec,), tokens=2560), tmp_path / "whole", Heard())
    half = SaeSpec("topk-k4", "topk", 48, 0, settings)
    train(request_for(saes=(half,), tokens=1280), tmp_path / "half", Heard())
    assert same_weights(tmp_path / "whole" / "topk-k4-at50", tmp_path / "half" / "topk-k4")
    assert not same_weights(tmp_path / "whole" / "topk-k4-at25", tmp_path / "half" / "topk-k4")
    tokens = [
        saebench.load_sae(tmp_path / "whole" / f"topk-k4{end}").metadata.training_tokens
        for end in ("-at25", "-at50", "")
    ]
    assert tokens == [640, 1280, 2560]
    assert RunFolder(tmp_path / "whole").finished


def test_a_snapshot_that_cannot_be_written_costs_nothing(request_for: Make, tmp_path: Path) -> None:
    spec = SaeSpec("a", "topk", 48, 0, {"k": 4}, (0.5,))
    out = tmp_path / "run"
    out.mkdir()
    heard = Heard()
    original = saebench.load_sae

    class Block(Heard):
        def begin(self, steps: int, done: int) -> None:
            (out / "a-at50").write_text("in the way")

        def message(self, text: str) -> None:
            heard.message(text)

    train(request_for(saes=(spec,), tokens=640), out, Block())
    assert any("a-at50 could not be written" in message for message in heard.messages)
    assert original(out / "a").d_sae == 48


@pytest.mark.parametrize("snapshots", [[0.0], [1.0], ["half"], 0.5, [True]])
def test_snapshots_are_shares(snapshots: object, request_for: Make) -> None:
    saes = tuple(expand({"recipe": "topk", "width": 48, "k": 4, "snapshots": snapshots}))
    with raises(UsageError, "snapshots", "topk-k4"):
        request_for(saes=saes)


def test_the_grid_is_complete() -> None:
    """Six architectures × four L0, three seeds at L0 32, frozen halves, random, PCA."""
    [request] = read_requests(GRID)
    at = [
        (s.recipe, s.settings.get("k") or s.settings.get("l0"), s.seed)
        for s in request.saes
        if "frozen" not in s.settings
    ]
    architectures = ("topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated")
    assert {(a, l0, 0) for a in architectures for l0 in (16, 32, 64, 128)} <= set(at)
    assert {(a, 32, seed) for a in architectures for seed in (1, 2)} <= set(at)
    assert {"random", "pca"} <= {recipe for recipe, _, _ in at}
    assert {s.settings["frozen"] for s in request.saes if "frozen" in s.settings} == {"decoder", "encoder"}
    assert len(at) == len(set(at)) == len(request.saes) - 2
    assert [s.snapshots for s in request.saes if s.snapshots] == [(0.05, 0.15, 0.4)]
    for spec in request.saes:
        if spec.recipe in architectures:
            make_settings(installed().recipes[spec.recipe], spec.settings).check(576, spec.width)
