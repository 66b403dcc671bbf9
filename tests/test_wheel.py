"""What pip installs is whole: a wheel built from the repository, alone in an empty folder, has every plugin, task and file."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from saebench.catalog import load_task
from saebench.registry import installed
from saebench.task import builtin_tasks
from tests.conftest import REPOSITORY


def tracked() -> list[str]:
    """The repository's files, as a clone would have them (and new ones that git does not ignore)."""
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("not in a git checkout")
    return [name for name in done.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def build(source: Path, out: Path, *kinds: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", out, source],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist and a wheel of a clean copy: building leaves files behind."""
    source, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        if name.startswith(("results/", "tests/")):
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    build(source, out, "--sdist")
    build(source, out, "--wheel")
    return out


@pytest.fixture(scope="module")
def alone(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel."""
    [wheel] = built.glob("*.whl")
    target = tmp_path_factory.mktemp("alone")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", target, wheel], check=True, timeout=120)
    return target


def contents(wheel: Path) -> dict[str, bytes]:
    """The wheel's files; its RECORD lists hashes of the others and its WHEEL the tool."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith(("/RECORD", "/WHEEL"))}


def test_the_sdist_rebuilds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    [sdist], [wheel] = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    build(source, tmp_path / "again", "--wheel")
    [again] = (tmp_path / "again").glob("*.whl")
    assert again.name == wheel.name
    assert contents(again) == contents(wheel)


def test_the_wheel_holds_every_module_and_file(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    have = set(contents(wheel))
    for name in tracked():
        top, _, rest = name.partition("/")
        where = {"saebench": "saebench", "plugins": "saebench/plugins", "tasks": "saebench/tasks"}.get(top)
        if (
            where and name != "plugins/README.md" and not fnmatch(name, "tasks/data/*.py")
        ):  # for those who work on a checkout
            assert f"{where}/{rest}" in have, f"{name} is not in the wheel"
    assert not [name for name in have if name.startswith(("tests", "docs", "results"))]


def test_alone_it_lists_everything_and_measures(alone: Path, two_saes, llama, tokens, tmp_path: Path) -> None:
    script = tmp_path / "look.py"
    script.write_text(_LOOK)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    arguments = [str(alone), str(two_saes[0]), str(llama), str(tokens), str(tmp_path / "results")]
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["home"] == str(alone / "saebench")
    ours = [p for p in installed().plugins if p.distribution == "saebench"]
    assert found["plugins"] == {p.name: list(p.provides) for p in ours}
    assert found["broken"] == []
    assert found["tasks"] == [load_task(name).label for name in builtin_tasks()]
    assert found["documents"] > 20
    assert found["page"] > 10_000
    assert found["new"] == ["pyproject.toml", "README.md", "mine.py", "test_mine.py"]
    assert found["commit"] is None
    assert 0 < found["l0"] <= 8


_LOOK = '''"""Run by the test, from a folder of its own: everything comes from the wheel."""

import json
import sys
from pathlib import Path

alone, sae, model, tokens, results = sys.argv[1:]
# The checkout is installed in this environment too; its finders go, so that nothing can come from it.
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
sys.path[:] = [alone] + [p for p in sys.path if not Path(p, "saebench", "cli.py").exists()]

import saebench
from saebench.board.leaderboard import boards
from saebench.registry import installed, registry
from saebench.scaffold import new_plugin
from saebench.catalog import load_task
from saebench.task import builtin_tasks

task = load_task("fidelity")
import pandas

documents = pandas.read_parquet(task.folder / task.corpus.file)
[record] = saebench.run(sae, model=model, tokens=tokens, results=results)
found = {
    "home": str(Path(saebench.__file__).parent),
    "plugins": {p.name: list(p.provides) for p in installed().plugins if p.distribution == "saebench"},
    "broken": [p.error for p in installed().broken],
    "tasks": [load_task(name).label for name in builtin_tasks()],
    "documents": len(documents),
    "page": len(registry().get("reports", "html").render(boards([record]))),
    "new": [path.name for path in new_plugin("mine", "metric", Path())],
    "commit": record.runs[0]["provenance"]["commit"],
    "l0": record.score("l0")["value"],
}
print(json.dumps(found))
'''
