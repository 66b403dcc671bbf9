"""Named random streams: reproducible, independent of each other, and never the bare seed's numbers."""

import numpy as np
import torch

from saebench.streams import generator, numpy_generator, stream_seed
from tests.raising import raises


def test_a_stream_is_pinned() -> None:
    """Records depend on these numbers: the hash must not change with a library or a machine."""
    assert stream_seed("probing/floor/0", 0) == 1889737243692540009
    assert torch.randn(3, generator=generator("a", 1)).equal(torch.randn(3, generator=generator("a", 1)))
    assert (numpy_generator("a", 1).random(3) == numpy_generator("a", 1).random(3)).all()


def test_streams_of_other_purposes_and_seeds_are_independent() -> None:
    """Correlations of 40,000 draws have a standard error of .005; the bare seed's numbers are another stream as well."""
    draws = [torch.randn(40_000, generator=generator(p, s)) for p in ("init", "floor", "init1") for s in (0, 1, 10)]
    draws += [torch.randn(40_000, generator=torch.Generator().manual_seed(s)) for s in (0, 1, 10)]
    correlation = np.corrcoef(torch.stack(draws).numpy())
    assert np.abs(correlation - np.eye(len(draws))).max() < 0.025


def test_a_stream_without_a_purpose_is_refused() -> None:
    with raises(ValueError, "purpose"):
        generator("", 0)
