"""Randomness that does not depend on order: everything sampled is what has the smallest hashes."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a hash is for; hashes for two purposes have nothing to do with each other."""

    LATENT = 1
    SIDE = 2
    WINDOW = 3
    CONTEXT = 4
    SILENT_PLACE = 5
    SILENT = 6
    HARD = 7
    TWINS = 8
    ORDER = 9
    TURN = 10


def _mix(h: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014, OOPSLA): a bijection of 64 bits without visible structure."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    out: np.ndarray = h ^ (h >> np.uint64(31))
    return out


def hashed(seed: int, purpose: Purpose, *keys: np.ndarray | int) -> np.ndarray:
    """uint64 hashes of (seed, purpose, key, key, …), elementwise; keys are whole numbers and broadcast."""
    out = np.zeros(1, dtype=np.uint64)
    for key in (seed, int(purpose), *keys):
        value = np.atleast_1d(np.asarray(key)).astype(np.int64).view(np.uint64)
        out = _mix((out + np.uint64(0x9E3779B97F4A7C15)) ^ value)
    return out
