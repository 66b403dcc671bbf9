"""Labelled documents from a table, split into training and test side; no group is on both sides.

Order and split depend on the content of the rows only: rows are sorted by a hash of their text, groups by a hash of their
name. A reordered file therefore gives the same split, and the first n documents (`--limit n`) are a random sample.
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
    """Classes, labels, sides and groups of N documents.

    Attributes:
        classes: names of the labels, in order.
        label: [N] int64, indices into `classes`
        test: [N] bool, the held-out side; probes are fitted on the other documents only
        group: [N] int64, documents of one group are on one side
    """

    classes: tuple[str, ...]
    label: np.ndarray
    test: np.ndarray
    group: np.ndarray

    def take(self, rows: np.ndarray) -> "Labels":
        """The labels of the given documents."""
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
        dropped: number of rows left out, by reason.
    """

    texts: list[str]
    groups: list[str]
    labels: Labels
    dropped: dict[str, int]


def read_table(path: Path) -> pd.DataFrame:
    """Read a .parquet, .jsonl or .csv file.

    Raises:
        UsageError: no regular file, no such table, not UTF-8, or too large unpacked.
    """
    try:
        return reading.read_table(path)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not readable as a table: {one_line(error)}") from error


def labelled_texts(frame: pd.DataFrame, spec: LabelSpec, where: str) -> LabelledTexts:
    """Clean and split a table.

    Left out and counted: rows without a text or a label, repeated texts, every copy of a text with several labels, labels
    that are not among `spec.classes`, and documents beyond `spec.per_class`.

    Args:
        where: name of the table in errors.

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
    # Sort before dropping repeats, so that the copy that stays does not depend on the order of the file.
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
    """[N] bool, the held-out documents: whole groups, about a `share` of each label's documents.

    A group counts for its most frequent label. Groups are considered in the order of a hash of their name and held out if
    that brings the share closer; every label with two groups or more has one on either side.

    Args:
        label, group: [N] int64.
        names: names of the groups.
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
    """Mask of the first rows of each label, with equal numbers of each value of `balance`.

    The rarest value limits the others: there are fewer documents then, still in equal numbers.
    """
    found = rows.groupby(["label", "balance"]).size().unstack(fill_value=0)
    fewest = np.minimum(found.min(axis=1), per_class // len(found.columns)) if len(found.columns) > 1 else per_class
    share = pd.Series(fewest, index=found.index)
    if not share.all():
        raise UsageError(f"{where}: label '{share.idxmin()}' has no document with one value of the balance column")
    return rows.groupby(["label", "balance"]).cumcount() < rows.label.map(share)


def _class(label: str, classes: Mapping[str, str]) -> str | None:
    """The class of a label, exact or by the suffix of a file name; None if no class matches."""
    if label in classes:
        return classes[label]
    return next((name for end, name in classes.items() if end.startswith(".") and label.endswith(end)), None)


def _name(label: object) -> str:
    """A label as text; 1.0 and 1 are one class, since pandas reads an integer column with a gap as floats."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
