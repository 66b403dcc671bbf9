"""A killed run, run again, gives the same record and repeats no finished context."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from saebench.cli import main
from saebench.testing import random_sae
from tests.conftest import write_sae
from tests.running import arguments, files, measure, without_timings

_KILLED = """
import os, signal, sys
import saebench.running.finish as finish, saebench.running.passes as passes, saebench.stream as stream
passes.SAVE_EVERY = 0.0
where, after = sys.argv[1], int(sys.argv[2])
seen = 0
def wrap(owner, name):
    real = getattr(owner, name)
    def counted(*a, **k):
        global seen
        seen += 1
        if seen > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*a, **k)
    setattr(owner, name, counted)
wrap(*{"update": (stream.Pass, "_update"), "replace": (os, "replace"), "score": (finish, "finish_metric")}[where])
from saebench.cli import main
main(sys.argv[3:])
"""


@pytest.fixture(scope="module")
def uninterrupted(llama, tokens, two_saes, tmp_path_factory) -> Path:
    """Records of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patched:
        to_the_end([*arguments(two_saes, llama, tokens, folder / "r"), "--batch-size", "4"], folder, patched)
    return folder / "r"


def to_the_end(args: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, with a cache of its own."""
    monkeypatch.setenv("SAEBENCH_CACHE", str(folder / "cache"))
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.stderr


# In the middle of the pass; while a cache or state file is being replaced; between the first record and the second.
@pytest.mark.parametrize(("where", "after"), [("update", 3), ("replace", 6), ("score", 4)])
def test_sigkill_and_again_gives_the_same_record(
    where, after, llama, tokens, two_saes, tmp_path, uninterrupted, monkeypatch
):
    args = [*arguments(two_saes, llama, tokens, tmp_path / "r"), "--batch-size", "4"]
    threads = str(torch.get_num_threads())  # as here: the bits depend on it
    env = {**os.environ, "SAEBENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": threads}
    done = subprocess.run([sys.executable, "-c", _KILLED, where, str(after), *args], env=env, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    to_the_end(args, tmp_path, monkeypatch)
    found, expected = files(tmp_path / "r"), files(uninterrupted)
    left_over = [name for name in found if name not in expected]
    assert all(Path(name).name.startswith(".") for name in left_over)  # a temporary file at most
    for name in expected:
        if name.endswith(".json"):
            assert without_timings(tmp_path / "r" / name) == without_timings(uninterrupted / name)
        else:
            assert found[name] == expected[name], name


def test_resume_does_not_repeat_finished_contexts(llama, tokens, two_saes, tmp_path, monkeypatch):
    from saebench.stream import Pass

    monkeypatch.setattr("saebench.running.passes.SAVE_EVERY", 0.0)
    seen: list[int] = []
    real = Pass._update

    def update(self: Pass, forked: Any, *rest: Any) -> None:
        if len(seen) >= 12 and not resumed:
            raise KeyboardInterrupt
        seen.extend(forked.batches[0].context_id.tolist())
        real(self, forked, *rest)

    monkeypatch.setattr(Pass, "_update", update)
    resumed = False
    with pytest.raises(KeyboardInterrupt):
        measure(two_saes, llama, tokens, tmp_path, batch_size=4)
    resumed = True
    third = write_sae(tmp_path / "third", random_sae(seed=9))
    measure([*two_saes, third], llama, tokens, tmp_path, batch_size=4)
    # 24 contexts once for the two that had begun, 24 more for the one that had not
    assert sorted(seen) == sorted(list(range(24)) * 2)
    assert not (tmp_path / ".state").exists()
