"""The plots of a board: scores over the sparsity axis with a Pareto front per architecture, and curves.

Matplotlib draws them, so one function serves the README's PNG, a paper's SVG and the HTML leaderboard.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from saebench.presentation import Figure
from saebench.report import Board, Cell, Column, Row
from saebench.results import slug, write_atomically
from saebench.text import clean

if TYPE_CHECKING:
    import matplotlib.figure as plt

# Okabe and Ito's colour-blind-safe colours, without black and yellow: legible on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "osD^vP"
# Placeholder for the surrounding text colour, which is unknown when the figure is drawn.
_INK = "#010203"
_LINES = ("-", "--", "-.", ":")
# With more points, interval bars hide them.
_BARS = 300
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


def plots(board: Board) -> "dict[str, plt.Figure]":
    """Every plot that the board has numbers for, by name.

    pareto-KEY (control-KEY where it has references) for each score that tables show and its metric draws over the sparsity axis:
    those declared, and each other score with a direction and an interval. curve-KEY for each declared curve.
    """
    points = {c: figure for c in board.shown if (figure := _over_sparsity(board, c)) and _points(board, c)}
    found = {
        f"{'control' if figure.references else 'pareto'}-{_stem(column, list(points))}": scatter(board, column, figure)
        for column, figure in points.items()
    }
    curves = _curves(board)
    for column, figure in curves.items():
        found[f"curve-{_stem(column, list(curves))}"] = curve(board, column, figure)
    return found


def _over_sparsity(board: Board, column: Column) -> Figure | None:
    """The score's declared figure over the sparsity axis; a default one if it has a direction and an interval."""
    if column.at is not None or (board.sparsity and column.key == board.sparsity.key):
        return None
    for figure in board.presentation(column).figures:
        if (figure.key, figure.against) == (column.key, "sparsity"):
            return figure
    interval = any(row.cells[column].low is not None for row in board.rows)
    return Figure(column.key) if column.direction and interval else None


def _curves(board: Board) -> dict[Column, Figure]:
    """The declared curves that have at least one point on the board, by their score as a column without `at`."""
    found = {}
    for column in board.columns:
        for figure in board.presentation(column).figures:
            if (figure.key, figure.against) == (column.key, "at") and column.at is not None:
                found[replace(column, at=None)] = figure
    return found


def _stem(column: Column, among: Sequence[Column]) -> str:
    """A plot's name: the key, with metric and version if another plot has the same key."""
    same = [c for c in among if c.key == column.key]
    return column.key if len(same) == 1 else f"{column.metric}-{column.key}-v{column.version}"


def _places(board: Board, column: Column, key: str) -> list[Column]:
    """The points of a curve: columns with the score's metric, version and key, sorted by `at`."""
    same = [c for c in board.columns if (c.metric, c.version, c.key) == (column.metric, column.version, key)]
    return sorted(same, key=lambda c: (c.at is not None, c.at or 0.0))


# --- points over the sparsity axis -----------------------------------------------------------------------------------


def scatter(board: Board, column: Column, declared: Figure | None = None) -> "plt.Figure":
    """A score over the sparsity axis: a point per SAE with its interval, and a line along each architecture's Pareto front.

    Each SAE's own reference is a hollow point joined to its score; no front is drawn then.
    """
    declared = declared or Figure(column.key)
    figure, axes = _axes(_sparsity_label(board), declared.y or _label(column))
    points = _points(board, column)
    own = [c for r in declared.references if not r.shared for c in _places(board, column, r.key) if c.at is None]
    for i, (name, members) in enumerate(_by_architecture(board, points).items()):
        colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)]
        style = {"linestyle": "none", "marker": marker, "color": colour, "markersize": 6}
        sparse = [_sparsity(board.rows[m]) for m in members]
        cells = [board.rows[m].cells[column] for m in members]
        x, y = ([cell.value or 0.0 for cell in side] for side in (sparse, cells))
        axes.plot(x, y, gid=_gid(members), label=name, zorder=3, **style)
        if not own:
            front = pareto_front(x, y, higher=column.direction == "higher")
            axes.plot([x[j] for j in front], [y[j] for j in front], color=colour, linewidth=1, alpha=0.6)
        if len(points) <= _BARS:
            bars = {"fmt": "none", "ecolor": colour, "elinewidth": 1, "alpha": 0.6}
            drawn = axes.errorbar(x, y, yerr=_bars(cells), xerr=None if own else _bars(sparse), **bars)
            for lines in drawn[2]:
                lines.set_gid(_gid(members))
        for reference in own:
            label = next(r.label for r in declared.references if r.key == reference.key) if i == 0 else None
            _hollow(axes, x, y, [board.rows[m].cells[reference].value for m in members], style, label)
    _level(axes, declared)
    _shared(axes, board, column, declared)
    _log_if_wide(axes, [_sparsity(board.rows[m]).value or 0.0 for m in points])
    _legend(axes)
    return figure


