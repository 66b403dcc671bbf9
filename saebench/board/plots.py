"""The pictures of a board: scores over the sparsity axis with a Pareto front per architecture, and curves."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saebench.board.charts import Kind, Picture, curve_spec, scatter_spec
from saebench.presentation import Figure, Reference
from saebench.report import Board, Cell, Column, Row
from saebench.results import slug, write_atomically
from saebench.text import clean

# Untrained baselines: floors for the trained SAEs.
FLOORS = ("random", "pca")
_KINDS: tuple[Kind, ...] = ("png", "svg", "pdf")
Datum = dict[str, Any]


def plots(
    board: Board, architectures: Sequence[str] = (), size: tuple[int, int] = (520, 340), legend: bool = True
) -> dict[str, Picture]:
    """Every picture that the board has numbers for, by name.

    pareto-KEY (control-KEY where it has references) for each score that tables show and its metric draws over the sparsity axis:
    those declared, and each other score with a direction and an interval. curve-KEY for each declared curve.

    Args:
        architectures: every name in the order of their colours; empty: the board's.
        size: of each plot, without axes and legend.
        legend: beside each plot.
    """
    names = architectures or architectures_of([board])
    points = {c: figure for c in board.shown if (figure := _over_sparsity(board, c)) and _points(board, c)}
    found = {
        f"{'control' if figure.references else 'pareto'}-{_stem(column, list(points))}": scatter(
            board, column, figure, names, size, legend
        )
        for column, figure in points.items()
    }
    curves = _curves(board)
    for column, figure in curves.items():
        values, (x, y) = curve_values(board, column, figure), (figure.x or "at", figure.y or label(column))
        found[f"curve-{_stem(column, list(curves))}"] = Picture(
            curve_spec(values, x, y, names, size=size, legend=legend)
        )
    return found


def scatter(
    board: Board, column: Column, declared: Figure | None = None, architectures: Sequence[str] = (),
    size: tuple[int, int] = (520, 340), legend: bool = True,
) -> Picture:  # fmt: skip
    """A score over the sparsity axis; with references of each SAE's own, hollow points take the place of fronts."""
    declared = declared or Figure(column.key)
    own = any(not r.shared for r in declared.references)
    spec = scatter_spec(
        scatter_values(board, column, declared), sparsity_label(board), declared.y or label(column),
        architectures or architectures_of([board]), y_sign=-1 if column.direction == "lower" else 1, front=not own, size=size,
        legend=legend,
    )  # fmt: skip
    return Picture(spec)


def write_plots(boards: Sequence[Board], folder: Path) -> list[Path]:
    """Every picture of every board as PNG, SVG and PDF.

    Raises:
        SaebenchError: the folder cannot be written.
    """
    written = []
    for number, board in enumerate(boards):
        stem = f"{number}-{slug(board.model)}-{slug(board.task)}-" if len(boards) > 1 else ""
        for name, picture in plots(board).items():
            for kind in _KINDS:
                path = folder / f"{stem}{slug(name)}.{kind}"
                write_atomically(path, picture.draw(kind))
                written.append(path)
    return written


# --- which pictures --------------------------------------------------------------------------------------------------


def _over_sparsity(board: Board, column: Column) -> Figure | None:
    """The declared figure of a score over the sparsity axis; the default for a score that has a direction and an interval."""
    if column.at is not None or (board.sparsity and column.key == board.sparsity.key):
        return None
    for figure in board.presentation(column).figures:
        if (figure.key, figure.against) == (column.key, "sparsity"):
            return figure
    interval = any(row.cells[column].low is not None for row in board.rows)
    return Figure(column.key) if column.direction and interval else None


def _curves(board: Board) -> dict[Column, Figure]:
    """The declared figures that the board has a point of, by their score as a column without a place."""
    found = {}
    for column in board.columns:
        for figure in board.presentation(column).figures:
            if (figure.key, figure.against) == (column.key, "at") and column.at is not None:
                found[replace(column, at=None)] = figure
    return found


def _stem(column: Column, among: Sequence[Column]) -> str:
    """A picture's name: the key, with metric and version where another has the same."""
    same = [c for c in among if c.key == column.key]
    return column.key if len(same) == 1 else f"{column.metric}-{column.key}-v{column.version}"


def _places(board: Board, column: Column, key: str) -> list[Column]:
    """The columns of a score of the same metric and version, in the order of their places."""
    same = [c for c in board.columns if (c.metric, c.version, c.key) == (column.metric, column.version, key)]
    return sorted(same, key=lambda c: (c.at is not None, c.at or 0.0))


