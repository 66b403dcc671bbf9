"""Plugins: a real third-party distribution works like a built-in, and broken ones cost nobody anything."""

import json
import os
import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from saebench import registry as registry_module
from saebench.errors import SaebenchError, UsageError
from saebench.hookspecs import hookimpl
from saebench.metric import Metric
from saebench.registry import GROUP, build, installed, registry
from saebench.testing import check_metric
from tests.conftest import EXAMPLE
from tests.raising import raises

BUILT_IN = {"fidelity", "sparsity", "geometry"}


# --- a real distribution ---------------------------------------------------------------------------------------------


def saebench(site: Path | None, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(site)} if site else {})
    return subprocess.run(
        [sys.executable, "-m", "saebench", *args], capture_output=True, text=True, timeout=120, env=env, check=False,
        cwd=site,
    )  # fmt: skip


def test_an_installed_plugin_is_found_and_a_broken_one_is_named(site: Path):
    done = saebench(site, "plugins", "--json")
    assert done.returncode == 0, done.stderr
    found = {p["name"]: p for p in json.loads(done.stdout)}
    example, broken = found["example"], found["broken"]
    assert example["error"] is None
    assert example["distribution"] == "saebench-example-plugin"
    assert example["version"] == "0.1.0"
    assert sorted(example["provides"]) == ["metric last_token", "metric norm_error"]
    assert (broken["distribution"], broken["version"], broken["provides"]) == ("broken-example", "9.9", [])
    assert "a_module_that_nobody_has" in broken["error"]
    assert found["fidelity"]["error"] is None


def test_its_metric_is_listed_beside_ours(site: Path):
    done = saebench(site, "list", "metrics", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row["about"] for row in json.loads(done.stdout)}
    assert set(rows) >= BUILT_IN | {"norm_error"}
    assert rows["norm_error"].startswith("How far")
    assert "broken-example 9.9" in done.stderr  # it warns, once, and goes on
    assert done.stderr.count("broken-example") == 1


def test_strict_makes_the_broken_one_fatal(site: Path):
    done = saebench(site, "plugins", "--strict")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "broken plugins: broken" in done.stderr
    assert "BROKEN: ModuleNotFoundError" in done.stdout


def test_the_example_metric_keeps_the_contract():
    scope: dict[str, type[Metric]] = {}
    exec((EXAMPLE / "saebench_example_plugin.py").read_text(), scope)
    check_metric(scope["NormError"], identity={"norm_error": 0})
    check_metric(scope["LastToken"], identity={"kl": 0}, reads_text=True)


@pytest.mark.parametrize("command", [["-m", "saebench"], ["-c", "from saebench.cli import main; main()"]])
def test_a_folder_of_a_plugins_name_does_not_hide_the_plugin_in_silence(site: Path, tmp_path: Path, command: list[str]):
    """A checkout beside the working folder; -c puts that folder first on the path, too, and -m must not."""
    (tmp_path / "shadowed").mkdir()
    (tmp_path / "site").mkdir()
    # As an editable install does: a finder behind those of the path.
    (tmp_path / "site" / "sitecustomize.py").write_text(FINDER)
    (tmp_path / "site" / "shadowed_source").mkdir()
    (tmp_path / "site" / "shadowed_source" / "shadowed.py").write_text(
        "from saebench import hookimpl\n@hookimpl\ndef saebench_reports(): return []\n"
    )
    info = tmp_path / "site" / "shadowed-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shadowed\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[saebench]\nshadowed = shadowed\n")
    done = subprocess.run(
        [sys.executable, *command, "plugins"], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if "shadowed" in line.split()]
    assert ("BROKEN" in line) == (command[0] == "-c"), done.stdout


FINDER = """
import sys
from importlib.machinery import PathFinder
from pathlib import Path

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "shadowed":
            return PathFinder.find_spec(name, [str(Path(__file__).parent / "shadowed_source")])

sys.meta_path.append(Finder)
"""

# --- every way to be broken ------------------------------------------------------------------------------------------


class Thing:
    name, version, needs = "thing", 1, frozenset()
    update = merge = units = scores = None


class Half:
    name = "half"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    """make(name, hook=function, ...) -> an entry point of a module with these functions."""

    def make(name: str, **functions: object) -> EntryPoint:
        made = types.ModuleType(f"plugin_{name}")
        for attribute, value in functions.items():
            setattr(made, attribute, value)
        monkeypatch.setitem(sys.modules, made.__name__, made)
        return EntryPoint(name, made.__name__, GROUP)

    return make