def _hollow(
    axes: Any, x: Sequence[float], y: Sequence[float], reference: Sequence[float | None], style: Any, label: str | None
) -> None:
    """Hollow points of a reference, each joined to its SAE's score."""
    both = [(at, low, high) for at, low, high in zip(x, reference, y, strict=True) if low is not None]
    named = {} if label is None else {"label": label}
    axes.plot([at for at, *_ in both], [low for _, low, _ in both], markerfacecolor="none", **style, **named)
    if both:
        axes.vlines(*zip(*both, strict=True), colors=style["color"], linestyles=":", linewidth=1)


# --- curves ----------------------------------------------------------------------------------------------------------


def curve(board: Board, column: Column, declared: Figure) -> "plt.Figure":
    """A curve: a line per SAE with intervals; each SAE's own references are dotted."""
    columns = _places(board, column, column.key)
    figure, axes = _axes(declared.x or "at", declared.y or _label(columns[0]))
    having = [i for i, row in enumerate(board.rows) if any(row.cells[c].value is not None for c in columns)]
    for i, (name, members) in enumerate(_by_architecture(board, having).items()):
        colour = _COLOURS[i % len(_COLOURS)]
        for member in members:
            first = member == members[0]
            at, value, bars = _line(board, member, columns)
            style = {"color": colour, "linewidth": 1.4, "elinewidth": 0.8, "label": name if first else None}
            axes.errorbar(at, value, yerr=bars, **style)
            for reference in (r for r in declared.references if not r.shared):
                at, value, _ = _line(board, member, _places(board, column, reference.key))
                label = f"{name}, {reference.label}" if first else None
                axes.plot(at, value, ":", color=colour, linewidth=1.2, label=label)
    _level(axes, declared)
    _shared(axes, board, column, declared)
    _log(axes)
    _legend(axes)
    return figure


def _line(board: Board, row: int, columns: Sequence[Column]) -> tuple[list[float], list[float], list[list[float]]]:
    """x, y and interval bars of one SAE's curve."""
    scored = [c for c in columns if c.at is not None and board.rows[row].cells[c].value is not None]
    cells = [board.rows[row].cells[c] for c in scored]
    return [c.at or 0.0 for c in scored], [cell.value or 0.0 for cell in cells], _bars(cells)


def _level(axes: Any, declared: Figure) -> None:
    """A horizontal line at the value of a worthless SAE."""
    if declared.worthless is not None:
        label = declared.worthless_label or None
        axes.axhline(declared.worthless, linestyle=":", color=_INK, alpha=0.5, linewidth=1, label=label)


def _shared(axes: Any, board: Board, column: Column, declared: Figure) -> None:
    """Shared references, each from the first SAE that has it: a line, or a horizontal level for a single value."""
    for i, reference in enumerate(r for r in declared.references if r.shared):
        style = {"linestyle": _LINES[i % len(_LINES)], "color": _INK, "linewidth": 1, "label": reference.label}
        columns = _places(board, column, reference.key)
        for row in board.rows:
            found = [(c.at, value) for c in columns if (value := row.cells[c].value) is not None]
            if len(found) == 1:
                axes.axhline(found[0][1], **style)
            elif found:
                axes.plot([at for at, _ in found], [value for _, value in found], alpha=0.5, **style)
            if found:
                break


def pareto_front(x: Sequence[float], y: Sequence[float], *, higher: bool) -> list[int]:
    """The Pareto-optimal points, sorted by x: no other point has a smaller x and a y at least as good."""
    front: list[int] = []
    for i in sorted(range(len(x)), key=lambda i: (x[i], -y[i] if higher else y[i])):
        if not front or (y[i] > y[front[-1]] if higher else y[i] < y[front[-1]]):
            front.append(i)
    return front


def write_plots(boards: Sequence[Board], folder: Path) -> list[Path]:
    """Write every plot of every board as PNG, SVG and PDF.

    Raises:
        SaebenchError: the folder cannot be written.
    """
    written = []
    for number, board in enumerate(boards):
        stem = f"{number}-{slug(board.model)}-{slug(board.task)}-" if len(boards) > 1 else ""
        for name, figure in plots(board).items():
            for kind in ("png", "svg", "pdf"):
                path = folder / f"{stem}{slug(name)}.{kind}"
                drawn = io.BytesIO()
                _save(figure, drawn, kind)
                write_atomically(path, drawn.getvalue())
                written.append(path)
    return written


