"""Labels of a file of activations: a table with one row per item, in the items' order."""

from pathlib import Path

import numpy as np

from saebench.errors import UsageError, unknown
from saebench.labels import Labels, read_table, require_sides, split_by_group
from saebench.task import ActivationSpec

# The share of groups on the test side.
_TEST = 0.3


def read_labels(path: Path, spec: ActivationSpec, items: int) -> Labels:
    """Labels, groups and sides of a split by groups; without a group column each item is a group of its own.

    Raises:
        UsageError: a missing column, another number of rows, one class only, or a class on one side only.
    """
    table = read_table(path)
    for column in (spec.label, *([spec.group] if spec.group else [])):
        if column not in table:
            raise unknown(f"column of {path.name}", column, [str(name) for name in table.columns])
    if len(table) != items:
        raise UsageError(f"--labels {path}: {len(table)} rows for {items} items: give one row for each, in their order")
    if bool(table[spec.label].isna().any()):
        raise UsageError(
            f"--labels {path}: column {spec.label} has empty cells: label every item, or leave it out of both files"
        )
    names = table[spec.label].astype(str)
    classes = tuple(sorted(names.unique()))
    if len(classes) < 2:
        raise UsageError(f"--labels {path}: column {spec.label} holds one class only, {classes[0]}")
    label = np.searchsorted(np.array(classes), names.to_numpy()).astype(np.int64)
    groups = (table[spec.group] if spec.group else table.index.to_series()).astype(str)
    group_names = sorted(groups.unique())
    group = np.searchsorted(np.array(group_names), groups.to_numpy()).astype(np.int64)
    labels = Labels(classes, label, split_by_group(label, group, group_names, _TEST), group)
    require_sides(labels)
    return labels
