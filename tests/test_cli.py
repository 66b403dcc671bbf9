"""The command line: answers fast, fails in one line with the right exit code, writes pure JSON."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from saebench.cli import main
from saebench.loading.hf import Address, Listing
from saebench.testing import random_sae
from tests.conftest import HOOK, write_sae


def call(*args: Any) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def one_line(result: Result) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output + result.stderr
    return lines[0]


def test_help_does_not_import_torch():
    code = "import sys; from click.testing import CliRunner; from saebench.cli import main\n" \
           "for a in (['--help'], ['run', '--help'], ['--version']): assert CliRunner().invoke(main, a).exit_code == 0\n" \
           "assert not {'torch', 'pandas', 'transformers', 'rich.progress'} & set(sys.modules), 'heavy import'"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_help_has_an_example():
    for name, command in main.commands.items():
        assert "Examples:" in (command.help or ""), name
        assert call(name, "--help").exit_code == 0


def run(sae: Path, llama: Path, tokens: Path, results: Path, *more: Any) -> Result:
    return call("run", "--sae", sae, "--model", llama, "--tokens", tokens, "--results", results, *more)


def test_json_is_pure_and_complete(two_saes, llama, tokens, tmp_path):
    result = run(two_saes[0], llama, tokens, tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    [record] = json.loads(result.stdout)
    assert record["sae"]["name"] == "first"
    assert {s["key"] for s in record["scores"]} >= {"explained_variance", "l0", "dead_fraction", "effective_rank"}


def test_table_leaderboard_and_compare(two_saes, llama, tokens, tmp_path):
    result = run(two_saes[0], llama, tokens, tmp_path, "--sae", two_saes[1])
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    for shown in ("first", "second", "explained_", "variance ↑", "#1"):  # a heading may fill two lines
        assert shown in result.stderr
    board = call("leaderboard", tmp_path)
    assert "first" in board.stdout
    assert "#1" in board.stdout
    table = call("leaderboard", tmp_path, "--format", "csv").stdout.splitlines()
    assert len(table) > 10
    assert json.loads(call("leaderboard", tmp_path, "--format", "json").stdout)
    compared = call("compare", "first", "second", "--results", tmp_path)
    assert compared.exit_code == 0, compared.stderr
    assert "B − A" in compared.stdout
    [pair] = json.loads(call("compare", "first", "second", "--results", tmp_path, "--json").stdout)
    a, b = pair["scores"][0]["a"], pair["scores"][0]["b"]
    assert pair["scores"][0]["difference"]["value"] == pytest.approx(b - a)


def test_compare_refuses_what_is_not_comparable(two_saes, llama, tokens, tmp_path):
    run(two_saes[0], llama, tokens, tmp_path)
    run(two_saes[1], llama, tokens, tmp_path, "--dtype", "bfloat16")
    result = call("compare", "first", "second", "--results", tmp_path)
    assert result.exit_code == 1
    assert "dtypes" in one_line(result)


def test_dry_run_computes_nothing(two_saes, llama, tokens, tmp_path, monkeypatch):
    from saebench.running import dry_run

    def speed(device: str, dtype: torch.dtype) -> float:
        return {torch.float32: 1e5, torch.bfloat16: 4e5}[dtype]

    monkeypatch.setattr(dry_run, "_speed", speed)
    result = run(two_saes[0], llama, tokens, tmp_path / "r", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "forwards" in result.stdout
    assert not (tmp_path / "r").exists()
    plan = json.loads(run(two_saes[0], llama, tokens, tmp_path / "r", "--dry-run", "--json").stdout)
    assert plan["contexts"] == 24
    [group] = plan["groups"]
    assert group["hook"] == HOOK
    # 4 layers of which 2 lie below the hook point: full + above + calibration over 24 contexts + two ablated contexts
    block = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    above = 2 * block + 32 * 97
    assert group["multiply_adds"]["above the hook, once per SAE"] == 24 * 16 * above
    assert group["multiply_adds"]["full forward"] == 24 * 16 * (4 * block + 32 * 97)
    total = sum(group["multiply_adds"].values())
    assert group["seconds"] == pytest.approx(2 * total / 1e5)
    assert f"time at least about {2 * total / 1e5 / 60:.0f} min" in result.stdout
    half = run(two_saes[0], llama, tokens, tmp_path / "r", "--dry-run", "--json", "--dtype", "bfloat16")
    saes = group["multiply_adds"]["SAEs"]  # in float32 whatever the model is in
    assert json.loads(half.stdout)["groups"][0]["seconds"] == pytest.approx(2 * ((total - saes) / 4e5 + saes / 1e5))


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["run", "--sae", "/no/such/place"], 2, "no such file or folder"),
        (["run", "--sae", "{sae}", "--metric", "fidelty"], 2, "did you mean 'fidelity'"),
        (["run", "--sae", "{sae}", "--task", "fidellity"], 2, "did you mean 'fidelity'"),
        (["run", "--sae", "{sae}", "--task", "fidelity@99"], 2, "version"),
        (["run", "--sae", "{sae}", "--model", "{llama}", "--tokens", "/no.npy"], 2, "/no.npy"),
        (["run", "--sae", "{sae}", "--model", "{llama}", "--tokens", "{tokens}", "--hook", "blocks.77.hook_resid_post"], 2,
         "layers 0 to 3"),
        (["run", "--sae", "{sae}", "--model", "{llama}", "--tokens", "{tokens}", "--hook", "nonsense"], 2, "nonsense"),
        (["run", "--sae", "{sae}", "--model", "no/such/model"], 2, "no/such/model"),
        (["leaderboard", "/no/such/results"], 1, "no such file"),
        (["compare", "a", "b", "--results", "/no/such/results"], 1, "no such file"),
        (["rnu"], 2, "did you mean 'run'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(args, code, words, two_saes, llama, tokens):
    filled = [a.format(sae=two_saes[0], llama=llama, tokens=tokens) for a in args]
    result = call(*filled)
    assert result.exit_code == code, result.stderr
    assert words in one_line(result)


@pytest.mark.parametrize("more", [["--dry-run"], ["--dry-run", "--json"], []])
@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--sae", "/no/such/place"], 2),
        (["--sae", "{sae}", "--hook", "nonsense"], 2),
        (["--sae", "{sae}", "--hook", "blocks.77.hook_resid_post"], 2),
        (["--sae", "{sae}", "--k", "5"], 2),
        (["--sae", "{sae}", "--sae", "/no/such/place"], 1),
        (["--sae", "{damaged}"], 1),
        (["--sae", "{narrow}"], 2),
        (["--sae", "{sae}", "--model", "{damaged}"], 1),
        (["--sae", "{sae}"], 0),
    ],
)
def test_a_dry_run_ends_as_the_run_would(flags, code, more, two_saes, llama, tokens, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    (damaged / "ae.pt").write_bytes(b"")
    (damaged / "model.safetensors").write_bytes(b"")
    narrow = write_sae(tmp_path / "narrow", random_sae(d_in=16))
    rest = [] if "--model" in flags else ["--model", str(llama)]
    filled = [a.format(sae=two_saes[0], damaged=damaged, narrow=narrow) for a in flags]
    rest += ["--tokens", str(tokens), "--metric", "geometry", "--results", str(tmp_path / "r")]
    result = call("run", *filled, *rest, *more)
    assert result.exit_code == code, result.stdout + result.stderr
    assert "Traceback" not in result.output


def test_what_is_left_out_is_said_before_the_pass(two_saes, llama, tokens, tmp_path):
    result = run(two_saes[0], llama, tokens, tmp_path, "--sae", "/no/such/place", "--metric", "sparsity")
    assert result.exit_code == 1
    assert "no such file" in one_line(result)  # and again at the end
    said = result.stderr.splitlines()
    early = next(i for i, line in enumerate(said) if line == "left out: place: no such file or folder: /no/such/place")
    assert early < next(i for i, line in enumerate(said) if line.startswith("loading"))
    alone = run("/no/such/place", llama, tokens, tmp_path)
    assert "left out" not in alone.stderr  # nothing goes on


def test_an_error_names_the_sae_once(two_saes, llama, tokens, tmp_path):
    unsaid = tmp_path / "unsaid"
    shutil.copytree(two_saes[0], unsaid)
    cfg = json.loads((unsaid / "cfg.json").read_text())
    for key, flag in (("hook_name", "--hook"), ("model_name", "--model")):
        cfg["metadata"].pop(key)
        (unsaid / "cfg.json").write_text(json.dumps(cfg))
        rest = ["--model", llama] if key == "hook_name" else []
        line = one_line(call("run", "--sae", unsaid, *rest, "--tokens", tokens, "--results", tmp_path / "r"))
        assert line.startswith("error: unsaid: the checkpoint does not name"), line
        assert f"pass {flag}" in line
    narrow = write_sae(tmp_path / "narrow", random_sae(16, 32))
    line = one_line(run(narrow, llama, tokens, tmp_path / "r"))
    assert line.startswith("error: narrow: the SAE reads 16"), line


def _must_not_be_called(*_: Any, **__: Any) -> None:
    raise AssertionError("it was loaded first")


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--results", "/dev/null/x"], 1, ["--results /dev/null/x cannot be written", "name another folder"]),
        (["--results", "/proc/no-such"], 1, ["--results /proc/no-such cannot be written", "name another folder"]),
        (["--tokens", "/no-such.npy"], 2, ["/no-such.npy: not readable as .npy"]),
        (["--tokens", "{flat}"], 2, ["expected whole numbers [contexts, tokens]"]),
    ],
)
def test_what_cannot_be_is_found_before_anything_is_loaded(
    flags, code, words, two_saes, llama, tokens, tmp_path, monkeypatch
):
    monkeypatch.setattr("saebench.running.plan.load_sae", _must_not_be_called)
    monkeypatch.setattr("saebench.running.setting.load_model", _must_not_be_called)
    flat = tmp_path / "flat.npy"
    np.save(flat, np.arange(9))
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    options = {"--tokens": str(tokens), "--results": str(tmp_path / "r")} | given
    rest = [part.format(flat=flat) for option in options.items() for part in option]
    result = call("run", "--sae", two_saes[0], "--sae", two_saes[1], "--model", llama, *rest)
    assert result.exit_code == code
    assert all(word in one_line(result) for word in words), result.stderr


def test_hub_errors_say_what_to_do(two_saes, monkeypatch):
    from huggingface_hub import errors

    def gated(*_: Any, **__: Any) -> None:
        raise errors.GatedRepoError.__new__(errors.GatedRepoError)

    monkeypatch.setattr("saebench.loading.hf.resolve", gated)
    result = call("run", "--sae", two_saes[0], "--model", "meta-llama/Llama-3.2-1B")
    assert result.exit_code == 1
    assert "gated" in one_line(result)
    assert "HF_TOKEN" in one_line(result)

    def offline(*_: Any, **__: Any) -> None:
        raise errors.LocalEntryNotFoundError("cannot find the requested files in the local cache")

    monkeypatch.setattr("saebench.loading.hf.resolve", offline)
    result = call("run", "--sae", two_saes[0], "--model", "meta-llama/Llama-3.2-1B")
    assert result.exit_code == 1
    assert "network" in one_line(result)


def test_a_bare_hub_id_is_asked_of_the_hub(two_saes, llama, tokens, tmp_path, monkeypatch):
    asked = []

    def listing(address: Address, subject: str) -> Listing:
        asked.append(address.repo)
        return Listing(address.repo, "0" * 40, {path.name: 1 for path in llama.iterdir()})

    monkeypatch.setattr("saebench.models.listing", listing)
    monkeypatch.setattr("saebench.models.fetch_files", lambda *_: llama)
    result = run(two_saes[0], "gpt2", tokens, tmp_path, "--metric", "geometry", "--json")
    assert result.exit_code == 0, result.stderr
    assert asked == ["gpt2"]
    assert json.loads(result.stdout)[0]["model"]["id"] == "gpt2"
    for spec in ("no/such/model", "./gpt2", "gpt2.gguf", "gpt 2", "~gpt2", "-gpt2"):
        assert "not an alias" in one_line(run(two_saes[0], spec, tokens, tmp_path)), spec
    assert asked == ["gpt2"]


@pytest.mark.parametrize("kind", ["RepositoryNotFoundError", "LocalEntryNotFoundError"])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_name_that_nobody_knows_lists_the_aliases_and_says_whose_it_is(
    kind, more, two_saes, tokens, tmp_path, monkeypatch
):
    from huggingface_hub import errors

    def nowhere(*_: Any, **__: Any) -> None:
        raise getattr(errors, kind).__new__(getattr(errors, kind))

    monkeypatch.setattr("saebench.loading.hf.resolve", nowhere)
    common = ["run", "--sae", two_saes[0], "--tokens", tokens, "--results", tmp_path, *more]
    said = call(*common)  # the checkpoint says "tiny"
    given = call(*common, "--model", "tiny")
    for result in (said, given):
        text = result.stdout + result.stderr
        assert result.exit_code == 2, text
        [line] = [line for line in text.splitlines() if line.startswith(("error:", "cannot be measured:"))]
        assert "no model 'tiny'" in line
        assert "smollm2-135m-instruct" in line
        assert ("The checkpoint names its model" in line) is (result is said)


def test_a_truncated_gguf_is_one_line(two_saes, tmp_path):
    from saebench.registry import registry

    whole = registry().models["smollm2-135m-instruct"].locate()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:5_000_000])
    result = call("run", "--sae", two_saes[0], "--model", cut)
    assert result.exit_code == 1
    assert "cut.gguf" in one_line(result)


def test_interrupt_exits_with_130(two_saes, llama, tokens, tmp_path, monkeypatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saebench.stream.Pass._update", interrupt)
    result = run(two_saes[0], llama, tokens, tmp_path)
    assert result.exit_code == 130
    assert "run the same command" in result.stderr


def test_a_full_disk_is_one_line(two_saes, llama, tokens, tmp_path, monkeypatch):
    import os

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run(two_saes[0], llama, tokens, tmp_path)
    assert result.exit_code == 1
    assert "No space left" in one_line(result)


def test_debug_shows_the_traceback(two_saes):
    result = call("run", "--sae", two_saes[0], "--metric", "fidelty", "--debug")
    assert result.exception is not None
    assert "did you mean" in str(result.exception)


def test_list_and_plugins():
    for kind in ("metrics", "tasks", "formats", "models", "reports"):
        rows = json.loads(call("list", kind, "--json").stdout)
        assert rows, kind
        assert all(row["name"] and row["about"] for row in rows), kind
    assert "fidelity@1" in call("list", "tasks").stdout
    assert {"fidelity", "sparsity", "geometry"} <= {
        r["name"] for r in json.loads(call("list", "metrics", "--json").stdout)
    }
    found = json.loads(call("plugins", "--json").stdout)
    assert not [p for p in found if p["error"]]
