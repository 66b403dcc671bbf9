"""Expand `--sae`: a checkpoint, a folder of several (on disk or on the hub), or a pattern."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from glob import glob
from os.path import exists  # which returns False where pathlib's raises
from pathlib import Path, PurePath

from saebench.errors import SaebenchError, UsageError
from saebench.loading.recognise import Checkpoint, checkpoints_at
from saebench.loading.remote import hub_saes, is_on_hub, is_remote, size_text
from saebench.sae import SAE

Source = str | Path | Checkpoint | SAE


def expand(sources: Sequence[Source], format: str | None, notify: Callable[[str], None]) -> list[Source]:
    """Replace each folder and pattern by its SAEs, sorted by name, without those that are listed already.

    A folder that is no SAE itself, on disk or on the hub, is replaced by the SAEs in it or in its folders; a pattern
    (`runs/*`) by the SAEs at the matching paths. An unreadable or missing source stays, and fails when it is loaded.

    Args:
        sources: as passed to `--sae`.
        format: name of the only format to look for; None for all.
        notify: receives one line for each source that is replaced.

    Raises:
        UsageError: a source is empty.
    """
    if any(isinstance(source, str) and not source.strip() for source in sources):
        raise UsageError("--sae is empty: name a checkpoint, a folder of them, or a pattern")
    each = [None if isinstance(source, SAE) else _stands_for(source, format) for source in sources]
    out: list[Source] = []
    alone = [
        s for s, found in zip(sources, each, strict=True) if not isinstance(s, SAE) and not isinstance(found, _Found)
    ]
    seen = {_place(s) for s in alone if not isinstance(s, SAE)}
    for source, found in zip(sources, each, strict=True):
        if found is None:
            out.append(source)
            continue
        if isinstance(found, Checkpoint):
            out.append(found)
            continue
        new: list[Source] = []
        for path in found.saes:
            place = _place(path)
            if (
                not {place, *([place.parent] if isinstance(path, Checkpoint) and not Path(path).is_dir() else [])}
                & seen
            ):
                new.append(path)
                seen.add(place)
        notify(f"{source}: {len(new)} SAE{'' if len(new) == 1 else 's'}{found.aside}")
        out += new
    return out


@dataclass(frozen=True)
class _Found:
    """The SAEs that a source stands for, and the rest of the line that reports them."""

    saes: Sequence[str | Checkpoint]
    aside: str = ""


def _place(source: str | Path | Checkpoint) -> PurePath:
    return PurePath(str(source)) if is_remote(str(source)) else Path(source).resolve()


def _stands_for(source: str | Path | Checkpoint, format: str | None) -> _Found | Checkpoint | None:
    """The SAEs that a source stands for, or the one that it is; None where none are found, or it lies elsewhere."""
    if isinstance(source, Checkpoint):
        return source
    if is_remote(str(source)):
        return _on_hub(str(source)) if is_on_hub(str(source)) else None
    path = Path(source)
    if exists(path):
        found = checkpoints_at(path, format)
        if [c.path for c in found] == [path]:
            return replace(found[0], path=source)
        return _Found(found) if found else None
    matches = [Path(p) for p in sorted(glob(str(path), recursive=True))]
    each = {match: checkpoints_at(match, format) for match in matches}
    saes = [sae for found in each.values() for sae in found]
    empty = [match.name for match, found in each.items() if not found]
    aside = f"; no SAE: {_shortened(empty)}" if empty else ""
    return _Found(saes, aside) if saes else None


def _on_hub(spec: str) -> _Found | None:
    try:
        saes = hub_saes(spec)
    except SaebenchError:
        return None  # raised again where it is loaded, as this SAE's own failure
    if [name for name, _ in saes] == [spec]:
        return None
    sizes = [f"{name.rpartition('/')[2]} {size_text(nbytes)}" for name, nbytes in saes]
    total = size_text(sum(nbytes for _, nbytes in saes))
    return _Found([name for name, _ in saes], f", {total} ({_shortened(sizes)})")


def _shortened(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
