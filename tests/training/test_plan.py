"""TOML files, options, dry runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import LlamaConfig

from saebench.cli import main
from saebench.errors import UsageError
from saebench.recipe import Recipe
from saebench.task import builtin_tasks
from saebench.training.budget import budget, chunk_contexts
from saebench.training.estimate import estimate
from saebench.training.plan import expand, read_requests, with_options
from saebench.training.request import SaeSpec, TrainRequest
from saebench.training.toy import ToyResult, compare
from tests.raising import raises

FOLDER = Path(__file__).resolve().parents[2] / "tasks" / "train"
# The published sizes, from the models' own config.json.
SIZES = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},
}


def _model(folder: Path, size: str) -> Path:
    """The config of a Llama 3.2 without its weights, which a dry run does not need."""
    config = LlamaConfig(
        vocab_size=128_256, num_key_value_heads=8, head_dim=64 if size == "1B" else 128, tie_word_embeddings=True,
        **SIZES[size],
    )  # fmt: skip
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("file", "size", "d_in", "width", "layers"),
    [
        ("llama-3.2-1b.toml", "1B", 2048, 32_768, 9),
        ("llama-3.2-3b.toml", "3B", 3072, 32_768, 15),
        ("seed-project.toml", "3B", 3072, 65_536, 22),
    ],
)
def test_full_size_dry_run(file: str, size: str, d_in: int, width: int, layers: int, tmp_path: Path) -> None:
    model = _model(tmp_path / size, size)
    done = CliRunner().invoke(main, ["train", str(FOLDER / file), "--model", str(model), "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    request = read_requests(FOLDER / file)[0]
    assert found["d_in"] == d_in
    assert request.saes[0].width == width
    assert request.saes[0].settings["k"] == 64
    assert found["tokens"] == request.tokens
    assert found["steps"] == request.tokens // 8192
    # Multiply-adds of a Llama block by hand: q and o, k and v, three of the MLP.
    sizes = SIZES[size]
    d, kv, wide = sizes["hidden_size"], 8 * (64 if size == "1B" else 128), sizes["intermediate_size"]
    block = 2 * d * d + 2 * d * kv + 3 * d * wide
    assert found["model_flops_per_token"] == pytest.approx(2 * layers * block, rel=1e-3)
    # Weights, gradient and two moments in float32, the model besides.
    assert found["memory_bytes"] > 4 * 4 * 2 * d_in * width + 2 * 28e6
    assert found["disk_bytes"] >= 2 * 3 * 4 * 2 * d_in * width
    assert found["seconds"] > 0


# GiB at the fullest as the kernel counted them (VmHWM), of whole runs on two cores: 8,192 rows, 16,384 latents, d_in 32.
@pytest.mark.parametrize(("recipe", "peak"), [("gated", 4.05), ("jumprelu", 2.94), ("relu", 2.42)])
def test_memory_of_dense_recipes_is_what_they_took(recipe: str, peak: float, llama: Path) -> None:
    request = TrainRequest(
        model=str(llama), hook="blocks.1.hook_resid_post", saes=(SaeSpec("a", recipe, 16_384),), dtype="float32",
        device="cpu", batch_size=8192,
    )  # fmt: skip
    assert 1 / 1.2 < estimate(request).memory / 2**30 / peak < 1.2


@pytest.mark.parametrize(("recipe", "seconds"), [("gated", 13.9), ("matryoshka", 2.35)])
def test_time_of_saes_is_what_they_took(
    recipe: str, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps of 4,096 at d_in 576 with 9,216 latents, on a machine with these rates of matrix products."""
    rates = {torch.float32: 4.3e11, torch.bfloat16: 8.6e11}
    monkeypatch.setattr("saebench.training.estimate.matrix_speed", lambda device, dtype: rates[dtype])
    LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=2).save_pretrained(tmp_path)
    request = TrainRequest(
        model=str(tmp_path), hook="blocks.1.hook_resid_post", device="cpu",
        saes=(SaeSpec("a", recipe, 9216, settings={"dtype": "bfloat16"}),),
        batch_size=4096, tokens=40_960,
    )  # fmt: skip
    found = estimate(request).seconds
    assert found is not None
    assert 1 / 1.5 < found[1] / seconds < 1.5