# --- plots in HTML -----------------------------------------------------------------------------------------------------


def inline_svg(figure: "plt.Figure", title: str, salt: str) -> str:
    """A figure as an <svg> element for a page, in the page's text colour; marks of a row carry its number as data-row.

    Args:
        figure: from `scatter` or `curve`.
        title: the text alternative for screen readers.
        salt: makes the figure's ids unique within the page.
    """
    out = io.BytesIO()
    _save(figure, out, "svg", salt)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(out.getvalue().decode().replace(_INK, "currentColor"))
    for extra in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(extra)
    for group in root.iter(f"{{{_SVG}}}g"):
        name = group.attrib.pop("id", "")
        if name.startswith("rows-"):
            # Points are <use> elements, interval bars are paths; both are in the order of the rows.
            marks = list(group.iter(f"{{{_SVG}}}use")) or list(group.iter(f"{{{_SVG}}}path"))
            for row, mark in zip(name.split("-")[1:], marks, strict=True):
                mark.set("data-row", row)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", title)
    return ElementTree.tostring(root, encoding="unicode")


def _save(figure: "plt.Figure", target: Any, kind: str, salt: str = "saebench") -> None:
    """Save a figure reproducibly: no date, ids from `salt`."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        if kind == "svg":
            figure.savefig(target, format=kind, metadata={"Date": None, "Creator": None})
        else:
            undated = {"CreationDate": None} if kind == "pdf" else None
            figure.savefig(target, format=kind, dpi=160, facecolor="white", metadata=undated)


# --- parts -----------------------------------------------------------------------------------------------------------


def _axes(x: str, y: str) -> tuple["plt.Figure", Any]:
    import matplotlib.figure as plt

    figure = plt.Figure(figsize=(4.8, 3.4), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.grid(visible=True, color=_INK, alpha=0.12, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(colors=_INK, which="both", labelsize=9)
    axes.set_xlabel(x, color=_INK, parse_math=False)
    axes.set_ylabel(y, color=_INK, parse_math=False)
    return figure, axes


def _legend(axes: Any) -> None:
    if len(axes.get_legend_handles_labels()[1]) < 2:
        return
    for text in axes.legend(frameon=False, fontsize=8, labelcolor=_INK).get_texts():
        text.set_parse_math(False)  # names are not formulas


def _label(column: Column) -> str:
    better = {"higher": " ↑", "lower": " ↓", None: ""}[column.direction]
    unit = f", {clean(column.unit, 30)}" if column.unit else ""
    return f"{clean(column.key, 40)}{unit}{better}"


def _sparsity_label(board: Board) -> str:
    """The label of the sparsity axis, with the task that measured it if that is not the board's."""
    elsewhere = sorted({row.sparsity.reason for row in board.rows if row.sparsity and row.sparsity.reason})
    label = clean(board.sparsity.label, 60) if board.sparsity else ""
    return label + (f", of {clean(elsewhere[0], 30)}" if elsewhere else "")


def _sparsity(row: Row) -> Cell:
    assert row.sparsity is not None
    return row.sparsity


def _log_if_wide(axes: Any, values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) > 5 * min(values):
        _log(axes)


def _log(axes: Any) -> None:
    """A logarithmic x axis with plain tick labels: 20, 50, 100 …"""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _points(board: Board, column: Column) -> list[int]:
    """The rows with this score and a measured sparsity."""
    rows = enumerate(board.rows)
    return [i for i, row in rows if row.cells[column].value is not None and row.sparsity]


def architecture(row: Row) -> str:
    """An SAE's architecture as a legend label, without the leading underscore that makes matplotlib hide a label."""
    return clean(row.record.sae.get("architecture") or "unknown", 30).lstrip("_") or "unknown"


def _by_architecture(board: Board, rows: Sequence[int]) -> dict[str, list[int]]:
    names = sorted({architecture(board.rows[i]) for i in rows})
    return {name: [i for i in rows if architecture(board.rows[i]) == name] for name in names}


def _bars(cells: Sequence[Cell]) -> list[list[float]]:
    """Distances from the value to the interval's ends; 0 without an interval."""
    values = [cell.value or 0.0 for cell in cells]
    below = [0.0 if c.low is None else max(0.0, value - c.low) for c, value in zip(cells, values, strict=True)]
    above = [0.0 if c.high is None else max(0.0, c.high - value) for c, value in zip(cells, values, strict=True)]
    return [below, above]


def _gid(rows: Sequence[int]) -> str:
    return "rows-" + "-".join(map(str, rows))
