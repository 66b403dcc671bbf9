"""The pictures of a board: quality against sparsity with a Pareto front per architecture, and curves.

Matplotlib draws them, so one function serves the README's PNG, a paper's SVG and the HTML leaderboard.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from saebench.errors import SaebenchError, one_line
from saebench.leaderboard import Board, Column, Row, headlines
from saebench.results import slug
from saebench.tables import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPARSITY = "l0"
# Okabe and Ito's colours, which colour-blind readers tell apart, less black and yellow: they read on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "osD^vP"
# Stands for "the colour of the text around", which a figure cannot know.
_INK = "#010203"
# Beyond this many points, interval bars hide them.
_BARS = 300
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


def plots(board: Board) -> "dict[str, Figure]":
    """Every picture that the board has numbers for, by name: pareto-KEY for each headline that can be ranked, curve-KEY."""
    found = {}
    sparsity = next((c for c in board.columns if c.key == SPARSITY and c.at is None), None)
    for column in headlines(board.columns):
        ranked = column.direction is not None and any(row.cells[column].low is not None for row in board.rows)
        if sparsity is not None and ranked and _points(board, sparsity, column):
            found[f"pareto-{column.key}"] = pareto(board, sparsity, column)
    for key in dict.fromkeys(c.key for c in board.columns if c.key.endswith("_curve")):
        found[f"curve-{key}"] = curve(board, [c for c in board.columns if c.key == key and c.at is not None])
    for pool in ("mean", "max"):
        if any(c.key == f"{pool}_sae_accuracy" for c in board.columns):
            found[f"probing-{pool}"] = probing(board, pool)
    return found


def pareto(board: Board, sparsity: Column, quality: Column) -> "Figure":
    """Quality against sparsity: a point an SAE with both intervals, a line along each architecture's Pareto front."""
    figure, axes = _axes(_label(sparsity), _label(quality))
    points = _points(board, sparsity, quality)
    for i, (name, members) in enumerate(_by_architecture(board, points).items()):
        colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)]
        x = [_value(board, m, sparsity) for m in members]
        y = [_value(board, m, quality) for m in members]
        style = {"linestyle": "none", "marker": marker, "color": colour, "markersize": 6, "label": name, "zorder": 3}
        axes.plot(x, y, gid=_gid(members), **style)
        front = pareto_front(x, y, higher=quality.direction == "higher")
        axes.plot([x[j] for j in front], [y[j] for j in front], color=colour, linewidth=1, alpha=0.6)
        if len(points) <= _BARS:
            bars = {"fmt": "none", "ecolor": colour, "elinewidth": 1, "alpha": 0.6}
            drawn = axes.errorbar(
                x, y, yerr=_bars(board, members, quality), xerr=_bars(board, members, sparsity), **bars
            )
            for lines in drawn[2]:
                lines.set_gid(_gid(members))
    _log_if_wide(axes, [_value(board, m, sparsity) for m in points])
    _legend(axes)
    return figure


def curve(board: Board, columns: Sequence[Column]) -> "Figure":
    """A score over the place where it was taken, a line an SAE: dead latents over tokens seen, for one."""
    columns = sorted(columns, key=lambda c: c.at or 0.0)
    figure, axes = _axes("tokens seen", _label(columns[0]).split(" @")[0])
    for i, (name, members) in enumerate(_by_architecture(board, range(len(board.rows))).items()):
        for member in members:
            cells = board.rows[member].cells
            drawn = [(c.at, cells[c].value) for c in columns if cells[c].value is not None]
            style = {
                "color": _COLOURS[i % len(_COLOURS)],
                "linewidth": 1,
                "label": name if member == members[0] else None,
            }
            axes.plot([at for at, _ in drawn], [value for _, value in drawn], **style)
    _log(axes)
    _legend(axes)
    return figure


# What a probe on k latents stands between, and how it is drawn: the ceiling, rivals that read x, the floor.
_RIVALS = {
    "dense": ("all of x (dense probe)", "-"),
    "pca": ("k principal directions", "--"),
    "random": ("k random directions", "-."),
}


def probing(board: Board, pool: str) -> "Figure":
    """Accuracy against the number of latents a probe reads: SAEs with intervals, random twins dotted, ceiling, majority."""
    figure, axes = _axes("latents a class (k)", f"accuracy, {pool}-pooled")
    for i, (name, members) in enumerate(_by_architecture(board, range(len(board.rows))).items()):
        colour = _COLOURS[i % len(_COLOURS)]
        for member in members:
            first = member == members[0]
            at, value, bars = _accuracy(board, member, f"{pool}_sae_accuracy")
            axes.errorbar(
                at, value, yerr=bars, color=colour, linewidth=1.4, elinewidth=0.8, label=name if first else None
            )
            at, value, _ = _accuracy(board, member, f"{pool}_random_sae_accuracy")
            axes.plot(at, value, ":", color=colour, linewidth=1.2, label=f"{name}, random weights" if first else None)
    for source, (name, line) in _RIVALS.items():
        at, value, _ = _accuracy(board, 0, f"{pool}_{source}_accuracy")
        if len(at) == 1:
            axes.axhline(value[0], linestyle=line, color=_INK, linewidth=1, label=name)
        elif at:
            axes.plot(at, value, line, color=_INK, alpha=0.5, linewidth=1, label=name)
    for column in board.columns:
        level = board.rows[0].cells[column].value
        if column.key == "majority_rate" and level is not None:
            axes.axhline(level, linestyle=":", color=_INK, alpha=0.5, linewidth=1, label="majority class")
    _log(axes)
    _legend(axes)
    return figure