def test_the_fullest_step_counts_not_the_widest(llama: Path) -> None:
    wide, dense = SaeSpec("a", "topk", 8192), SaeSpec("b", "gated", 4096)
    both = TrainRequest(
        model=str(llama), hook="blocks.1.hook_resid_post", saes=(wide, dense), device="cpu", batch_size=4096
    )
    alone = estimate(with_options(both, {"saes": (dense,)}))
    assert estimate(both).memory - alone.memory == pytest.approx(4 * 4 * 2 * 32 * 8192), "only the topk SAE's own state"


def test_dry_run_says_it_in_words(tmp_path: Path) -> None:
    model = _model(tmp_path / "1B", "1B")
    done = CliRunner().invoke(main, ["train", str(FOLDER / "llama-3.2-1b.toml"), "--model", str(model), "--dry-run"])
    assert "tokens 500,000,000 in 61,035 steps of 8,192" in done.stdout
    assert "time about" in done.stdout
    assert "GiB" in done.stdout


def test_dry_run_finds_what_would_fail_later(tmp_path: Path) -> None:
    model = _model(tmp_path / "1B", "1B")
    request = with_options(read_requests(FOLDER / "llama-3.2-1b.toml")[0], {"model": str(model), "device": "cpu"})
    with raises(UsageError, "blocks.16", "0 to 15"):
        estimate(with_options(request, {"hook": "blocks.16.hook_resid_post"}))
    [wrong] = expand({"recipe": "topk", "width": 32, "k": 33})
    with raises(UsageError, "k is 33", 32):
        estimate(with_options(request, {"saes": (wrong,)}))


