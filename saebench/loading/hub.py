"""Data sets of the Hugging Face hub at pinned commits, or local folders: documents, and tables of labelled texts."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from saebench.errors import SaebenchError, unknown
from saebench.loading.hf import hub_error, resolve, wait_before_retry
from saebench.task import CorpusSpec, LabelSpec


def hub_documents(spec: CorpusSpec) -> Iterator[tuple[str, str]]:
    """(name, text) of the first documents of a data set.

    Raises:
        SaebenchError: the data set cannot be read.
    """
    for i, row in enumerate(_rows(spec, spec.subset)):
        yield f"{spec.hub}/{spec.split}/{i}", str(_value(row, spec.text_column, spec))


def hub_table(spec: CorpusSpec, labels: LabelSpec) -> tuple[pd.DataFrame, LabelSpec]:
    """The first documents of a labelled data set (of each of its subsets) as a table, with the names of its columns.

    Raises:
        SaebenchError: the data set cannot be read, or a column is missing.
    """
    columns = replace(labels, text="text", label="label")
    sources = {"group": labels.group, "balance": labels.balance}
    rows = []
    parts: Mapping[str, str | None] = spec.subsets or {"": spec.subset}
    for label, subset in parts.items():
        text = labels.text.replace("{label}", label)
        for row in _rows(spec, subset):
            value = label if spec.subsets else _value(row, labels.label, spec)
            own = {column: _value(row, column, spec) for column in sources.values() if column}
            rows.append(own | {"text": _value(row, text, spec), "label": value})
    return pd.DataFrame(rows, columns=None if rows else ["text", "label"]), columns


def full_commit(spec: CorpusSpec) -> str | None:
    """The full hash of the pinned commit; the hub accepts no abbreviated ones.

    Raises:
        SaebenchError: no commit, or several, have this prefix.
    """
    return None if spec.revision is None else resolve(str(spec.hub), spec.revision, "dataset")


def _rows(spec: CorpusSpec, subset: str | None) -> Iterator[dict[str, Any]]:
    """The first rows, streamed; after an error of a busy hub, the remaining rows are requested again."""
    done = attempt = 0
    while True:
        try:
            for row in islice(_stream(spec, subset), done, spec.documents):
                yield row
                done, attempt = done + 1, 0
            return
        except Exception as error:  # errors come from half a dozen libraries
            wait = wait_before_retry(error, attempt)
            if wait is None:
                raise hub_error(f"corpus '{spec.hub}'", error) from error
            attempt += 1
            time.sleep(wait)


def _stream(spec: CorpusSpec, subset: str | None) -> Iterable[dict[str, Any]]:
    import datasets

    if Path(str(spec.hub)).is_dir():
        commit, base = None, str(spec.hub)
    else:
        commit = full_commit(spec)
        base = f"hf://datasets/{spec.hub}@{commit}"
    if spec.files is None:
        found = datasets.load_dataset(spec.hub, subset, split=spec.split, revision=commit, streaming=True)
    else:  # bypasses a loading script, which `datasets` no longer runs, and its guess of the splits
        kind = "json" if ".json" in spec.files else "parquet"
        found = datasets.load_dataset(kind, data_files=f"{base}/{spec.files}", split="train", streaming=True)
    rows: Iterable[dict[str, Any]] = found
    return rows


def _value(row: dict[str, Any], column: str, spec: CorpusSpec) -> Any:
    """row["a"]["b"] for the column a.b; raises SaebenchError if it is missing."""
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, dict) or name not in value:
            known = list(value) if isinstance(value, dict) else []
            raise SaebenchError(f"corpus '{spec.hub}' could not be read: {unknown('column', column, known)}")
        value = value[name]
    return value
