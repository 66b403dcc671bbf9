"""`saebench train` as a user meets it: several hook points, text of one's own, progress, the closing lines."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from saebench.cli import main
from saebench.commands.train import TrainProgress
from saebench.training.plan import read_requests
from saebench.training.request import TrainRequest
from saebench.training.run import prepare
from tests.raising import check_message

from .conftest import Heard


def _file(folder: Path, llama: Path, ids: Path, top: str, saes: str = "k = [2, 4]") -> Path:
    path = folder / "run.toml"
    path.write_text(
        f'model = "{llama}"\ndata = "{ids}"\ntokens = 640\nbatch_size = 64\ndtype = "float32"\n{top}\n'
        f'[[saes]]\nrecipe = "topk"\nwidth = 48\n{saes}\n'
    )
    return path


def test_several_hook_points_of_one_file(llama: Path, ids: Path, tmp_path: Path) -> None:
    hooks = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    path = _file(tmp_path, llama, ids, f"hook = {json.dumps(hooks)}")
    out = tmp_path / "my run"
    done = CliRunner().invoke(main, ["train", str(path), "--out", str(out), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    for hook in hooks:
        assert json.loads((out / hook / "run.json").read_text())["identity"]["hook"] == hook
        for k in (2, 4):
            config = json.loads((out / hook / f"topk-k{k}" / "cfg.json").read_text())
            assert config["metadata"]["hook_name"] == hook
    last = done.stderr.splitlines()[-1]
    assert last.endswith(f"saebench run --sae '{out / hooks[0]}' --sae '{out / hooks[1]}'")


def test_the_closing_line_measures_every_sae(llama: Path, ids: Path, tmp_path: Path) -> None:
    for saes, wanted in (("k = [2, 4]", tmp_path / "two"), ("k = 4", tmp_path / "one" / "topk-k4")):
        out = tmp_path / wanted.relative_to(tmp_path).parts[0]
        path = _file(tmp_path, llama, ids, 'hook = "blocks.0.hook_resid_post"', saes)
        done = CliRunner().invoke(main, ["train", str(path), "--out", str(out), "--device", "cpu"])
        assert done.exit_code == 0, done.output
        assert done.stderr.splitlines()[-1].endswith(f"saebench run --sae {wanted}")


def test_a_files_data_lies_beside_it_and_stands_alone(llama: Path, ids: Path, tmp_path: Path) -> None:
    path = _file(tmp_path, llama, Path("mine/ids.npy"), 'hook = "blocks.0.hook_resid_post"')
    assert read_requests(path)[0].data == tmp_path / "mine" / "ids.npy"
    wrong = {
        'hook = "h"\ncorpus = { file = "x", sha256 = "y" }': ("data", "[corpus]"),
        'hook = ["h", "h"]': ("hook", "differ"),
        "hook = []": ("hook", "[]"),
    }
    for top, parts in wrong.items():
        done = CliRunner().invoke(main, ["train", str(_file(tmp_path, llama, ids, top)), "--dry-run"])
        assert done.exit_code == 2
        check_message(done.stderr.strip(), "run.toml", *parts)


def test_a_wrong_hook_point_is_found_before_any_trains(llama: Path, ids: Path, tmp_path: Path) -> None:
    path = _file(tmp_path, llama, ids, 'hook = ["blocks.0.hook_resid_post", "blocks.9.hook_resid_post"]')
    done = CliRunner().invoke(main, ["train", str(path), "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    check_message(done.stderr.strip(), "blocks.9", "0 to 3")
    assert not (tmp_path / "run").exists()


def test_dry_run_counts_the_text(llama: Path, ids: Path, tmp_path: Path) -> None:
    path = _file(tmp_path, llama, ids, 'hook = "blocks.0.hook_resid_post"')
    done = CliRunner().invoke(main, ["train", str(path), "--dry-run", "--json"])
    assert json.loads(done.stdout)["text"] == {
        "documents": 200, "documents_too_short": 0, "contexts": 200, "context_length": 16, "tokens": 200 * 15 - _twos(ids),
        "share_dropped": 0.0,
    }  # fmt: skip


def _twos(ids: Path) -> int:
    import numpy as np

    return int((np.load(ids) == 2).sum())


def test_progress_is_never_silent_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redirected: forward passes and steps are reported every half minute, and steps every twentieth of the run."""
    now = [0.0]
    monkeypatch.setattr("saebench.commands.train.time.monotonic", lambda: now[0])
    out = io.StringIO()
    progress = TrainProgress(Console(file=out, width=140), quiet=False)
    for done in range(1, 101):
        now[0] += 1
        progress.capturing(done, 100)
    assert out.getvalue().splitlines() == [f"activations: {n} of 100 forward passes" for n in (30, 60, 90)]
    progress.begin(100_000, 0)
    for step in range(50, 5050, 50):
        now[0] += 7
        progress.progress(step, 1000.0, [{"sae": "a", "loss": 0.5}])
    assert len(out.getvalue().splitlines()) == 3 + 700 // 35
    for step in range(5051, 5055):  # so slow that no line of numbers is due
        now[0] += 31
        progress.stepped(step)
    assert out.getvalue().splitlines()[-4:] == [f"step {step:,} of 100,000" for step in range(5051, 5055)]


def test_a_short_run_computes_no_more_activations_than_it_takes(
    request_for: Callable[..., TrainRequest], tmp_path: Path
) -> None:
    passes: list[tuple[int, int]] = []
    heard = Heard()
    heard.capturing = lambda done, total: passes.append((done, total))  # type: ignore[method-assign]
    run = prepare(request_for(tokens=320, chunk_contexts=None), tmp_path / "run", heard)
    run.go(heard)
    assert len(passes) * 8 * 15 < 320 * 1.5
    assert passes[-1][0] == passes[-1][1]