def test_the_seed_projects_warm_up_is_a_thousand_steps() -> None:
    request = read_requests(FOLDER / "seed-project.toml")[0]
    assert request.tokens is not None
    assert request.saes[0].settings["warmup"] * (request.tokens // request.batch_size) == pytest.approx(1000, rel=1e-3)


def test_training_runs_are_no_tasks() -> None:
    assert FOLDER.is_dir()
    assert not [name for name in builtin_tasks() if name.startswith("train")]


def test_lists_make_every_combination() -> None:
    names = [s.name for s in expand({"recipe": "topk", "width": 64, "k": [8, 16], "seed": [0, 1]}, "m")]
    assert names == ["m-topk-k8-seed0", "m-topk-k8-seed1", "m-topk-k16-seed0", "m-topk-k16-seed1"]
    [one] = expand({"recipe": "relu", "width": 64, "sparsity": 5.0, "name": "mine"})
    assert (one.name, one.settings) == ("mine", {"sparsity": 5.0})


M = 'model = "m"\nhook = "h"\n'
SAE_TABLE = '[[saes]]\nrecipe = "topk"\nwidth = 8\n'


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (M + "batchsize = 3\n" + SAE_TABLE, ("batchsize", "batch_size")),
        (M + '[[saes]]\nrecipe = "topk"', ("width", "saes")),
        (M, ("nothing to train",)),
        (M + '[[saes]]\nrecipe = "topk"\nwidth = "big"', ("width", "topk", "big")),
        (M + "[[saes]]\nrecipe = 5\nwidth = 8", ("recipe", 5)),
        (M + "batch_size = 0\n" + SAE_TABLE, ("batch_size", 0)),
        (M + "batch_size = 8.5\n" + SAE_TABLE, ("batch_size", 8.5)),
        ('model = "m"\n' + SAE_TABLE, ("missing", "hook")),
        (M + '[corpus]\nfilez = "x"\n' + SAE_TABLE, ("corpus", "filez", "file")),
        (M + 'corpus = "x"\n' + SAE_TABLE, ("corpus", "x")),
        (M + "[corpus]\nfile = 3\n" + SAE_TABLE, ("file", 3)),
        (M + '[corpus]\nfile = "a"\nhub = "b"\n' + SAE_TABLE, ("file", "hub")),
        (M + '[corpus]\nfile = "a"\n' + SAE_TABLE, ("sha256",)),
        (M + '[saes]\nrecipe = "topk"\nwidth = 8', ("saes", "[[saes]]")),
        (M + "saes = [3]", ("saes", "[[saes]]")),
        ("model = ", ("not readable",)),
        ('model = 5\nhook = "h"\n' + SAE_TABLE, ("model", 5)),
        ('model = "m"\nhook = 5\n' + SAE_TABLE, ("hook is 5",)),
        (M + 'bos = "no"\n' + SAE_TABLE, ("bos", "no", "auto")),
        (M + "max_norm = 0\n" + SAE_TABLE, ("max_norm", 0)),
        (M + 'max_norm = "10"\n' + SAE_TABLE, ("max_norm", "10")),
        (M + "max_norm = nan\n" + SAE_TABLE, ("nan",)),
        (M + 'dtype = "float64"\n' + SAE_TABLE, ("dtype", "float64", "bfloat16")),
        (M + SAE_TABLE + 'name = "../a"', ("../a",)),
        (M + SAE_TABLE + 'name = "a/b"', ("a/b",)),
        (M + SAE_TABLE + "name = 5", ("named 5",)),
        (M + SAE_TABLE + 'name = "run.json"', ("run.json", "another name")),
        (M + SAE_TABLE + "k = []", ("k", "empty list")),
        (M + SAE_TABLE + f"seed = {10**20}", ("2^63",)),
        (M + f"seed = {2**63}\n" + SAE_TABLE, ("2^63",)),
    ],
)
def test_a_wrong_file_is_one_line(text: str, parts: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text)
    with raises(UsageError, "run.toml", *parts):
        read_requests(tmp_path / "run.toml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "name a recipe"),
        (["train", "topk", "--width", "8"], "--model is missing"),
        (["train", "topk", "--model", "m", "--hook", "h"], "--width is missing"),
        (["train", "topk", "--model", "m", "--hook", "h", "--width", "8"], "--out DIR is missing"),
        (["train", "topk", "--model", "m", "--hook", "h", "--width", "8", "--set", "lr"], "NAME=VALUE"),
        (["train", "topk", "--model", "m", "--hook", "h", "--width", "8", "--set", "width=9"], "--set width=…"),
        (
            ["train", "topk", "--model", "m", "--hook", "h", "--width", "8", "--set", "recipe=relu"],
            "--set recipe=…",
        ),
        (
            ["train", "topk", "--model", "m", "--hook", "h", "--width", "8", "--k", "3", "--set", "k=4"],
            "--set k=…",
        ),
        (["train", str(FOLDER / "smollm2-135m.toml"), "--k", "5"], "--k sets one SAE"),
        (["train", "no.toml", "--out", "x"], "not readable"),
        (["train", "--toy", "--width", "8"], "--width does not go with --toy"),
        (["train", "--toy", "--batch-size", "8"], "--batch-size does not go with --toy"),
        (["train", "--toy", "--dry-run"], "--dry-run does not go with --toy"),
        (["train", "--toy", "--set", "steps=3"], "unknown setting of recipe topk 'steps'"),
        (["train", "--toy", "--k", "0"], "k is 0"),
        (["train", "--toy", "--seed", str(2**63)], "--seed is 9223372036854775808"),
        (
            ["train", "topk", "--model", "m", "--hook", "h", "--width", "8", "--seed", str(2**64)],
            "seed is 18446744073709551616, expected a whole number below 2^63",
        ),
        (
            ["train", str(FOLDER / "smollm2-135m.toml"), "--seed", "-1"],
            "seed of smollm2-135m-layer15-topk-k16 is -1, expected a whole number from 0",
        ),
        (["train", "topk", "--json"], "--json goes with --dry-run"),
    ],
)
def test_a_wrong_command_is_one_line(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_toy_recovers_the_planted_features(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["train", "--toy", "--out", str(tmp_path / "toy")])
    assert done.exit_code == 0, done.output
    assert float(done.stdout.split("features ")[1].split(",")[0]) >= 0.95
    assert (tmp_path / "toy" / "toy.png").read_bytes().startswith(b"\x89PNG")


def test_options_reach_the_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict] = []

    def note(recipe: Recipe, **given: object) -> ToyResult:
        asked.append({"recipe": recipe.name} | given)
        return compare(torch.eye(4), torch.eye(4))

    monkeypatch.setattr("saebench.training.toy.toy", note)
    arguments = ["train", "batchtopk", "--toy", "--seed", "3", "--k", "5", "--set", "lr=0.1", "--out", str(tmp_path)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert asked == [{"recipe": "batchtopk", "seed": 3, "k": 5, "lr": 0.1}]


def test_seed_is_of_weights_too_unless_the_file_gives_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.toml").write_text(
        'model = "m"\nhook = "h"\n[[saes]]\nrecipe = "topk"\nwidth = 8\n'
        '[[saes]]\nrecipe = "relu"\nwidth = 8\nseed = [0, 1]\n'
    )
    asked: list[TrainRequest] = []
    monkeypatch.setattr("saebench.commands.train._train", lambda requests, out, command: asked.extend(requests))
    for more in ([], ["--seed", "7"]):
        assert CliRunner().invoke(main, ["train", str(tmp_path / "run.toml"), "--out", "x", *more]).exit_code == 0
    assert [(r.seed, [s.seed for s in r.saes]) for r in asked] == [(0, [0, 0, 1]), (7, [7, 0, 1])]
    assert [s.name for s in asked[1].saes] == ["topk", "relu-seed0", "relu-seed1"]


