"""Growing tables in plain arrays, which the harness can save, and the rule that keeps them small."""

from collections.abc import Sequence

import numpy as np

Table = dict[str, np.ndarray]


def joined(chunks: Sequence[Table]) -> Table:
    """One table of several. Rows of different width are padded on the right with 0."""
    if len(chunks) == 1:
        return chunks[0]
    return {name: _stacked([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _stacked(parts: list[np.ndarray]) -> np.ndarray:
    if parts[0].ndim == 1:
        return np.concatenate(parts)
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])


def rows(table: Table, index: np.ndarray) -> Table:
    """The rows that a mask or an array of numbers names."""
    return {name: column[index] for name, column in table.items()}


def size(table: Table) -> int:
    return len(next(iter(table.values())))


def rank_within(group: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """[n] the place of each row among the rows of its group, in the order of the keys (the first decides)."""
    order = np.lexsort((*reversed(keys), group))
    sorted_group = group[order]
    begins = np.r_[True, sorted_group[1:] != sorted_group[:-1]] if len(group) else np.zeros(0, dtype=bool)
    first = np.maximum.accumulate(np.where(begins, np.arange(len(group)), 0))
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - first
    return rank
