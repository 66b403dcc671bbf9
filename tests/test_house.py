"""House rules: lengths of files and functions, import contracts that can fail, and English that reads like English."""

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FILES = [*sorted((REPOSITORY / "saebench").rglob("*.py")), *sorted((REPOSITORY / "plugins").rglob("*.py"))]
LINES, FUNCTION_LINES = 400, 60


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_file_is_longer_than_400_lines() -> None:
    assert len(FILES) > 200
    lengths = {str(path.relative_to(REPOSITORY)): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > LINES}


def test_no_function_is_longer_than_60_lines() -> None:
    lengths = {
        f"{path.relative_to(REPOSITORY)}:{f.lineno} {f.name}": (f.end_lineno or 0) - f.lineno + 1
        for path in FILES
        for f in functions(path)
    }
    assert len(lengths) > 1000
    assert not {name: length for name, length in lengths.items() if length > FUNCTION_LINES}


def lint_imports(folder: Path) -> "subprocess.CompletedProcess[str]":
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-logo", "--no-cache", "pyproject.toml"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("planted", "broken"),
    [
        ("", None),
        ("import saebench.cli", "imports go down only"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from saebench.results import Record", "no cycles"),
        ("def later():\n    from saebench.registry import registry", "no cycles"),
    ],
    ids=["as it is", "plain", "for types", "inside a function"],
)
def test_import_contracts_fail_on_a_forbidden_import(tmp_path: Path, planted: str, broken: str | None) -> None:
    shutil.copytree(REPOSITORY / "saebench", tmp_path / "saebench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    with (tmp_path / "saebench" / "errors.py").open("a") as file:
        file.write(f"\n{planted}\n")
    found = lint_imports(tmp_path)
    assert (found.returncode == 0) == (broken is None), found.stdout
    assert broken is None or f"{broken} BROKEN" in " ".join(found.stdout.split())


def prose(path: Path) -> Iterator[str]:
    """Docstrings and comments."""
    text = path.read_text("utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def test_words_that_hide_a_noun_are_rare() -> None:
    words = [word.lower() for path in FILES for text in prose(path) for word in re.findall(r"[A-Za-z']+", text)]
    assert len(words) > 40_000
    per_ten_thousand = {
        name: 10_000 * sum(word in forms for word in words) / len(words)
        for name, forms in {"what": {"what"}, "say": {"say", "says", "said"}}.items()
    }
    assert per_ten_thousand["what"] <= 15
    assert per_ten_thousand["say"] <= 3


def test_no_error_message_begins_with_it() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{text.lineno}"
        for path in FILES
        for raised in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(raised, ast.Raise)
        for call in ast.walk(raised)
        if isinstance(call, ast.Call)
        for argument in call.args
        for text in ([argument] if isinstance(argument, ast.Constant) else getattr(argument, "values", [])[:1])
        if isinstance(text, ast.Constant) and isinstance(text.value, str) and text.value.lower().startswith("it ")
    ]
    assert not found
