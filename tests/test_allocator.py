"""Memory that is freed and asked for again comes without new pages."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from saebench.arithmetic.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def work():
    for mib in (12, 3, 20) * 10:
        torch.ones(mib * 2**18)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_second_round_faults_no_pages() -> None:
    def run(how: str) -> list[str]:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return done.stdout.split()

    kept, faults = run("keep")
    if kept == "False":
        pytest.skip("not Linux with glibc")
    assert int(faults) < 1000  # 350 MiB are 90,000 pages
