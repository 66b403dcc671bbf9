"""The newcomer's path, done literally: new-plugin, pip install -e, run, the table, the leaderboard, its own test."""

import inspect
import os
import runpy
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from saebench.cli import main
from saebench.errors import UsageError
from saebench.format import CheckpointError
from saebench.registry import KINDS as REGISTERED
from saebench.scaffold import KINDS, new_plugin


def call(*args: Any) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


class Newcomer:
    """Somebody's own environment, which sees the packages of this one, and a folder to work in."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.home.mkdir()
        venv.create(root / "venv", with_pip=False)
        self.python = root / "venv" / "bin" / "python"
        [packages] = (root / "venv").glob("lib/python*/site-packages")
        ours = sysconfig.get_paths()["purelib"]
        (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")

    def __call__(self, *args: Any, ok: bool = True) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        env.pop("PYTHONPATH", None)
        done = subprocess.run(
            [self.python, "-m", *map(str, args)], capture_output=True, text=True, env=env, cwd=self.home, timeout=200
        )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done

    def install(self, folder: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "-q", "--no-deps", "--no-index",
               "--no-build-isolation", "--disable-pip-version-check", "-e", self.home / folder]  # fmt: skip
        subprocess.run(pip, check=True, timeout=120)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    return Newcomer(tmp_path_factory.mktemp("newcomer"))


def test_from_nothing_to_the_leaderboard(newcomer, two_saes, llama, tokens):
    made = newcomer("saebench", "new-plugin", "my-share", "--kind", "metric")
    assert "pip install -e . pytest && pytest" in made.stderr  # saebench brings no pytest
    written = made.stdout.split()
    assert all((newcomer.home / path).is_file() for path in written)
    newcomer.install("my-share")
    saes = [part for sae in two_saes for part in ("--sae", sae)]
    ran = newcomer("saebench", "run", *saes, "--model", llama, "--tokens", tokens, "--metric", "my_share")
    assert "my_share ↑" in ran.stderr
    board = newcomer("saebench", "leaderboard").stdout
    assert "my_share ↑" in board
    assert "#1" in board
    for word in ("first", "second"):
        assert word in board
    newcomer("ruff", "check", "--line-length", "125", "--select", "E,F,W,B,UP", ".")


def functions_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The functions of a generated test, which imports the module beside it."""
    monkeypatch.syspath_prepend(folder)
    [file] = folder.glob("test_*.py")
    scope = runpy.run_path(str(file))
    sys.modules.pop(file.stem.removeprefix("test_"))
    return {name: item for name, item in scope.items() if name.startswith("test_")}


def call_test(test: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pytest would call it."""
    have: dict[str, Any] = {"tmp_path": tmp_path, "monkeypatch": monkeypatch}
    if "trained" in inspect.signature(test).parameters:
        have["trained"] = test.__globals__["trained"].__wrapped__()
    test(*[have[name] for name in inspect.signature(test).parameters])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_passes_its_own_test(kind, tmp_path, monkeypatch):
    new_plugin(f"my-{kind}", kind, tmp_path)
    tests = functions_of(tmp_path / f"my-{kind}", monkeypatch).values()
    assert tests
    for test in tests:
        call_test(test, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("metric", "share=batch.per_context(share)", "share=share.sum(-1).numpy()"),
        ("metric", '"amax"', '"mean"'),
        ("format", "TopK(k), True", "TopK(k), False"),
        ("format", "config.check", "len"),
        ("recipe", "x_hat = sae.decode_dense(f)", "x_hat = sae.decode_dense(f.detach())"),
        ("report", "value_text(cell)", '"0"'),
        ("judge", "longest in rest", "longest not in rest"),
        ("task", "entity=country, ", "entity=country + form, "),
        ("judge", "reply.data, reply.text", "{'x': True}, reply.text"),
    ],
)
def test_their_tests_can_fail(kind, right, wrong, tmp_path, monkeypatch):
    _, _, code, _ = new_plugin("spoilt", kind, tmp_path)
    text = code.read_text()
    assert right in text
    code.write_text(text.replace(right, wrong))
    tests = functions_of(code.parent, monkeypatch).values()
    with pytest.raises((AssertionError, CheckpointError, TypeError, UsageError)):  # noqa: PT012
        for test in tests:
            call_test(test, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("My Metric", "metric", "cannot name a plugin"),
        ("../up", "metric", "cannot name a plugin"),
        ("class", "metric", "cannot name a plugin"),
        ("x" * 5000, "report", "cannot name a plugin"),
        ("torch", "metric", "already there"),
        ("json", "report", "already there"),
        ("gemma-scope", "format", "already a format"),
        ("openai", "judge", "already"),
        ("topk", "recipe", "already a recipe"),
        ("x", "sandwich", "sandwich"),
    ],
)
def test_bad_names_are_refused_and_write_nothing(name, kind, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("new-plugin", name, "--kind", kind)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    result = call("new-plugin", "mine", "--kind", "metric")
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    assert not list((tmp_path / "mine").iterdir())


def test_every_kind_offered_has_a_hook_and_every_hook_but_models_a_kind():
    assert {f"{kind}s" for kind in KINDS} == set(REGISTERED) - {"models"}
    [option] = [p for p in main.commands["new-plugin"].params if p.name == "kind"]
    assert sorted(option.type.choices) == sorted(KINDS)