def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> EntryPoint:
    name = f"plugin_source_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return EntryPoint("bad", name, GROUP)


@hookimpl
def saebench_metrics() -> list[object]:
    return [Thing]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("def (", "SyntaxError"),
        ("raise RuntimeError('line one\\nline two')", "RuntimeError: line one line two"),
        ("raise Exception", "Exception: Exception"),
        ("def saebench_metrics(): return []", "ImportError: "),  # not marked as a hook
        ("", "ImportError: "),
    ],
)
def test_a_module_that_cannot_be_imported(tmp_path, monkeypatch, module, text: str, reason: str):
    found = build([source(tmp_path, monkeypatch, text), module("good", saebench_metrics=saebench_metrics)])
    assert list(found.metrics) == ["thing"]
    (broken,) = found.broken
    assert broken.name == "bad"
    assert broken.error is not None
    assert broken.error.startswith(reason)
    assert "\n" not in broken.error
    assert broken.provides == ()


@hookimpl
def saebench_formats() -> list[object]:
    raise ValueError("no disk")


def returning(value: object, hook: str = "saebench_metrics") -> dict[str, object]:
    def function() -> object:
        return value

    function.__name__ = hook
    return {hook: hookimpl(function)}


def _exits() -> object:
    raise SystemExit("bye")


class Reads:
    @property
    def name(self) -> str:
        raise OSError("unreadable")


BROKEN_HOOKS = {
    "raises": ({"saebench_formats": saebench_formats}, "no disk"),
    "exits": ({"saebench_metrics": hookimpl(_exits)}, "bye"),
    "misspelt": (returning([Thing], "saebench_metric"), "did you mean 'saebench_metrics'"),
    "lacks": (returning([Half]), "version, needs, update, merge, units, scores"),
    "none": (returning(None), "TypeError"),
    "number": (returning(7), "TypeError"),
    "unreadable": (returning([Reads()], "saebench_models"), "unreadable"),
    "no_name": (returning([type("T", (Thing,), {"name": None})]), "name"),
    "about": (returning([type("T", (Thing,), {"about": {"key": 3}})]), "about should be a dictionary"),
    "two_of_one_name": (returning([Thing, type("T", (Thing,), {})]), "two named 'thing'"),
    "argument": ({"saebench_metrics": hookimpl(lambda nonsense: [Thing])}, "nonsense"),
}


@pytest.mark.parametrize("case", BROKEN_HOOKS)
def test_a_broken_plugin_is_left_out_whole_and_named(module, case: str):
    functions, reason = BROKEN_HOOKS[case]
    others = [module("before", **returning([type("A", (Thing,), {"name": "a"})])),
              module(case, **functions),
              module("after", **returning([type("B", (Thing,), {"name": "b"})]))]  # fmt: skip
    found = build(others)
    assert set(found.metrics) == {"a", "b"}
    assert not found.formats
    assert not found.models
    (broken,) = found.broken
    assert broken.name == case
    assert reason in (broken.error or "")
    assert "\n" not in (broken.error or "")


def test_one_good_and_one_bad_object_bring_nothing(module):
    found = build([module("mixed", **returning([Thing, Half]))])
    assert not found.metrics
    assert found.broken


def test_the_first_of_two_with_one_name_keeps_it(module):
    mine, theirs = type("A", (Thing,), {}), type("B", (Thing,), {})
    found = build([module("first", **returning([mine])), module("second", **returning([theirs]))])
    assert found.metrics["thing"] is mine
    assert "already taken" in (found.broken[0].error or "")


def test_an_unknown_name_suggests_the_nearest():
    with raises(UsageError, "did you mean 'fidelity'"):
        installed().get("metrics", "fidelty")


def test_strict_raises_and_otherwise_warns_once(module, monkeypatch):
    found = build([module("bad", **returning(None))])
    monkeypatch.setattr(registry_module, "installed", lambda: found)
    registry_module._warn_once.cache_clear()
    with raises(SaebenchError, "plugin 'bad'"):
        registry(strict=True)
    with pytest.warns(UserWarning, match="plugin 'bad'") as warned:  # noqa: PT031
        registry()
        registry()
    assert len(warned) == 1


def test_built_ins_come_first_and_are_whole():
    found = installed()
    ours = [p for p in found.plugins if p.distribution == "saebench"]
    assert found.plugins[: len(ours)] == ours
    assert set(found.metrics) >= BUILT_IN
