"""How fast this machine multiplies matrices, and times in words, for dry runs."""

import time

import torch

from saebench.arithmetic.linear import linear


def matrix_speed(device: str, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Floating-point operations a second of a product of [2048, 1024] and [1024, 2048], after a first one."""
    a = torch.ones(2048, 1024, dtype=dtype, device=device)
    b = torch.ones(2048, 1024, dtype=dtype, device=device)
    linear(a, b)
    done, spent, started = 0, 0.0, time.perf_counter()
    while spent < seconds and done < 2000:  # a clock may stand still
        float(linear(a, b)[0, 0])  # waits for a GPU
        done += 1
        spent = time.perf_counter() - started
    return done * 2 * 2048 * 1024 * 2048 / max(spent, 1e-9)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, to no more digits than an estimate has."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
