"""The SAEs that `--sae` names: a checkpoint, a folder that holds several (here or on the hub), or a pattern of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path, PurePath

from saebench.errors import SaebenchError, UsageError
from saebench.loading.recognise import checkpoints_at
from saebench.loading.remote import hub_saes, is_on_hub, is_remote, size_text
from saebench.sae import SAE

Source = str | Path | SAE


def spread(sources: Sequence[Source], format: str | None, say: Callable[[str], None]) -> list[Source]:
    """The sources, each that stands for several SAEs replaced by these, sorted by name; none twice for that.

    A folder that is no SAE itself, here or on the hub, stands for those in it or in its own folders; a pattern (`runs/*`)
    stands for those at the paths that match. An unreadable or missing source stays, and fails when it is loaded.

    Args:
        sources: as given to `--sae`.
        format: the format's name, where it was given.
        say: called with one line for each source that stands for others.

    Raises:
        UsageError: a source is empty.
    """
    if any(isinstance(source, str) and not source.strip() for source in sources):
        raise UsageError("--sae is empty: name a checkpoint, a folder of them, or a pattern")
    each = [None if isinstance(source, SAE) else _stands_for(source, format) for source in sources]
    out: list[Source] = []
    seen = {_place(s) for s, found in zip(sources, each, strict=True) if found is None and not isinstance(s, SAE)}
    for source, found in zip(sources, each, strict=True):
        if found is None:
            out.append(source)
            continue
        new = []
        for path in found.saes:
            place = _place(path)
            if not {place, *([place.parent] if isinstance(path, Path) and not path.is_dir() else [])} & seen:
                new.append(path)
                seen.add(place)
        say(f"{source}: {len(new)} SAE{'' if len(new) == 1 else 's'}{found.aside}")
        out += new
    return out


@dataclass(frozen=True)
class _Found:
    """The SAEs that a source stands for, and the rest of the line that reports them."""

    saes: Sequence[str | Path]
    aside: str = ""


def _place(source: str | Path) -> PurePath:
    return PurePath(str(source)) if is_remote(str(source)) else Path(source).resolve()


def _stands_for(source: str | Path, format: str | None) -> _Found | None:
    """The SAEs that a source stands for; None where it is one, or none are found."""
    if is_remote(str(source)):
        return _on_hub(str(source)) if is_on_hub(str(source)) else None
    path = Path(source)
    if path.exists():
        found = checkpoints_at(path, format)
        return None if not found or found == [path] else _Found(found)
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
