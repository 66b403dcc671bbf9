"""The pictures of a board: quality against sparsity with a Pareto front per architecture, and curves.

Matplotlib draws them, so one function serves the README's PNG, a paper's SVG and the HTML leaderboard.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from saebench.board.leaderboard import SPARSITY
from saebench.report import Board, Cell, Column, Row
from saebench.results import slug, write_atomically
from saebench.text import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart, less black and yellow: they read on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "osD^vP"
# Stands for "the colour of the text around", which a figure cannot know.
_INK = "#010203"
# Scores of these names are a score's control (an explanation that belongs to another latent), and what it has over that.
_SHUFFLED, _GAIN = "_shuffled", "_gain"
# Beyond this many points, interval bars hide them.
_BARS = 300
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


def plots(board: Board) -> "dict[str, Figure]":
    """Every picture that the board has numbers for, by name: pareto-KEY for each score shown that has a better and an
    interval, control-KEY where it has a control (then in place of the other), curve-KEY, and probing-POOL."""
    found = {}
    controls = {c: control for c in board.shown if (control := _control(board, c)) and _points(board, c)}
    for column, shuffled in controls.items():
        found[f"control-{_stem(column, list(controls))}"] = controlled(board, column, shuffled)
    better = [c for c in board.shown if c.direction and c.key != SPARSITY and c not in controls and _points(board, c)]
    for column in better:
        if any(row.cells[column].low is not None for row in board.rows):
            found[f"pareto-{_stem(column, better)}"] = pareto(board, column)
    curves: dict[Column, list[Column]] = {}
    for column in board.columns:
        if column.key.endswith("_curve") and column.at is not None:
            curves.setdefault(replace(column, at=None), []).append(column)
    for column, places in curves.items():
        found[f"curve-{_stem(column, list(curves))}"] = curve(board, places)
    for pool in ("mean", "max"):
        if any(c.key == f"{pool}_sae_accuracy" for c in board.columns):
            found[f"probing-{pool}"] = probing(board, pool)
    return found


def _control(board: Board, column: Column) -> Column | None:
    """The column that holds the score's control, if there is one."""
    key = f"{column.key}{_SHUFFLED}"
    same = (
        c for c in board.columns if (c.metric, c.version, c.key, c.at) == (column.metric, column.version, key, None)
    )
    return next(same, None) if column.at is None else None


def _stem(column: Column, among: Sequence[Column]) -> str:
    """A picture's name: the key, with metric and version where another has the same."""
    same = [c for c in among if c.key == column.key]
    return column.key if len(same) == 1 else f"{column.metric}-{column.key}-v{column.version}"


def pareto(board: Board, quality: Column) -> "Figure":
    """Quality against L0: a point an SAE with both intervals, a line along each architecture's Pareto front.

    A score that is a difference from a control (real − shuffled) has a line where it is worth nothing.
    """
    points = _points(board, quality)
    sparse = {i: cell for i, row in enumerate(board.rows) if (cell := row.l0)}
    borrowed = sorted({cell.reason for i, cell in sparse.items() if i in points and cell.reason})
    figure, axes = _axes(
        "latents per token (L0)" + (f", of {clean(borrowed[0], 30)}" if borrowed else ""), _label(quality)
    )
    for i, (name, members) in enumerate(_by_architecture(board, points).items()):
        colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)]
        cells = [l0 for m in members if (l0 := board.rows[m].l0)], [board.rows[m].cells[quality] for m in members]
        x, y = ([cell.value or 0.0 for cell in side] for side in cells)
        style = {"linestyle": "none", "marker": marker, "color": colour, "markersize": 6, "label": name, "zorder": 3}
        axes.plot(x, y, gid=_gid(members), **style)
        front = pareto_front(x, y, higher=quality.direction == "higher")
        axes.plot([x[j] for j in front], [y[j] for j in front], color=colour, linewidth=1, alpha=0.6)
        if len(points) <= _BARS:
            bars = {"fmt": "none", "ecolor": colour, "elinewidth": 1, "alpha": 0.6}
            drawn = axes.errorbar(x, y, yerr=_bars(cells[1]), xerr=_bars(cells[0]), **bars)
            for lines in drawn[2]:
                lines.set_gid(_gid(members))
    if quality.key.endswith(_GAIN):
        axes.axhline(0.0, linestyle=":", color=_INK, alpha=0.5, linewidth=1, label="no better than the control")
    _log_if_wide(axes, [_l0(board.rows[m]) for m in points])
    _legend(axes)
    return figure


def controlled(board: Board, real: Column, shuffled: Column) -> "Figure":
    """A score (filled, with its interval) over its control (hollow), against L0: the line between is what it is worth."""
    figure, axes = _axes(_sparsity_label(board), _label(real))
    points = _points(board, real)
    for i, (name, members) in enumerate(_by_architecture(board, points).items()):
        colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)]
        x = [_l0(board.rows[m]) for m in members]
        cells = [board.rows[m].cells[real] for m in members]
        y = [cell.value or 0.0 for cell in cells]
        style = {"linestyle": "none", "marker": marker, "color": colour, "markersize": 6}
        axes.plot(x, y, gid=_gid(members), label=name, zorder=3, **style)
        axes.errorbar(x, y, yerr=_bars(cells), fmt="none", ecolor=colour, elinewidth=1, alpha=0.6)
        below = [board.rows[m].cells[shuffled].value for m in members]
        both = [(at, low, high) for at, low, high in zip(x, below, y, strict=True) if low is not None]
        label = {"label": "with another latent's"} if i == 0 else {}
        axes.plot([at for at, *_ in both], [low for _, low, _ in both], markerfacecolor="none", **style, **label)
        axes.vlines(*zip(*both, strict=True) if both else ([], [], []), colors=colour, linestyles=":", linewidth=1)
    _log_if_wide(axes, [_l0(board.rows[m]) for m in points])
    _legend(axes)
    return figure


