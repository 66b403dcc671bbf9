"""A table of labelled texts -> documents with a label and a side of the split; no group is ever on both sides.

Order and split depend on what the rows say and on nothing else: rows are put in the order of a hash of their text, groups in
the order of a hash of their name, so that another order of the file gives the same split and the first n documents
(`--limit n`) are a random sample.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from saebench import reading
from saebench.errors import SaebenchError, UsageError, one_line, unknown
from saebench.task import LabelSpec


@dataclass(frozen=True)
class Labels:
    """What is known of N labelled documents.

    Attributes:
        classes: names of the labels, in order.
        label: [N] int64, indices into `classes`
        test: [N] bool, which side of the split: probes are fitted on the others only
        group: [N] int64, documents of one group are on the same side
    """

    classes: tuple[str, ...]
    label: np.ndarray
    test: np.ndarray
    group: np.ndarray

    def take(self, rows: np.ndarray) -> "Labels":
        """The labels of these documents."""
        return replace(self, label=self.label[rows], test=self.test[rows], group=self.group[rows])

    def digest(self) -> bytes:
        """Hash of the classes, labels, sides and groups."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for array in (self.label, self.test, self.group):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.digest()

    def about(self) -> dict[str, object]:
        """Class balance and sizes, for the record."""
        names, test, group = self.classes, self.test, self.group
        return {
            "classes": {
                name: {"train": int((self.label[~test] == c).sum()), "test": int((self.label[test] == c).sum())}
                for c, name in enumerate(names)
            },
            "groups": {"train": len(set(group[~test].tolist())), "test": len(set(group[test].tolist()))},
        }


@dataclass(frozen=True)
class LabelledTexts:
    """Clean rows of a labelled table.

    Attributes:
        texts: [N] the documents, in the order of their hashes.
        groups: [N] names of their groups.
        labels: their labels and sides.
        dropped: how many rows were left out, by reason.
    """

    texts: list[str]
    groups: list[str]
    labels: Labels
    dropped: dict[str, int]


def read_table(path: Path) -> pd.DataFrame:
    """A .parquet, .jsonl or .csv file.

    Raises:
        UsageError: no regular file, not such a table, not UTF-8, or too large once unpacked.
    """
    try:
        return reading.read_table(path)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not readable as a table: {one_line(error)}") from error


def labelled_texts(frame: pd.DataFrame, spec: LabelSpec, where: str) -> LabelledTexts:
    """Clean and split a table.

    Rows without a text or a label are left out and counted; so are repeats of a text, every copy of a text that stands under
    several labels, labels that are not among `spec.classes`, and what `spec.per_class` does not take.

    Args:
        where: what the table is called in errors.

    Raises:
        UsageError: a column is missing, there are fewer than two classes, or a class has but one group.
    """
    for column in filter(None, (spec.text, spec.label, spec.group, spec.balance)):
        if column not in frame.columns:
            raise UsageError(f"{where}: {unknown('column', column, [str(c) for c in frame.columns])}")
    text = frame[spec.text].astype("string").str.slice(spec.skip).str.strip()
    group = frame[spec.group] if spec.group else text.map(_hash, na_action="ignore")
    rows = pd.DataFrame({"text": text, "label": frame[spec.label], "group": group.astype("string")})
    rows["balance"] = frame[spec.balance].astype("string") if spec.balance else ""
    dropped: dict[str, int] = {}
    for reason, bad in (
        ("without text", rows.text.isna() | (rows.text == "")),
        ("without label", rows.label.isna()),
        ("without group", rows.group.isna()),
    ):
        dropped[reason] = int(bad.reindex(rows.index).sum())
        rows = rows[~bad.reindex(rows.index)]
    rows = rows.assign(label=rows.label.map(_name))
    if spec.classes is not None:
        rows = rows.assign(label=rows.label.map(lambda name: _class(name, spec.classes or {})))
        dropped["of other labels"] = int(rows.label.isna().sum())
        rows = rows[rows.label.notna()]
    several = rows.groupby("text").label.transform("nunique") > 1
    dropped["under several labels"] = int(several.sum())
    rows = rows[~several]
    # In an order of their own before repeats go, so that which copy stays does not depend on the file's order.
    rows = rows.assign(order=rows.text.map(_hash)).sort_values(["order", "group"], kind="stable")
    repeated = rows.duplicated("text")
    dropped["repeated"] = int(repeated.sum())
    rows = rows[~repeated]
    if spec.per_class is not None:
        taken = _sample(rows, spec.per_class, where)
        dropped["beyond per_class"] = int((~taken).sum())
        rows = rows[taken]
    classes = tuple(sorted(set(rows.label)))
    if len(classes) < 2:
        raise UsageError(f"{where}: column '{spec.label}' has {len(classes)} classes, two or more are needed")
    label = np.array([classes.index(name) for name in rows.label], dtype=np.int64)
    names, codes = np.unique(rows.group.to_numpy(dtype=str), return_inverse=True)
    test = split_by_group(label, codes, [str(n) for n in names], spec.test)
    for c, name in enumerate(classes):
        if test[label == c].all() or not test[label == c].any():
            raise UsageError(
                f"{where}: every document of label '{name}' is in one group, so it cannot be split by group"
            )
    return LabelledTexts([str(t) for t in rows.text], list(rows.group), Labels(classes, label, test, codes), dropped)


