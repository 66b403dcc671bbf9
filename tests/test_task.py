"""Task files: every mistake is one line, and the hash knows what changes a number."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from saebench.catalog import load_task
from saebench.errors import UsageError
from saebench.task import ContextSpec, CorpusSpec, Task, TextContent, builtin_tasks
from tests.raising import raises

GOOD = """
name = "mine"
version = 2
metrics = ["fidelity"]
[corpus]
file = "texts.parquet"
sha256 = "00"
[contexts]
length = 16
bos = true
count = 4
max_norm = 10.0
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "task.toml"
    path.write_text(text)
    return str(path)


def test_a_good_one(tmp_path: Path):
    task = load_task(write(tmp_path, GOOD))
    assert task == Task(
        "mine",
        2,
        ("fidelity",),
        TextContent(CorpusSpec("texts.parquet", "00"), ContextSpec(16, True, 4, 10.0)),
        folder=tmp_path,
    )
    assert task.label == "mine@2"
    hub = GOOD.replace('file = "texts.parquet"\nsha256 = "00"', f'hub = "a/b"\nrevision = "{COMMIT}"')
    assert load_task(write(tmp_path, hub)).corpus.hub == "a/b"


BAD = {
    "not TOML": (GOOD, "name = "),
    "no name": ('name = "mine"\n', ""),
    "no version": ("version = 2\n", ""),
    "no metrics": ('metrics = ["fidelity"]\n', ""),
    "no length": ("length = 16\n", ""),
    "no bos": ("bos = true\n", ""),
    "no corpus": ('[corpus]\nfile = "texts.parquet"\nsha256 = "00"\n', ""),
    "no contexts": (GOOD[GOOD.index("[contexts]") :], ""),
    "unknown key": ("version = 2", "version = 2\ncolour = 3"),
    "unknown corpus key": ('sha256 = "00"', 'sha256 = "00"\ncolour = 3'),
    "unknown contexts key": ("count = 4", "count = 4\nstride = 3"),
    "folder is no key": ("version = 2", 'version = 2\nfolder = "/"'),
    "name a number": ('name = "mine"', "name = 3"),
    "name a path": ('name = "mine"', 'name = "../mine"'),
    "name empty": ('name = "mine"', 'name = ""'),
    "name beyond ASCII": ('name = "mine"', 'name = "мой²"'),
    "version text": ("version = 2", 'version = "2"'),
    "version true": ("version = 2", "version = true"),
    "version 0": ("version = 2", "version = 0"),
    "metrics a string": ('["fidelity"]', '"fidelity"'),
    "metrics a number": ('["fidelity"]', "3"),
    "metrics of numbers": ('["fidelity"]', "[3]"),
    "metrics empty": ('["fidelity"]', "[]"),
    "corpus a string": ('[corpus]\nfile = "texts.parquet"\nsha256 = "00"\n', ""),
    "file and hub": ('sha256 = "00"', f'sha256 = "00"\nhub = "a/b"\nrevision = "{COMMIT}"'),
    "neither": ('file = "texts.parquet"\n', ""),
    "no sha256": ('sha256 = "00"\n', ""),
    "file a number": ('file = "texts.parquet"', "file = 3"),
    "hub at a branch": ('file = "texts.parquet"\nsha256 = "00"', 'hub = "a/b"\nrevision = "main"'),
    "hub without revision": ('file = "texts.parquet"\nsha256 = "00"', 'hub = "a/b"'),
    "hub with no documents": (
        'file = "texts.parquet"\nsha256 = "00"',
        f'hub = "a/b"\nrevision = "{COMMIT}"\ndocuments = 0',
    ),
    "where a string": ('sha256 = "00"', 'sha256 = "00"\nwhere = "x"'),
    "length 1": ("length = 16", "length = 1"),
    "length a float": ("length = 16", "length = 16.0"),
    "length text": ("length = 16", 'length = "16"'),
    "bos a number": ("bos = true", "bos = 1"),
    "bos text": ("bos = true", 'bos = "false"'),
    "count 0": ("count = 4", "count = 0"),
    "count true": ("count = 4", "count = true"),
    "max_norm 0": ("max_norm = 10.0", "max_norm = 0"),
    "max_norm nan": ("max_norm = 10.0", "max_norm = nan"),
    "max_norm text": ("max_norm = 10.0", 'max_norm = "10"'),
    "max_norm true": ("max_norm = 10.0", "max_norm = true"),
}


@pytest.mark.parametrize("case", BAD)
def test_every_mistake_is_one_line_that_names_the_file(tmp_path: Path, case: str):
    old, new = BAD[case]
    assert old in GOOD
    text = GOOD.replace(old, new)
    if case == "corpus a string":
        text = 'corpus = "x"\n' + text
    with pytest.raises(UsageError) as caught:
        load_task(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "task.toml" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.toml", "binary.toml"):
        with raises(UsageError, "not readable as a task"):
            load_task(str(tmp_path / name))


def test_built_in_names_and_versions():
    assert load_task("fidelity") == load_task("fidelity@1")
    with raises(UsageError, "did you mean 'fidelity'"):
        load_task("fidelty")
    for version in ("2", "01", "x"):
        with raises(UsageError, "is at version 1"):
            load_task(f"fidelity@{version}")
    for name, path in builtin_tasks().items():
        assert load_task(name).name == name == tomllib.loads(path.read_text())["name"]


def test_the_hash_ignores_titles_and_folders_only():
    base = Task("mine", 2, ("fidelity",), TextContent(CorpusSpec("a.parquet", "00"), ContextSpec(16, True, 4, 10.0)))
    for same in ({"title": "x"}, {"description": "x"}, {"folder": Path("/elsewhere")}, {"metrics": ("sparsity",)}):
        assert replace(base, **same).sha256() == base.sha256()  # type: ignore[arg-type]
    corpora = [{"file": "b.parquet"}, {"sha256": "01"}, {"where": {"a": "b"}}, {"hub": "h"}, {"revision": "r"}, {"subset": "s"},
               {"split": "test"}, {"text_column": "c"}, {"documents": 3}]  # fmt: skip
    contexts = [{"length": 17}, {"bos": False}, {"count": 5}, {"max_norm": 9.0}, {"max_norm": None}]
    others = [replace(base, name="other"), replace(base, version=3)]
    others += [base.with_content(corpus=replace(base.corpus, **c)) for c in corpora]  # type: ignore[arg-type]
    others += [base.with_content(contexts=replace(base.contexts, **c)) for c in contexts]  # type: ignore[arg-type]
    assert len({t.sha256() for t in [base, *others]}) == len(others) + 1
