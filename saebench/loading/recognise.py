"""Which format the files at a path are of; and where none knows them, what is wrong with them."""

from os.path import isdir, isfile  # which say no where pathlib's raise
from pathlib import Path
from typing import TYPE_CHECKING

from saebench.format import CheckpointError
from saebench.loading.damage import DamagedError
from saebench.loading.readers import weights_problem
from saebench.registry import registry

if TYPE_CHECKING:
    from saebench.format import Format

_WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")


def recognise(path: Path) -> "Format":
    """The one format of what lies at `path`.

    Raises:
        CheckpointError: none or several; or its files did not arrive whole, or not all of them.
    """
    formats = list(registry().formats.values())
    found = [f for f in formats if _matches(f, path)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(f.name for f in found))
        raise CheckpointError(f"{path}: could be {names}; choose one with --format")
    problems = _problems(path)
    if damaged := [p for p in problems if isinstance(p, DamagedError)]:
        raise damaged[0]
    lacks, has_weights = _lacks(path, formats)
    if lacks and has_weights:
        raise CheckpointError(lacks)
    inside = _inside(path, formats)
    if inside:
        raise CheckpointError(f"{path}: holds no SAE itself, but {inside} does: name that folder")
    if lacks:
        raise CheckpointError(lacks)
    if problems:
        raise problems[0]
    names = ", ".join(sorted(f.name for f in formats))
    raise CheckpointError(
        f"{path}: no format recognises it (known: {names}); check the path, or name the format with --format"
    )


def checkpoints_at(path: Path, format: str | None = None, depth: int = 2) -> list[Path]:
    """The checkpoints that a path stands for: itself, or else those among its children and theirs, sorted by name.

    One whose files are damaged or missing counts, so that its error is said and not kept.

    Args:
        path: a file or a folder.
        format: the name of the only format that counts.
        depth: how far below.

    Raises:
        UsageError: unknown format.
    """
    known = registry()
    return _checkpoints(path, [known.get("formats", format)] if format else list(known.formats.values()), depth)


def _checkpoints(path: Path, formats: "list[Format]", depth: int) -> list[Path]:
    if any(_matches(f, path) for f in formats):
        return [path]
    if not isdir(path):
        return [path] if _is_damaged(path) else []
    children = _children(path)
    damaged = [child for child in children if not isdir(child) and _is_damaged(child)]
    if {child.name for child in damaged} & {name for f in formats for name in getattr(f, "files", ())}:
        return [path]  # an SAE's own weights: what lies below are others, like checkpoints of its training
    folders = (
        [p for child in children if isdir(child) for p in _checkpoints(child, formats, depth - 1)] if depth else []
    )
    files = [child for child in children if depth and not isdir(child) and any(_matches(f, child) for f in formats)]
    if folders or files:  # a file that is damaged hides none of the others
        return sorted([*folders, *files, *damaged])
    lacks, has_weights = _lacks(path, formats)
    # What holds the weights of something else, like a language model, is no SAE of which some are missing.
    others = any(child.suffix in _WEIGHTS for child in children)
    return [path] if damaged or (lacks and (has_weights or not others)) else []


def _is_damaged(file: Path) -> bool:
    return file.suffix in _WEIGHTS and isfile(file) and isinstance(weights_problem(file), DamagedError)


def _children(folder: Path) -> list[Path]:
    """What lies in the folder and is not hidden, sorted by name; nothing where it may not be read."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError:
        return []


def _matches(format: "Format", path: Path) -> bool:
    """`format.matches`, which must never raise: a stranger's that does recognises nothing."""
    try:
        return format.matches(path)
    except Exception:
        return False


def _inside(path: Path, formats: "list[Format]") -> Path | None:
    """The first of the folder's own children that a format recognises: a run's folder was named, not the SAE's."""
    if not isdir(path):
        return None
    for child in _children(path)[:100]:
        if any(_matches(f, child) for f in formats):
            return child
    return None


def _problems(path: Path) -> list[CheckpointError]:
    """Why files of weights at `path` cannot be opened, of each that cannot."""
    files = _children(path) if isdir(path) else [path]
    found = [weights_problem(file) for file in files if file.suffix in _WEIGHTS and isfile(file)]
    return [problem for problem in found if problem is not None]


def _lacks(path: Path, formats: "list[Format]") -> tuple[str, bool]:
    """What to say where only some of the files are there that make a checkpoint; and whether its weights are."""
    folder = path if isdir(path) else path.parent
    there: set[str] = set()
    absent: list[str] = []
    for format in formats:
        files = getattr(format, "files", ())
        here = {name for name in files if isfile(folder / name)}
        if not here or len(here) == len(files) or not (isdir(path) or path.name in here):
            continue
        there |= here
        absent += [f"{name} ({format.name})" for name in files if name not in here]
    if not absent:
        return "", False
    has_weights = any(Path(name).suffix in _WEIGHTS for name in there)
    names = " or ".join(absent)
    return (
        f"{folder}: no format recognises it: it holds {', '.join(sorted(there))}, but not {names}: "
        "download what is missing, or check the path"
    ), has_weights
