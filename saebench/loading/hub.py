"""Data sets of the Hugging Face hub at pinned commits: documents, and tables of labelled texts. A local folder will do."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from saebench.errors import SaebenchError, one_line, unknown
from saebench.task import CorpusSpec, LabelSpec


def hub_documents(spec: CorpusSpec) -> Iterator[tuple[str, str]]:
    """(name, text) of the first documents of a data set.

    Raises:
        SaebenchError: it cannot be read.
    """
    for i, row in enumerate(_rows(spec, spec.subset)):
        yield f"{spec.hub}/{spec.split}/{i}", str(_value(row, spec.text_column, spec))


def hub_table(spec: CorpusSpec, labels: LabelSpec) -> tuple[pd.DataFrame, LabelSpec]:
    """The first documents of a labelled data set (of each of its subsets), as a table, and what its columns are called.

    Raises:
        SaebenchError: it cannot be read, or has no such column.
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
    """The pinned commit, written out: the hub takes whole hashes only.

    Raises:
        SaebenchError: no commit, or several, begin like that.
    """
    if spec.revision is None or len(spec.revision) == 40:
        return spec.revision
    from huggingface_hub import HfApi

    commits = [c.commit_id for c in HfApi().list_repo_commits(str(spec.hub), repo_type="dataset")]
    found = [commit for commit in commits if commit.startswith(spec.revision)]
    if len(found) != 1:
        raise SaebenchError(f"data set '{spec.hub}' has {len(found)} commits that begin with {spec.revision}, not one")
    return found[0]


def _rows(spec: CorpusSpec, subset: str | None) -> Iterator[dict[str, Any]]:
    """The first rows, streamed."""
    import datasets

    try:
        if Path(str(spec.hub)).is_dir():
            commit, base = None, str(spec.hub)
        else:
            commit = full_commit(spec)
            base = f"hf://datasets/{spec.hub}@{commit}"
        if spec.files:  # `datasets` runs no loading script any more: a data set that has one is read past it
            found = datasets.load_dataset("parquet", data_files=f"{base}/{spec.files}", split="train", streaming=True)
        else:
            found = datasets.load_dataset(spec.hub, subset, split=spec.split, revision=commit, streaming=True)
        yield from islice(found, spec.documents)
    except SaebenchError:
        raise
    except Exception as error:  # the hub's errors come from half a dozen libraries
        raise SaebenchError(
            f"corpus '{spec.hub}' could not be read ({type(error).__name__}: {one_line(error, 160)}): "
            "check the network and the names in the task file"
        ) from error


def _value(row: dict[str, Any], column: str, spec: CorpusSpec) -> Any:
    """row["a"]["b"] for the column a.b; raises SaebenchError where there is none."""
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, dict) or name not in value:
            known = list(value) if isinstance(value, dict) else []
            raise SaebenchError(f"corpus '{spec.hub}' could not be read: {unknown('column', column, known)}")
        value = value[name]
    return value