def split_by_group(label: np.ndarray, group: np.ndarray, names: list[str], share: float) -> np.ndarray:
    """[N] bool, which documents are held out: whole groups, about a `share` of each label's documents.

    A group counts for the label that most of its documents have. Groups are taken in the order of a hash of their name, each if
    it brings the share nearer; every label with two groups or more keeps one on either side.

    Args:
        label, group: [N] int64.
        names: of the groups.
    """
    counts = np.zeros((len(names), int(label.max()) + 1), dtype=np.int64)
    np.add.at(counts, (group, label), 1)
    main, sizes = counts.argmax(1), counts.sum(1)
    order = sorted(range(len(names)), key=lambda g: _hash(names[g]))
    held = np.zeros(len(names), dtype=bool)
    for c in range(counts.shape[1]):
        own = [g for g in order if main[g] == c]
        wanted, taken = share * sizes[own].sum(), 0.0
        for i, g in enumerate(own):
            last_chance = taken == 0 and i == len(own) - 2
            if last_chance or (taken + sizes[g] / 2 <= wanted and held[own].sum() < len(own) - 1):
                held[g] = True
                taken += sizes[g]
    out: np.ndarray = held[group]
    return out


def require_sides(labels: Labels) -> None:
    """Raise SaebenchError unless each side has documents of two classes, and no group is on both."""
    both = set(labels.group[labels.test].tolist()) & set(labels.group[~labels.test].tolist())
    if both:
        raise SaebenchError(f"{len(both)} groups are on both sides of the split: a bug in saebench, please report it")
    for side, rows in (("training", ~labels.test), ("test", labels.test)):
        if len(set(labels.label[rows].tolist())) < 2:
            raise SaebenchError(
                f"the {side} side has documents of fewer than two classes: raise --limit or add documents"
            )


def _sample(rows: pd.DataFrame, per_class: int, where: str) -> pd.Series:
    """Which rows are taken: the first of each label, in their order, as many of each value of `balance`.

    A value that has fewer than its share leaves the others no more: then there are fewer documents, and still as many of each.
    """
    found = rows.groupby(["label", "balance"]).size().unstack(fill_value=0)
    fewest = np.minimum(found.min(axis=1), per_class // len(found.columns)) if len(found.columns) > 1 else per_class
    share = pd.Series(fewest, index=found.index)
    if not share.all():
        raise UsageError(f"{where}: label '{share.idxmin()}' has none of one value of the column it is balanced by")
    return rows.groupby(["label", "balance"]).cumcount() < rows.label.map(share)


def _class(label: str, classes: Mapping[str, str]) -> str | None:
    """The name of a label; of a file's, by the end of its name; None for what is not asked for."""
    if label in classes:
        return classes[label]
    return next((name for end, name in classes.items() if end.startswith(".") and label.endswith(end)), None)


def _name(label: object) -> str:
    """A label as text; 1.0 and 1 are the same class (pandas makes floats of a column with a gap)."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
