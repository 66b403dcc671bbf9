"""Training runs from beginning to end: on the model's own activations, killed and resumed, cached, on two processes."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import saebench
from saebench.cli import main
from saebench.errors import NonFiniteError, SaebenchError, UsageError
from saebench.training.activations import Activations
from saebench.training.checkpoints import RunFolder
from saebench.training.plan import SaeSpec, TrainRequest
from saebench.training.run import make_trainer, prepare, train

from .conftest import HOOK, Heard

Make = Callable[..., TrainRequest]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sae_weights.safetensors")


def _same(a: Path, b: Path) -> bool:
    first, second = _weights(a), _weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def _losses(folder: Path) -> list[float]:
    return [line["loss"] for line in RunFolder(folder).read_log() if "loss" in line]


@pytest.fixture(scope="module")
def whole(llama: Path, ids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `request_for()` with three epochs, never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    spec = SaeSpec("topk-k4", "topk", 48, 0, {"k": 4, "dead_after": 500})
    request = TrainRequest(
        model=str(llama), hook=HOOK, saes=(spec,), data=ids, epochs=3, batch_size=32, chunk_contexts=30, context_batch=8,
        checkpoint_every=15, log_every=5, dtype="float32", device="cpu",
    )  # fmt: skip
    train(request, out, Heard())
    return out


def test_activations_are_the_models_own(request_for: Make, llama: Path, ids: Path, tmp_path: Path) -> None:
    """Against Hugging Face's own hidden states: BOS and outliers left out, every other token once."""
    run = prepare(request_for(max_norm=1.3), tmp_path / "run", Heard())
    tokens = torch.from_numpy(np.load(ids))
    with torch.no_grad():
        states = AutoModelForCausalLM.from_pretrained(llama)(tokens, output_hidden_states=True).hidden_states[2]
    normal = (tokens != 1) & (tokens != 2)
    calibrated = np.unique(np.linspace(0, 199, 32).astype(int))
    few = states[calibrated][normal[calibrated]].norm(dim=-1).double()
    limit = 1.3 * np.median(few.numpy())
    wanted = states[normal & (states.norm(dim=-1) <= limit)]
    found = torch.cat([run.chunks.chunk(i) for i in range(run.chunks.per_epoch)])
    assert 0 < len(wanted) < int(normal.sum())
    assert found.shape == wanted.shape
    order, expected = (torch.argsort(t[:, 0].double() * 1e6 + t[:, 1].double()) for t in (found, wanted))
    torch.testing.assert_close(found[order], wanted[expected], rtol=1e-4, atol=1e-4)


def test_the_sae_is_a_saelens_checkpoint_that_says_where_it_belongs(whole: Path) -> None:
    sae = saebench.load_sae(whole / "topk-k4")
    assert (sae.d_in, sae.d_sae) == (32, 48)
    assert sae.metadata.hook == HOOK
    assert sae.metadata.model == "tiny-llama"
    assert sae.metadata.declared_l0 == 4
    steps = int(200 * 15 * 3 * 0.998) // 32
    assert sae.metadata.training_tokens == steps * 32
    assert _losses(whole)[-1] < 0.9 * _losses(whole)[0]
    assert not RunFolder(whole).checkpoint.exists()


def test_it_can_be_kept_in_half_the_space(whole: Path, tmp_path: Path) -> None:
    """For committed baselines: float16 on disk, float32 in memory, the same SAE to float16's rounding."""
    sae = saebench.load_sae(whole / "topk-k4")
    saebench.save_sae(sae.to("cpu", torch.float16), tmp_path / "half")
    assert {t.dtype for t in _weights(tmp_path / "half").values()} == {torch.float16}
    again = saebench.load_sae(tmp_path / "half")
    assert again.W_enc.dtype == torch.float32
    assert again.metadata.dtype == "float16"
    torch.testing.assert_close(again.W_enc, sae.W_enc, rtol=1e-3, atol=1e-4)
    assert torch.equal(again.W_enc, sae.W_enc.half().float())


