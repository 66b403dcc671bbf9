"""The presentation of a board's metrics, from its records, installed plugins or defaults, in that order."""

from collections.abc import Iterable, Mapping, Sequence

from saebench.errors import SaebenchError, one_line
from saebench.presentation import Presentation
from saebench.registry import installed
from saebench.report import Column
from saebench.results import Record

Presentations = Mapping[tuple[str, int], Presentation]


def presentations(records: Iterable[Record], notes: list[str]) -> Presentations:
    """The presentation of each metric and version that the records hold.

    The first record that stores a presentation determines it. Without a stored one the installed metric's is used, without
    captions if its version differs.

    Args:
        notes: receives a line for each invalid stored presentation.
    """
    found: dict[tuple[str, int], Presentation] = {}
    lacking: dict[tuple[str, int], None] = {}
    for record in records:
        for metric, entry in record.metrics.items():
            key = metric, entry["version"]
            if key in found:
                continue
            if "presentation" not in entry:
                lacking[key] = None
                continue
            try:
                found[key] = Presentation.read(entry["presentation"])
            except SaebenchError as error:
                notes.append(f"{record.sae['name']}: {metric}: {one_line(error)}; the installed metric's is used")
                lacking[key] = None
    return found | {key: _installed(*key) for key in lacking if key not in found}


def _installed(metric: str, version: int) -> Presentation:
    known = installed().metrics.get(metric)
    if known is None:
        return Presentation()
    declared = Presentation.of(known)
    if known.version == version:
        return declared
    return Presentation(declared.headlines, {}, declared.figures, declared.sparsity, declared.smallest)


def headlines(columns: Sequence[Column], shown: Presentations) -> list[Column]:
    """The default columns of a table: each metric's headlines; for a metric without any, its scores with a direction.

    Points of curves are excluded.
    """
    scalars = [c for c in columns if c.at is None]
    found = []
    for metric, version in dict.fromkeys((c.metric, c.version) for c in scalars):
        keys = shown.get((metric, version), Presentation()).headlines
        own = [c for c in scalars if (c.metric, c.version) == (metric, version)]
        first = sorted((c for c in own if c.key in keys), key=lambda c: keys.index(c.key))
        found += first or [c for c in own if c.direction is not None]
    return found
