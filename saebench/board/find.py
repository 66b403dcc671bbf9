"""Records by name: a file, or an SAE among the records of a folder."""

from collections.abc import Iterable
from pathlib import Path

from saebench.errors import unknown
from saebench.results import Record, RecordError, load_records


def find_records(names: Iterable[str], results: Path, task: str | None = None) -> list[Record]:
    """One record for each name: a record file, or an SAE's name (or name-sha8) among the records of a folder.

    All of them on one task: the one named, or the only one that every SAE was measured on.

    Raises:
        UsageError: none of them is of that task; names those there are.
        RecordError: no such record, or several; names them.
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
        return [found[0] for found in several]  # compare says in what they differ
    labels = sorted({r.path.as_posix() if r.path else "?" for found in several for r in found})
    problem = "share several measurements" if shared else "share no measurement"
    raise RecordError(f"these SAEs {problem}: name the record files, or a --task; found {', '.join(labels)}")
