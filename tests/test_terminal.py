"""Whatever happens to its messages, a command finishes: closed and full streams, ASCII, no home, a clock that stands still."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import saebench
from saebench.arithmetic.speed import matrix_speed
from saebench.cache import cache_folder
from saebench.commands import terminal
from tests.conftest import HOOK

# A command of one line on each stream and a file, through the real group; no model is loaded.
COMMAND = """
import click, sys
from saebench.cli import main
from saebench.commands.shell import console_on, echo

@main.command()
def probe():
    file = open("probe.txt", "w")
    assert file.fileno() > 2
    echo("caf\u00e9 \u00b7", err=True)
    console_on().print("\u2502 message")
    console_on(sys.stdout).print("\u00b7 result") if sys.stdout else None
    file.write("done")
    file.close()

main(sys.argv[1:])
"""


def shell(redirect: str, folder: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    (folder / "command.py").write_text(COMMAND)
    return subprocess.run(
        ["bash", "-c", f"{sys.executable} command.py probe {redirect}"], cwd=folder, capture_output=True,
        env={**os.environ, **env}, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    "redirect", ["2>&-", "2>/dev/full", "2>&- >&-", "<&- >&- 2>&-", "2> >(exit 0)", "> /dev/null 2>&1", ""]
)
def test_a_stderr_that_takes_nothing_costs_nothing(redirect: str, tmp_path: Path) -> None:
    done = shell(redirect, tmp_path)
    assert done.returncode == 0, done
    assert (tmp_path / "probe.txt").read_text() == "done"


def test_ascii_streams_lose_characters_only(tmp_path: Path) -> None:
    done = shell("", tmp_path, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == "? result\n"
    assert b"message" in done.stderr


def test_streams_that_a_test_replaced_stay(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    terminal.guard_streams()
    assert (sys.stdout, sys.stderr) == before


def test_without_a_home_the_cache_is_among_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    for name in ("SAEBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert str(os.getuid()) in str(cache_folder())


def test_a_clock_that_stands_still_costs_timings_only(llama, tokens, two_saes, tmp_path, monkeypatch) -> None:
    for name in ("perf_counter", "monotonic", "time"):
        monkeypatch.setattr(f"time.{name}", lambda: 1e9)
    [record] = saebench.run(two_saes[0], model=str(llama), hook=HOOK, tokens=tokens, results=tmp_path)
    assert not record.errors
    monkeypatch.setattr("saebench.arithmetic.speed.linear", lambda a, b: a)
    assert matrix_speed("cpu", torch.float32) > 0
