"""Comparisons from Python: `saebench.compare`."""

from collections.abc import Sequence
from pathlib import Path

from saebench.board.compare import Comparison
from saebench.board.compare import compare as compare_records
from saebench.board.find import find_records
from saebench.results import Record


def compare(
    a: Record | str | Path, b: Record | str | Path, *, results: str | Path = "results", task: str | None = None,
    scores: Sequence[str] = (),
) -> Comparison:  # fmt: skip
    """Compare two measured SAEs, paired on the contexts that both were measured on; differences are b − a.

    Args:
        a, b: records, record files, or names of SAEs among the records of `results`.
        results: folder of the records.
        task: name, or name@version; needed if both SAEs were measured on several tasks.
        scores: keys, metrics, or metric.key; default: the headlines.

    Returns:
        A comparison with a `sentence`, `lines` and `to_json()`; a notebook shows it as a table.

    Raises:
        UsageError: an unknown score or task.
        SaebenchError: no such record, or incomparable records; names the parts in which they differ.
    """
    named = [str(one) for one in (a, b) if not isinstance(one, Record)]
    found = iter(find_records(named, Path(results), task)) if named else iter(())
    records = [one if isinstance(one, Record) else next(found) for one in (a, b)]
    return compare_records(records, scores)[0]
