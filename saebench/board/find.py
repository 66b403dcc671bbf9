"""Find records by file, or by the name of an SAE in a results folder."""

from collections.abc import Iterable
from pathlib import Path

from saebench.errors import unknown
from saebench.results import Record, RecordError, load_records


def find_records(names: Iterable[str], results: Path, task: str | None = None) -> list[Record]:
    """One record for each name, all on one task: the given task, or the only one that every SAE was measured on.

    Args:
        names: record files, or names of SAEs (name or name-sha8) among the records of `results`.
        results: folder of the records.
        task: name, or name@version.

    Raises:
        UsageError: unknown SAE or task; names the nearest.
        RecordError: no shared measurement, or several; names the record files.
    """
    several: list[list[Record]] = []
    everything: list[Record] | None = None
    for name in names:
        if name.endswith(".json"):
            several.append(load_records([name]))
            continue
        if everything is None:
            everything = load_records([results], skip_damaged=True)
        found = [r for r in everything if name in (r.sae["name"], f"{r.sae['name']}-{r.sae['sha256'][:8]}")]
        if not found:
            known = sorted({str(r.sae["name"]) for r in everything})
            raise unknown("SAE", name, known)
        several.append(found)
    if task:
        tasks = {label for found in several for r in found for label in (str(r.task["name"]), r.task_label)}
        if task not in tasks:
            raise unknown("task", task, tasks)
        several = [[r for r in found if task in (r.task["name"], r.task_label)] for found in several]
    groups = [{(r.group, r.partial): r for r in found} for found in several]
    if any(len(group) < len(found) for group, found in zip(groups, several, strict=True)):
        alike = next(found for group, found in zip(groups, several, strict=True) if len(group) < len(found))
        paths = ", ".join(str(r.path) for r in alike)
        raise RecordError(
            f"'{alike[0].sae['name']}' is the name of several SAEs or runs: name one of the files {paths}"
        )
    shared = set(groups[0]).intersection(*groups[1:]) if groups else set()
    if len(shared) == 1:
        [one] = shared
        return [group[one] for group in groups]
    if len(several) > 0 and all(len(found) == 1 for found in several):
        return [found[0] for found in several]  # compare names the parts in which they differ
    labels = sorted({r.path.as_posix() if r.path else "?" for found in several for r in found})
    problem = "share several measurements" if shared else "share no measurement"
    raise RecordError(f"these SAEs {problem}: name the record files, or a --task; found {', '.join(labels)}")