def test_killed_and_started_again_it_ends_with_the_same_bits(
    whole: Path, llama: Path, ids: Path, request_for: Make, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    toml = tmp_path / "run.toml"
    toml.write_text(
        f'model = "{llama}"\nhook = "{HOOK}"\nepochs = 3\nbatch_size = 32\nchunk_contexts = 30\ncontext_batch = 8\n'
        'checkpoint_every = 15\nlog_every = 5\ndtype = "float32"\n'
        '[[saes]]\nrecipe = "topk"\nname = "topk-k4"\nwidth = 48\nk = 4\ndead_after = 500\n'
    )
    command = [
        sys.executable,
        "-m",
        "saebench",
        "train",
        str(toml),
        "--data",
        str(ids),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    checkpoint = RunFolder(out).checkpoint
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was not killed in the middle"
    assert checkpoint.exists()
    heard = Heard()
    train(request_for(epochs=3), out, heard)
    assert heard.steps[0] > 0, "it began again instead of going on"
    assert _same(out / "topk-k4", whole / "topk-k4")
    assert _losses(out) == _losses(whole)


def test_ctrl_c_keeps_everything(whole: Path, request_for: Make, tmp_path: Path) -> None:
    """Pressed at any step, also while the buffer is half used: what follows is the same."""

    class Press(Heard):
        def progress(self, step: int, tokens_per_second: float, lines: list) -> None:
            super().progress(step, tokens_per_second, lines)
            if step == 35:
                os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(request_for(epochs=3), out, Press())
    heard = Heard()
    train(request_for(epochs=3), out, heard)
    assert heard.steps[0] == 35
    assert _same(out / "topk-k4", whole / "topk-k4")


def test_ctrl_c_while_activations_are_made(
    whole: Path, request_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pressed in the third chunk's first forward pass: no other is made, every step is kept, and what follows is the same."""
    passes = 0
    original = Activations._capture

    def press(self: Activations, contexts: np.ndarray) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes == 2 * 4 + 1:  # 30 contexts a chunk, 8 a pass
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, contexts)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Activations, "_capture", press)
        with pytest.raises(KeyboardInterrupt):
            train(request_for(epochs=3), out, Heard())
    assert passes == 9
    heard = Heard()
    train(request_for(epochs=3), out, heard)
    assert heard.steps[0] == 2 * 30 * 15 // 32
    assert _same(out / "topk-k4", whole / "topk-k4")


def test_a_finished_run_has_nothing_to_do(whole: Path, request_for: Make) -> None:
    heard = Heard()
    train(request_for(epochs=3), whole, heard)
    assert "is finished" in heard.messages[-1]
    assert not heard.steps


def test_a_finished_run_whose_sae_is_gone(request_for: Make, tmp_path: Path) -> None:
    train(request_for(), tmp_path / "run", Heard())
    shutil.rmtree(tmp_path / "run" / "topk-k4")
    with pytest.raises(UsageError, match="is finished, and topk-k4 is no longer in it"):
        train(request_for(), tmp_path / "run", Heard())


def test_saes_of_one_pass_are_those_of_passes_of_their_own(whole: Path, request_for: Make, tmp_path: Path) -> None:
    one = request_for(epochs=3).saes[0]
    others = (SaeSpec("pca", "pca", 64, 0, {"k": 4}), SaeSpec("other", "topk", 40, 1, {"k": 2}))
    train(request_for(epochs=3, saes=(others[0], one, others[1])), tmp_path / "run", Heard())
    assert _same(tmp_path / "run" / "topk-k4", whole / "topk-k4")


def test_two_processes_train_as_one(whole: Path, llama: Path, ids: Path, tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text(
        f'model = "{llama}"\nhook = "{HOOK}"\nepochs = 3\nbatch_size = 32\nchunk_contexts = 30\ncontext_batch = 8\n'
        'checkpoint_every = 15\nlog_every = 5\ndtype = "float32"\n'
        '[[saes]]\nrecipe = "topk"\nname = "topk-k4"\nwidth = 48\nk = 4\ndead_after = 500\n'
        '[[saes]]\nrecipe = "pca"\nwidth = 64\nk = 4\n'
    )
    out = tmp_path / "run"
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "saebench", "train",
         str(toml), "--data", str(ids), "--out", str(out), "--device", "cpu"],
        check=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
    )  # fmt: skip
    np.testing.assert_allclose(_losses(out), _losses(whole), rtol=1e-4)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_every_recipe_is_written_and_read_back(request_for: Make, tmp_path: Path) -> None:
    """The checkpoint is the trained SAE: the same latents and reconstructions on the model's own activations."""
    names = ["topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated"]
    with_k = {"topk", "batchtopk", "matryoshka", "jumprelu"}
    saes = tuple(SaeSpec(n, n, 64, 0, {"dtype": "float32"} | ({"k": 6} if n in with_k else {})) for n in names)
    run = prepare(request_for(saes=saes), tmp_path / "run", Heard())
    x = run.chunks.chunk(0)
    run.go(Heard())
    for lane in run.lanes:
        trained, read = lane.trainer.sae(), saebench.load_sae(tmp_path / "run" / lane.spec.name)
        z = trained.encode(x).dense()
        assert bool((z != 0).any())
        torch.testing.assert_close(read.encode(x).dense(), z, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(read(x), trained(x), rtol=1e-4, atol=1e-4)


# --- the cache --------------------------------------------------------------------------------------------------------


def test_a_cache_changes_nothing_in_the_first_epoch(
    request_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    train(request_for(), tmp_path / "without", Heard())
    train(request_for(cache=cache), tmp_path / "with", Heard())
    assert _same(tmp_path / "with" / "topk-k4", tmp_path / "without" / "topk-k4")
    shards = sorted(cache.rglob("*.safetensors"))
    assert len(shards) == 7  # 200 contexts, 30 a chunk
    damaged = shards[2].read_bytes()
    shards[2].write_bytes(damaged[: len(damaged) // 2])
    flipped = bytearray(shards[3].read_bytes())
    flipped[-5] ^= 1
    shards[3].write_bytes(flipped)
    made: list[int] = []
    original = Activations.chunk
    monkeypatch.setattr(Activations, "chunk", lambda self, n: made.append(n) or original(self, n))
    train(request_for(cache=cache), tmp_path / "again", Heard())
    assert made == [2, 3], "only what was damaged is made again"
    assert _same(tmp_path / "again" / "topk-k4", tmp_path / "without" / "topk-k4")
    assert shards[2].read_bytes() == damaged


def test_a_cache_of_another_text_is_not_taken(request_for: Make, ids: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    train(request_for(cache=cache), tmp_path / "one", Heard())
    other = tmp_path / "other.npy"
    tokens = np.load(ids)
    tokens[0, 5] = 3 + (tokens[0, 5] - 2) % 90
    np.save(other, tokens)
    train(request_for(cache=cache, data=other), tmp_path / "two", Heard())
    assert len(list(cache.iterdir())) == 2


# --- baselines --------------------------------------------------------------------------------------------------------


def test_pca_is_the_covariances(request_for: Make, tmp_path: Path) -> None:
    """Against numpy on all activations: with every component kept it is exact, with k it keeps each token's k largest."""
    spec = SaeSpec("pca", "pca", 64, 0, {"k": 4})
    run = prepare(request_for(saes=(spec,)), tmp_path / "run", Heard())
    x = torch.cat([run.chunks.chunk(i) for i in range(run.chunks.per_epoch)]).double().numpy()
    run.go(Heard())
    sae = saebench.load_sae(tmp_path / "run" / "pca")
    # The run leaves up to a batch, and 0.2 %, of the activations out.
    mean = x.mean(0)
    np.testing.assert_allclose(sae.b_dec.numpy(), mean, atol=0.05 * x.std())
    _, vectors = np.linalg.eigh(np.cov(x.T))
    overlap = np.abs(vectors[:, ::-1].T[:3] @ sae.W_enc[:, :3].double().numpy()).diagonal()
    assert overlap.min() > 0.98
    few = torch.from_numpy(x[:50]).float()
    codes = (few.double().numpy() - sae.b_dec.double().numpy()) @ sae.W_enc[:, :32].double().numpy()
    smallest = np.sort(np.abs(codes), axis=1)[:, : 32 - 4]
    wanted = (smallest**2).sum(1)
    error = (few - sae(few)).double().pow(2).sum(1).numpy()
    np.testing.assert_allclose(error, wanted, rtol=1e-3)


def test_random_weights_are_unit_and_remade(request_for: Make, tmp_path: Path) -> None:
    spec = SaeSpec("random", "random", 48, 5, {"k": 4})
    for name in ("a", "b"):
        train(request_for(saes=(spec,)), tmp_path / name, Heard())
    assert _same(tmp_path / "a" / "random", tmp_path / "b" / "random")
    weights = _weights(tmp_path / "a" / "random")
    torch.testing.assert_close(weights["W_dec"].norm(dim=1), torch.ones(48))
    torch.testing.assert_close(weights["W_enc"], weights["W_dec"].T)


def _command(recipe: str, model: Path, ids: Path, out: Path) -> list[str]:
    options = {
        "model": model,
        "hook": HOOK,
        "width": 48,
        "k": 4,
        "data": ids,
        "batch-size": 1000,
        "device": "cpu",
        "out": out,
    }
    return ["train", recipe, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def test_baselines_have_no_curves_and_no_figures(llama: Path, ids: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, _command("pca", llama, ids, tmp_path / "run"))
    assert done.exit_code == 0, done.output
    assert "curves:" not in done.stderr
    assert not (tmp_path / "run" / "curves.png").exists()
    assert re.search(r"tokens/s: pca-k4$", done.stderr, re.MULTILINE)


def test_curves_are_drawn_where_an_sae_cannot_be_written(
    llama: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saebench.training.run.Trainer.sae", lambda self: _not_finite())
    done = CliRunner().invoke(main, _command("topk", llama, ids, tmp_path / "run"))
    assert done.exit_code == 1
    assert "1 of 1 SAE(s) could not be written" in done.stderr
    assert f"curves: {tmp_path / 'run' / 'curves.png'}" in done.stderr
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


# --- what can go wrong --------------------------------------------------------------------------------------------------


def test_too_little_text_says_how_many_epochs(request_for: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has 3,000 × 1 epoch.*it would take 4 epochs \(--epochs 4\)"):
        train(request_for(tokens=10_000), tmp_path / "run", Heard())
    assert not (tmp_path / "run").exists()


def test_text_that_is_read_twice_is_said(request_for: Make, tmp_path: Path) -> None:
    once, again = Heard(), Heard()
    train(request_for(), tmp_path / "once", once)
    train(request_for(max_norm=1.0), tmp_path / "again", again)  # half the tokens are longer than the median
    assert not any("once more" in m for m in once.messages)
    assert sum("(max_norm 1.0)" in m and "once more" in m for m in again.messages) == 1


def test_text_of_special_tokens_only_is_said(request_for: Make, tmp_path: Path) -> None:
    np.save(tmp_path / "bos.npy", np.ones((4, 16), dtype=np.int64))
    with pytest.raises(UsageError, match="no token to train on"):
        train(request_for(data=tmp_path / "bos.npy"), tmp_path / "run", Heard())


def test_what_does_not_fit_is_found_before_text_is_read(request_for: Make, tmp_path: Path) -> None:
    wide = SaeSpec("a", "topk", 48, 0, {"k": 50})
    with pytest.raises(UsageError, match="k is 50"):
        prepare(request_for(saes=(wide,), data=tmp_path / "missing.npy"), tmp_path / "run", Heard())


def test_a_hook_the_model_lacks(request_for: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="layers 0 to 3"):
        train(request_for(hook="blocks.9.hook_resid_post"), tmp_path / "run", Heard())


def test_k_larger_than_width(request_for: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"k is 50.*48"):
        train(request_for(saes=(SaeSpec("a", "topk", 48, 0, {"k": 50}),)), tmp_path / "run", Heard())


def test_an_unknown_setting_is_named(request_for: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a: unknown setting of recipe topk 'auxq'.*auxk"):
        train(request_for(saes=(SaeSpec("a", "topk", 48, 0, {"auxq": 5}),)), tmp_path / "run", Heard())


def test_a_setting_larger_than_torch_takes_is_named() -> None:
    spec = SaeSpec("a", "topk", 48, 0, {"k": 4, "dead_after": 2**63})
    with pytest.raises(UsageError, match=r"a: recipe topk: dead_after is 9223372036854775808, .* below 2\^63"):
        make_trainer(spec, 32, 10, "cpu")


def test_another_runs_folder_is_left_alone(whole: Path, request_for: Make) -> None:
    before = (whole / "run.json").read_bytes()
    with pytest.raises(UsageError, match=r"holds another run \(seed is 0 there and 1 here\)"):
        train(request_for(epochs=3, seed=1), whole, Heard())
    assert (whole / "run.json").read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(request_for: Make, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds something else"):
        train(request_for(), tmp_path, Heard())


def test_divergence_keeps_the_last_good_checkpoint(request_for: Make, tmp_path: Path) -> None:
    """A loss that is not finite ends the run; the checkpoint before it is whole and finite."""
    out = tmp_path / "run"
    run = prepare(request_for(epochs=3), out, Heard())
    trainer = run.lanes[0].trainer
    step = trainer.step

    def poisoned(x: torch.Tensor) -> dict:
        return step(torch.full_like(x, torch.inf) if run.step == 40 else x)

    trainer.step = poisoned  # type: ignore[method-assign]
    with pytest.raises(SaebenchError, match=r"topk-k4: .*checkpoint before it is kept.*an --out of its own"):
        run.go(Heard())
    state = RunFolder(out).load()
    assert state is not None
    assert 0 < state["step"] <= 40
    assert all(bool(t.isfinite().all()) for t in state["saes"]["topk-k4"]["dictionary"].values())


def test_a_full_disk_is_said_before_anything_is_computed(
    request_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("saebench.training.checkpoints.shutil.disk_usage", lambda _: usage)
    with pytest.raises(SaebenchError, match="GiB free and this run needs") as caught:
        train(request_for(), tmp_path / "run", Heard())
    assert caught.value.exit_code == 1, "the command was right"


def test_a_folder_that_cannot_be_written_is_no_wrong_command(request_for: Make) -> None:
    with pytest.raises(SaebenchError, match=r"/proc/nope/run.json could not be written") as caught:
        train(request_for(), Path("/proc/nope"), Heard())
    assert caught.value.exit_code == 1


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(request_for: Make, whole: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save({"step": 3, "x": torch.ones(4)})
    before = folder.checkpoint.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saebench.training.checkpoints.save_file", _no_space)
        with pytest.raises(SaebenchError, match=r"the checkpoint before it is kept in .*: free"):
            folder.save({"step": 4, "x": torch.zeros(4)})
    assert folder.checkpoint.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_checkpoint_is_on_the_disk_before_it_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    synced: list[tuple[int, bool]] = []
    sync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append((os.fstat(fd).st_ino, folder.checkpoint.exists())), sync(fd))
    )
    folder.save({"step": 3, "x": torch.ones(4)})
    assert synced == [(folder.checkpoint.stat().st_ino, False)]


def _no_space(tensors: object, path: Path, metadata: object) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_one_sae_that_cannot_be_written_costs_no_other(request_for: Make, tmp_path: Path) -> None:
    """The first of three has NaN: the others are there, and the same command writes it without a step."""
    specs = tuple(SaeSpec(name, "topk", 48, i, {"k": 4}) for i, name in enumerate("abc"))
    train(request_for(saes=specs), tmp_path / "whole", Heard())
    out = tmp_path / "run"
    run = prepare(request_for(saes=specs), out, Heard())
    run.lanes[0].trainer.sae = _not_finite  # type: ignore[method-assign]
    with pytest.raises(SaebenchError, match=r"1 of 3 SAE.*: a \(W_dec is not finite\).*the same command") as caught:
        run.go(Heard())
    assert "\n" not in str(caught.value)
    assert not (out / "a").exists()
    assert all(_same(out / name, tmp_path / "whole" / name) for name in "bc")
    heard = Heard()
    train(request_for(saes=specs), out, heard)
    assert heard.steps == [run.steps], "it trained again"
    assert _same(out / "a", tmp_path / "whole" / "a")
    assert RunFolder(out).finished
    assert not RunFolder(out).checkpoint.exists()


class Limited(Heard):
    """Files may have so many bytes after the last step: the kernel refuses more, as a full disk does."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def end(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, resource.RLIM_INFINITY))


@pytest.fixture
def unlimited() -> Iterator[None]:
    """No limit is left behind."""
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_saes_are_written_where_the_last_checkpoint_does_not_fit(
    request_for: Make, tmp_path: Path, unlimited: None
) -> None:
    """The SAE has 13 kB, a checkpoint three times as many."""
    train(request_for(), tmp_path / "whole", Heard())
    out = tmp_path / "run"
    with pytest.raises(
        SaebenchError, match=r"last checkpoint could not be written: .*File too large.*every SAE is, in"
    ):
        train(request_for(checkpoint_every=10_000), out, Limited(20_000))
    assert _same(out / "topk-k4", tmp_path / "whole" / "topk-k4")
    heard = Heard()
    assert train(request_for(checkpoint_every=10_000), out, heard) == [out / "topk-k4"]
    assert not heard.steps, "it trained again"


@pytest.mark.parametrize(
    ("every", "kept"), [(10_000, "no checkpoint yet"), (15, "the checkpoint before it is kept in")]
)
def test_a_disk_without_room_for_anything_says_what_is_left(
    every: int, kept: str, request_for: Make, tmp_path: Path, unlimited: None
) -> None:
    with pytest.raises(SaebenchError, match=rf"1 of 1 SAE.*File too large.*\({kept}.*run the same command again"):
        train(request_for(checkpoint_every=every), tmp_path / "run", Limited(5_000))
    assert not RunFolder(tmp_path / "run").finished
    assert RunFolder(tmp_path / "run").checkpoint.exists() == (every == 15)


def _not_finite() -> saebench.SAE:
    raise NonFiniteError("W_dec is not finite")


def test_it_says_how_long_the_model_took(request_for: Make, tmp_path: Path) -> None:
    heard = Heard()
    train(request_for(), tmp_path / "run", heard)
    spent = RunFolder(tmp_path / "run").read_log()[-1]["seconds"]
    share = spent["activations"] / sum(spent.values())
    said = int(heard.messages[-1].split("took ")[1].split(" %")[0].split("%")[0])
    assert said == pytest.approx(100 * share, abs=5)


def test_out_of_memory_suggests_a_batch(request_for: Make, tmp_path: Path) -> None:
    run = prepare(request_for(), tmp_path / "run", Heard())
    run.lanes[0].trainer.step = lambda x: {"loss": torch.empty(2**50)}  # type: ignore[method-assign]
    with pytest.raises(SaebenchError, match="--batch-size 16"):
        run.go(Heard())


def test_what_is_no_lack_of_memory_is_not_called_one(request_for: Make, tmp_path: Path) -> None:
    run = prepare(request_for(), tmp_path / "run", Heard())
    run.lanes[0].trainer.step = lambda x: {"loss": x @ x[1:]}  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        run.go(Heard())


@pytest.mark.parametrize(("recipe", "width"), [("topk", 2**44), ("random", 2**44), ("topk", 2**62)])
def test_an_sae_that_does_not_fit_into_memory_is_named(recipe: str, width: int) -> None:
    with pytest.raises(SaebenchError, match=rf"a: {width:,} latents do not fit into memory.*smaller width"):
        make_trainer(SaeSpec("a", recipe, width, 0, {"k": 4}), 32, 10, "cpu")


def test_a_damaged_checkpoint_is_said(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save({"step": 3, "x": torch.ones(4)})
    folder.checkpoint.write_bytes(folder.checkpoint.read_bytes()[:50])
    with pytest.raises(SaebenchError, match=r"is damaged.*delete it"):
        folder.load()


def test_checkpoints_hold_nested_states_exactly(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    state = {"a": {0: {"step": torch.tensor(2.0)}, "rows": x[:, 1]}, "list": [x.bfloat16(), 1.5, None, True], "same": x}
    folder = RunFolder(tmp_path)
    folder.save(state)
    found = folder.load()
    assert found is not None
    assert torch.equal(found["a"][0]["step"], torch.tensor(2.0))
    assert torch.equal(found["a"]["rows"], x[:, 1])
    assert torch.equal(found["list"][0], x.bfloat16())
    assert found["list"][1:] == [1.5, None, True]


def test_the_log_is_json_lines(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[:-1]] == [*range(5, 280, 5), 280][: len(lines) - 1]
    assert {"loss", "explained_variance", "l0", "dead_fraction", "tokens_per_second"} <= lines[0].keys()
    assert lines[0]["l0"] <= 4
    assert set(lines[-1]["seconds"]) == {"activations", "topk-k4"}