def curve(board: Board, columns: Sequence[Column]) -> "Figure":
    """A score over the place where it was taken, a line an SAE: dead latents over tokens seen, for one."""
    columns = sorted(columns, key=lambda c: c.at or 0.0)
    figure, axes = _axes("tokens seen", _label(columns[0]).split(" @")[0])
    for i, (name, members) in enumerate(_by_architecture(board, _having(board, columns[0].key)).items()):
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
    for i, (name, members) in enumerate(_by_architecture(board, _having(board, f"{pool}_sae_accuracy")).items()):
        colour = _COLOURS[i % len(_COLOURS)]
        for member in members:
            first = member == members[0]
            at, value, bars = _accuracy(board, member, f"{pool}_sae_accuracy")
            axes.errorbar(
                at, value, yerr=bars, color=colour, linewidth=1.4, elinewidth=0.8, label=name if first else None
            )
            at, value, _ = _accuracy(board, member, f"{pool}_random_sae_accuracy")
            axes.plot(at, value, ":", color=colour, linewidth=1.2, label=f"{name}, random weights" if first else None)
    # Rivals that read x are the same for every SAE; they come from the first that has them.
    for source, (name, line) in _RIVALS.items():
        found = (_accuracy(board, row, f"{pool}_{source}_accuracy") for row in range(len(board.rows)))
        at, value, _ = next((one for one in found if one[0]), ([], [], []))
        if len(at) == 1:
            axes.axhline(value[0], linestyle=line, color=_INK, linewidth=1, label=name)
        elif at:
            axes.plot(at, value, line, color=_INK, alpha=0.5, linewidth=1, label=name)
    for column in board.columns:
        levels = [level for row in board.rows if (level := row.cells[column].value) is not None]
        if column.key == "majority_rate" and levels:
            axes.axhline(levels[0], linestyle=":", color=_INK, alpha=0.5, linewidth=1, label="majority class")
    _log(axes)
    _legend(axes)
    return figure


def _having(board: Board, key: str) -> list[int]:
    """The rows that have any point of a curve."""
    columns = [c for c in board.columns if c.key == key and c.at is not None]
    return [i for i, row in enumerate(board.rows) if any(row.cells[c].value is not None for c in columns)]


def _accuracy(board: Board, row: int, key: str) -> tuple[list[float], list[float], list[list[float]]]:
    """k, accuracy and interval bars of one probe of one SAE."""
    scored = [
        c for c in board.columns if c.key == key and c.at is not None and board.rows[row].cells[c].value is not None
    ]
    columns = sorted(scored, key=lambda c: c.at or 0.0)
    cells = [board.rows[row].cells[c] for c in columns]
    return [c.at or 0.0 for c in columns], [cell.value or 0.0 for cell in cells], _bars(cells)


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
                drawn = io.BytesIO()
                _save(figure, drawn, kind)
                write_atomically(path, drawn.getvalue())
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


def _sparsity_label(board: Board) -> str:
    """What stands below a plot against L0; names the task that it was measured in where that is another."""
    elsewhere = sorted({row.l0.reason for row in board.rows if row.l0 and row.l0.reason})
    return "latents per token (L0)" + (f", of {clean(elsewhere[0], 30)}" if elsewhere else "")


def _l0(row: Row) -> float:
    assert row.l0 is not None
    return row.l0.value or 0.0


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


def _points(board: Board, column: Column) -> list[int]:
    """The rows that have this score and an L0."""
    rows = enumerate(board.rows)
    return [i for i, row in rows if row.cells[column].value is not None and row.l0 and row.l0.value is not None]


def architecture(row: Row) -> str:
    """An SAE's architecture as its legend says it. A leading underscore would hide a label from matplotlib."""
    return clean(row.record.sae.get("architecture") or "unknown", 30).lstrip("_") or "unknown"


def _by_architecture(board: Board, rows: Sequence[int]) -> dict[str, list[int]]:
    names = sorted({architecture(board.rows[i]) for i in rows})
    return {name: [i for i in rows if architecture(board.rows[i]) == name] for name in names}


def _bars(cells: Sequence[Cell]) -> list[list[float]]:
    """Distances from value to low and to high; 0 where there is no interval."""
    values = [cell.value or 0.0 for cell in cells]
    below = [0.0 if c.low is None else max(0.0, value - c.low) for c, value in zip(cells, values, strict=True)]
    above = [0.0 if c.high is None else max(0.0, c.high - value) for c, value in zip(cells, values, strict=True)]
    return [below, above]


def _gid(rows: Sequence[int]) -> str:
    return "rows-" + "-".join(map(str, rows))
