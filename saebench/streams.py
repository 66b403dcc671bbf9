"""Named random streams: one independent generator per purpose, so that no two uses of a seed ever share a draw.

With `torch.Generator().manual_seed(seed)` every caller draws the same numbers: a random baseline drawn that way equals the
initial dictionary of an SAE trained with the same seed. A stream is seeded with a hash of its purpose and the seed instead.
"""

import hashlib

import numpy as np
import torch


def stream_seed(purpose: str, seed: int) -> int:
    """The 63-bit seed of a stream: the start of SHA-256 of purpose and seed.

    Args:
        purpose: the name of the use, with the number of the draw where there are several: `"probing/floor/2"`. Another purpose
            gives other numbers.
        seed: of the run.

    Raises:
        ValueError: the purpose is empty.
    """
    if not purpose:
        raise ValueError("a random stream needs a purpose")
    digest = hashlib.sha256(f"saebench stream|{purpose}|{int(seed)}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(purpose: str, seed: int) -> torch.Generator:
    """A torch generator on the CPU for one purpose; see `stream_seed`."""
    return torch.Generator().manual_seed(stream_seed(purpose, seed))


def numpy_generator(purpose: str, seed: int) -> np.random.Generator:
    """A numpy generator for one purpose; see `stream_seed`."""
    return np.random.default_rng(stream_seed(purpose, seed))
