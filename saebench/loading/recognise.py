"""The format of the files at a path, or the reason why no format recognises them."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from os.path import basename, isdir, isfile  # which return False where pathlib's raise
from pathlib import Path
from typing import TYPE_CHECKING

from saebench.errors import UsageError, one_line
from saebench.format import CheckpointError
from saebench.loading.damage import DamagedError
from saebench.loading.readers import weights_problem
from saebench.registry import registry

if TYPE_CHECKING:
    from saebench.format import Format

_WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")
# A larger folder is no folder of SAEs, and opening each of its entries would take minutes.
_MOST_CHILDREN = 5000


@dataclass(frozen=True)
class Checkpoint:
    """A path with its recognised format, so that loading need not recognise it again.

    Attributes:
        path: the path as given or found.
        format: None if no format, or several, recognise the path; loading it then raises the reason.
    """

    path: str | Path
    format: "Format | None" = None

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)


def recognise(path: Path) -> "Format":
    """The one format of the files at `path`.

    Raises:
        CheckpointError: no format or several match; or files are unreadable, damaged or missing.
    """
    formats = list(registry().formats.values())
    found = _matching(path, formats)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(f.name for f in found))
        raise CheckpointError(f"{path}: could be {names}; choose one with --format")
    if isdir(path):
        _require_readable(path)
    problems = _problems(path)
    if damaged := [p for p in problems if isinstance(p, DamagedError)]:
        raise damaged[0]
    lacks, has_weights = _lacks(path, formats)
    if lacks and has_weights:
        raise CheckpointError(lacks)
    inside = _inside(path, formats)
    if inside:
        raise CheckpointError(f"{path}: no SAE here, but one in {inside}: name that folder")
    if lacks:
        raise CheckpointError(lacks)
    if problems:
        raise problems[0]
    names = ", ".join(sorted(f.name for f in formats))
    raise CheckpointError(
        f"{path}: no format recognises this path (known: {names}); check the path, or name the format with --format"
    )


def checkpoints_at(path: Path, format: str | None = None, depth: int = 2) -> list[Checkpoint]:
    """The checkpoints at a path: the path itself, else those below it, sorted by name.

    A checkpoint with damaged, unreadable or missing files counts, so that loading it raises the reason.

    Args:
        path: a file or a folder.
        format: name of the only format that counts; None for any.
        depth: levels of folders to search below `path`.

    Raises:
        UsageError: unknown format, or a folder with too many entries.
    """
    known = registry()
    return _checkpoints(path, [known.get("formats", format)] if format else list(known.formats.values()), depth)


def _checkpoints(path: Path, formats: "list[Format]", depth: int) -> list[Checkpoint]:
    found = _matching(path, formats)
    if found:
        return [Checkpoint(path, found[0] if len(found) == 1 else None)]
    if not isdir(path):
        return [Checkpoint(path)] if _is_damaged(path) else []
    children = _children(path)
    if len(children) > _MOST_CHILDREN:
        raise UsageError(
            f"{path} holds {len(children):,} files and folders, more than {_MOST_CHILDREN:,}: name its SAEs one by one or with a "
            "pattern"
        )
    damaged = [child for child in children if not isdir(child) and _is_damaged(child)]
    if {child.name for child in damaged} & {name for f in formats for name in getattr(f, "files", ())}:
        return [
            Checkpoint(path)
        ]  # this folder is an SAE; folders below it are others, like checkpoints of its training
    below = [c for child in children if isdir(child) for c in _checkpoints(child, formats, depth - 1)] if depth else []
    for child in children if depth else []:
        if not isdir(child) and (own := _matching_child(child, formats)):
            below.append(Checkpoint(child, own[0] if len(own) == 1 else None))
    if below:  # a damaged file must not hide the other checkpoints
        return sorted([*below, *map(Checkpoint, damaged)], key=lambda c: Path(c))
    lacks, has_weights = _lacks(path, formats)
    # A folder with other weights, like a language model's, is no SAE with missing files.
    others = any(child.suffix in _WEIGHTS for child in children)
    return [Checkpoint(path)] if damaged or (lacks and (has_weights or not others)) else []


def _is_damaged(file: Path) -> bool:
    return file.suffix in _WEIGHTS and isfile(file) and isinstance(weights_problem(file), DamagedError)


def _children(folder: Path) -> list[Path]:
    """The folder's visible entries, sorted by name; none if the folder may not be read."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError:
        return []


def _require_readable(folder: Path) -> None:
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {one_line(error)}") from error


def _matching(path: Path, formats: "list[Format]") -> "list[Format]":
    """The formats that recognise the path."""
    return [f for f in formats if _matches(f, path)]


def _matching_child(path: Path, formats: "list[Format]") -> "list[Format]":
    """`_matching` for an entry of a folder; a file without a weights suffix is not opened."""
    named = isdir(path) or path.suffix in _WEIGHTS or any(_names(f, path.name) for f in formats)
    return _matching(path, formats) if named else []


def _names(format: "Format", name: str) -> bool:
    layouts, files = getattr(format, "layouts", ()), getattr(format, "files", ())
    return name in files or any(fnmatchcase(name, basename(layout.weights)) for layout in layouts)


def _matches(format: "Format", path: Path) -> bool:
    """`format.matches`, or False if it raises: a faulty plugin recognises nothing."""
    try:
        return format.matches(path)
    except Exception:
        return False


def _inside(path: Path, formats: "list[Format]") -> Path | None:
    """The folder's first child that a format recognises: the user may have named the folder of a run."""
    if not isdir(path):
        return None
    for child in _children(path)[:100]:
        if _matching_child(child, formats):
            return child
    return None


def _problems(path: Path) -> list[CheckpointError]:
    """The errors of the weights files at `path` that cannot be opened."""
    files = _children(path) if isdir(path) else [path]
    found = [weights_problem(file) for file in files if file.suffix in _WEIGHTS and isfile(file)]
    return [problem for problem in found if problem is not None]


def _lacks(path: Path, formats: "list[Format]") -> tuple[str, bool]:
    """The error for an incomplete checkpoint, and whether its weights are among the present files."""
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
        f"{folder}: no format recognises this folder, which holds {', '.join(sorted(there))}, but not {names}: "
        "download what is missing, or check the path"
    ), has_weights