def _accuracy(board: Board, row: int, key: str) -> tuple[list[float], list[float], list[list[float]]]:
    """k, accuracy and interval bars of one probe of one SAE."""
    scored = [
        c for c in board.columns if c.key == key and c.at is not None and board.rows[row].cells[c].value is not None
    ]
    columns = sorted(scored, key=lambda c: c.at or 0.0)
    bars = [_bars(board, [row], c) for c in columns]
    below, above = [b[0][0] for b in bars], [b[1][0] for b in bars]
    return [c.at or 0.0 for c in columns], [_value(board, row, c) for c in columns], [below, above]


def pareto_front(x: Sequence[float], y: Sequence[float], *, higher: bool) -> list[int]:
    """The points that no other beats with less x and a y at least as good, from the smallest x on."""
    front: list[int] = []
    for i in sorted(range(len(x)), key=lambda i: (x[i], -y[i] if higher else y[i])):
        if not front or (y[i] > y[front[-1]] if higher else y[i] < y[front[-1]]):
            front.append(i)
    return front


def write_plots(boards: Sequence[Board], folder: Path) -> list[Path]:
    """Every picture of every board as PNG and SVG.

    Raises:
        SaebenchError: the folder cannot be written.
    """
    written = []
    for number, board in enumerate(boards):
        stem = f"{number}-{slug(board.model)}-{slug(board.task)}-" if len(boards) > 1 else ""
        for name, figure in plots(board).items():
            for kind in ("png", "svg"):
                path = folder / f"{stem}{slug(name)}.{kind}"
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    _save(figure, path, kind)
                except OSError as error:
                    raise SaebenchError(f"{path} could not be written: {one_line(error)}") from error
                written.append(path)
    return written


# --- into a page -----------------------------------------------------------------------------------------------------


def inline_svg(figure: "Figure", title: str, salt: str) -> str:
    """A figure as an <svg> element for a page: it takes the page's text colour, and what is drawn for a row has its data-row.

    Args:
        figure: from `pareto` or `curve`.
        title: what a screen reader says.
        salt: makes the ids of this figure its own within the page.
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
            # Points are <use> elements, interval bars are paths; both come in the order of their rows.
            marks = list(group.iter(f"{{{_SVG}}}use")) or list(group.iter(f"{{{_SVG}}}path"))
            for row, mark in zip(name.split("-")[1:], marks, strict=True):
                mark.set("data-row", row)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", title)
    return ElementTree.tostring(root, encoding="unicode")


def _save(figure: "Figure", target: Any, kind: str, salt: str = "saebench") -> None:
    """The same bytes from the same numbers: no date, ids from `salt`."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        if kind == "svg":
            figure.savefig(target, format=kind, metadata={"Date": None, "Creator": None})
        else:
            figure.savefig(target, format=kind, dpi=160, facecolor="white")


# --- parts -----------------------------------------------------------------------------------------------------------


def _axes(x: str, y: str) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
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
        text.set_parse_math(False)  # a name is not a formula


def _label(column: Column) -> str:
    better = {"higher": " ↑", "lower": " ↓", None: ""}[column.direction]
    unit = f", {clean(column.unit, 30)}" if column.unit else ""
    return f"{clean(column.key, 40)}{unit}{better}"


def _log_if_wide(axes: Any, values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) > 5 * min(values):
        _log(axes)


def _log(axes: Any) -> None:
    """Logarithmic x with ticks that read as numbers: 20, 50, 100 …"""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _value(board: Board, row: int, column: Column) -> float:
    value = board.rows[row].cells[column].value
    assert value is not None
    return value


def _points(board: Board, *columns: Column) -> list[int]:
    """The rows that have all these scores."""
    return [i for i, row in enumerate(board.rows) if all(row.cells[c].value is not None for c in columns)]


def architecture(row: Row) -> str:
    """An SAE's architecture as its legend says it. A leading underscore would hide a label from matplotlib."""
    return clean(row.record.sae.get("architecture") or "unknown", 30).lstrip("_") or "unknown"


def _by_architecture(board: Board, rows: Sequence[int] | range) -> dict[str, list[int]]:
    names = sorted({architecture(board.rows[i]) for i in rows})
    return {name: [i for i in rows if architecture(board.rows[i]) == name] for name in names}


def _bars(board: Board, rows: Sequence[int], column: Column) -> list[list[float]]:
    """Distances from value to low and to high; 0 where there is no interval."""
    below, above = [], []
    for cell in (board.rows[i].cells[column] for i in rows):
        value = cell.value or 0.0
        below.append(0.0 if cell.low is None else max(0.0, value - cell.low))
        above.append(0.0 if cell.high is None else max(0.0, cell.high - value))
    return [below, above]


def _gid(rows: Sequence[int]) -> str:
    return "rows-" + "-".join(map(str, rows))