def test_what_does_not_fit_is_found_before_text_is_read(llama: Path, tmp_path: Path) -> None:
    """The file of text is not there, and nobody has looked for it yet."""
    model = ["--model", str(llama), "--data", str(tmp_path / "missing.npy"), "--dry-run"]
    for hook, k, message in (
        ("blocks.9", "4", "layers 0 to 3"),
        ("blocks.1", "50", "k is 50"),
        ("blocks.1", "4", "missing.npy"),
    ):
        arguments = ["train", "topk", *model, "--hook", f"{hook}.hook_resid_post", "--width", "48", "--k", k]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2
        assert message in done.stderr


def test_a_buffer_is_as_large_for_rows_of_another_length(llama: Path, tmp_path: Path) -> None:
    """Rows 16 times as long as context_length: a sixteenth of the contexts, in the run and in the estimate."""
    spec = SaeSpec("a", "topk", 48, 0, {"k": 4})
    request = TrainRequest(
        model=str(llama), hook="blocks.1.hook_resid_post", saes=(spec,), dtype="float32", device="cpu"
    )
    assert chunk_contexts(request, 32, 4, 128) == 2**17 // 128
    assert chunk_contexts(request, 32, 4, 2048) == 2**17 // 2048
    few = with_options(request, {"tokens": 12_000})
    assert 12_000 < chunk_contexts(few, 32, 4, 128) * 127 < 13_000, "no more activations than the run takes"
    np.save(tmp_path / "long.npy", np.full((2, 2048), 5))
    tokens, steps, text = budget(with_options(request, {"data": tmp_path / "long.npy"}))
    assert text is not None
    assert text.length == 2048
    short, long = (estimate(request, tokens, steps, n) for n in (128, text.length))
    # A forward pass of as many contexts is longer; the buffer is not.
    wide = 3 * 64 + 4 * 32
    assert long.memory - short.memory == pytest.approx(16 * (2048 - 128) * wide * 4)
