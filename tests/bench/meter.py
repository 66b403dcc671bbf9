"""Wall time, CPU time and peak memory of a stretch of work, and how much of the machine others used meanwhile.

Both sides of the benchmark are timed by this file. On a machine that is not ours alone a slow run may be somebody else's
fault: `others_cores` says so, from the kernel's own count (Linux; None elsewhere).
"""

import resource
import sys
import time
from pathlib import Path


class Meter:
    """Starts on creation; `stop()` gives what was used since."""

    def __init__(self) -> None:
        self._wall, self._cpu, self._busy = time.perf_counter(), time.process_time(), _busy_s()

    def stop(self) -> dict[str, float | None]:
        """wall_s, cpu_s of this process, others_cores (mean number of cores that other processes kept busy), peak_mib so far."""
        wall, cpu, busy = time.perf_counter() - self._wall, time.process_time() - self._cpu, _busy_s()
        others = None if busy is None or self._busy is None else max(0.0, busy - self._busy - cpu) / wall
        return {"wall_s": wall, "cpu_s": cpu, "others_cores": others, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The largest resident memory this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _busy_s() -> float | None:
    """Seconds that all cores together have spent on anything but idling, since boot."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, fields)
    return (user + nice + system + irq + softirq) / 100  # USER_HZ is 100 on every Linux that runs Python