# --- data ------------------------------------------------------------------------------------------------------------


def scatter_values(board: Board, column: Column, declared: Figure) -> list[Datum]:
    """The rows of `scatter_spec` for a score over the sparsity axis."""
    found = []
    own = [(r, c) for r in declared.references if not r.shared for c in _places(board, column, r.key) if c.at is None]
    for i in _points(board, column):
        row = board.rows[i]
        assert row.sparsity is not None
        score, sparse = row.cells[column], row.sparsity
        base = _base(i, row) | {"x": sparse.value}
        found.append(base | {"kind": "sae", "y": score.value} | _ends("y", score) | ({} if own else _ends("x", sparse)))
        for reference, at in own:
            if (value := row.cells[at].value) is not None:
                found.append(
                    base | {"kind": "ref", "series": clean(reference.label, 60), "y": value, "to": score.value}
                )
    return found + [
        {"kind": "level", "series": name, "y": y} for name, points in _flat(board, column, declared) for _, y in points
    ]


def curve_values(board: Board, column: Column, declared: Figure) -> list[Datum]:
    """The rows of `curve_spec`: every SAE's line, its references, and what is equal for all."""
    own = [(None, column.key), *((r, r.key) for r in declared.references if not r.shared)]
    found = []
    for i, row in enumerate(board.rows):
        for reference, key in own:
            kind = {"kind": "sae"} if reference is None else {"kind": "ref", "series": clean(reference.label, 60)}
            for at in _places(board, column, key):
                cell = row.cells[at]
                if at.at is not None and cell.value is not None:
                    ends = _ends("y", cell) if reference is None else {}
                    found.append(_base(i, row) | kind | {"x": at.at, "y": cell.value} | ends)
    for name, points in _flat(board, column, declared):
        line = len(points) > 1
        found += [
            {"kind": "shared", "series": name, "x": x, "y": y} if line else {"kind": "level", "series": name, "y": y}
            for x, y in points
        ]
    return found


def _flat(board: Board, column: Column, declared: Figure) -> Iterator[tuple[str, list[tuple[float | None, float]]]]:
    """References equal for all SAEs, each from the first SAE that has it, and the level at which a score is worthless."""
    for reference in (r for r in declared.references if r.shared):
        if points := _first(board, column, reference):
            yield clean(reference.label, 60), points
    if declared.worthless is not None:
        yield clean(declared.worthless_label or "worthless", 60), [(None, declared.worthless)]


def _first(board: Board, column: Column, reference: Reference) -> list[tuple[float | None, float]]:
    columns = _places(board, column, reference.key)
    for row in board.rows:
        if found := [(c.at, value) for c in columns if (value := row.cells[c].value) is not None]:
            return found
    return []


def _base(i: int, row: Row) -> Datum:
    name = architecture(row)
    return {"row": i, "arch": name} | ({"floor": True} if name in FLOORS else {})


def _ends(axis: str, cell: Cell) -> Datum:
    return {} if cell.low is None or cell.high is None else {f"{axis}0": cell.low, f"{axis}1": cell.high}


# --- words -----------------------------------------------------------------------------------------------------------


def label(column: Column) -> str:
    """A score as the title of an axis, with its unit and an arrow towards better."""
    better = {"higher": " ↑", "lower": " ↓", None: ""}[column.direction]
    unit = f", {clean(column.unit, 30)}" if column.unit else ""
    return f"{clean(column.key, 40).replace('_', ' ')}{unit}{better}"


def sparsity_label(board: Board) -> str:
    """The label of the sparsity axis, with the task that measured it where that is another."""
    elsewhere = sorted({row.sparsity.reason for row in board.rows if row.sparsity and row.sparsity.reason})
    name = clean(board.sparsity.label, 60) if board.sparsity else ""
    return name + (f", of {clean(elsewhere[0], 30)}" if elsewhere else "")


def architecture(row: Row) -> str:
    """An SAE's architecture as a legend names it."""
    return clean(row.record.sae.get("architecture") or "unknown", 30)


def architectures_of(boards: Sequence[Board]) -> list[str]:
    """Every architecture of the boards, floors last."""
    names = {architecture(row) for board in boards for row in board.rows}
    return sorted(names, key=lambda name: (name in FLOORS, name))


def _points(board: Board, column: Column) -> list[int]:
    """The rows that have this score and a sparsity."""
    rows = enumerate(board.rows)
    return [i for i, row in rows if row.cells[column].value is not None and row.sparsity]
