"""The SAEs that `--sae` names: a checkpoint, a folder that holds several, or a pattern of them."""

from collections.abc import Callable, Sequence
from glob import glob
from pathlib import Path

from saebench.errors import UsageError
from saebench.loading.recognise import checkpoints_at
from saebench.loading.remote import is_remote
from saebench.sae import SAE

Source = str | Path | SAE


def spread(sources: Sequence[Source], format: str | None, say: Callable[[str], None]) -> list[Source]:
    """The sources, each that stands for several SAEs replaced by these, sorted by name; none twice for that.

    A folder that is no SAE itself stands for those in it or in its own folders; a pattern (`runs/*`) for those at the paths
    that match. What cannot be read, or not found, stays for whoever loads it to say so.

    Args:
        sources: as they were asked for.
        format: the format's name, where it was given.
        say: hears one line for each source that stands for others.

    Raises:
        UsageError: a source is empty.
    """
    if any(isinstance(source, str) and not source.strip() for source in sources):
        raise UsageError("--sae is empty: name a checkpoint, a folder of them, or a pattern")
    each = [
        None if isinstance(source, SAE) or is_remote(str(source)) else _stands_for(Path(source), format)
        for source in sources
    ]
    out: list[Source] = []
    seen = {
        Path(s).resolve() for s, found in zip(sources, each, strict=True) if found is None and not isinstance(s, SAE)
    }
    for source, found in zip(sources, each, strict=True):
        if found is None:
            out.append(source)
            continue
        paths, empty = found
        new = []
        for path in paths:
            if not {path.resolve(), *([] if path.is_dir() else [path.resolve().parent])} & seen:
                new.append(path)
                seen.add(path.resolve())
        aside = f"; no SAE: {', '.join(empty[:5])}{' …' if len(empty) > 5 else ''}" if empty else ""
        say(f"{source}: {len(new)} SAE{'' if len(new) == 1 else 's'}{aside}")
        out += new
    return out


def _stands_for(path: Path, format: str | None) -> tuple[list[Path], list[str]] | None:
    """The SAEs and the names of what is none; no answer where the path is one, or there is none to be found."""
    if path.exists():
        found = checkpoints_at(path, format)
        return None if not found or found == [path] else (found, [])
    matches = [Path(p) for p in sorted(glob(str(path), recursive=True))]
    each = {match: checkpoints_at(match, format) for match in matches}
    saes = [sae for found in each.values() for sae in found]
    return (saes, [match.name for match, found in each.items() if not found]) if saes else None
