"""Vega-Lite specifications of a board's pictures: one definition for the page, a notebook and a paper's PNG, SVG and PDF.

A chart's data are flat rows. Transforms inside the specification compute the Pareto fronts and fit the axes, so they follow a
filter wherever the chart is drawn.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from saebench.cache import cache_folder, seal, unseal

Spec = dict[str, Any]
Kind = Literal["png", "svg", "pdf"]

# Twelve colours, each with a contrast of at least 3 to white and to the dark page. The first are Okabe and Ito's. No twelve
# colours are distinct to every reader, so each has a marker of its own.
COLOURS = ("#0072b2", "#d55e00", "#008f6a", "#b8609a", "#a6761d", "#3d8fc4", "#c0392b", "#6b7f00", "#7e6bc4", "#c2478c",
           "#00838f", "#757575")  # fmt: skip
# SVG paths about -1 … 1: circle, square, triangle, diamond, cross, inverted triangle, star, x, right, left, hexagon, hourglass.
MARKERS = (
    "M-1,0A1,1,0,1,1,1,0A1,1,0,1,1,-1,0Z",
    "M-.9,-.9L.9,-.9L.9,.9L-.9,.9Z",
    "M0,-1.1L1.1,.85L-1.1,.85Z",
    "M0,-1.25L1.05,0L0,1.25L-1.05,0Z",
    "M-.38,-1.1L.38,-1.1L.38,-.38L1.1,-.38L1.1,.38L.38,.38L.38,1.1L-.38,1.1L-.38,.38L-1.1,.38L-1.1,-.38L-.38,-.38Z",
    "M0,1.1L1.1,-.85L-1.1,-.85Z",
    "M0,-1.3L.32,-.44L1.24,-.4L.52,.17L.76,1.05L0,.54L-.76,1.05L-.52,.17L-1.24,-.4L-.32,-.44Z",
    "M-.55,-1.1L0,-.55L.55,-1.1L1.1,-.55L.55,0L1.1,.55L.55,1.1L0,.55L-.55,1.1L-1.1,.55L-.55,0L-1.1,-.55Z",
    "M1.1,0L-.85,1.1L-.85,-1.1Z",
    "M-1.1,0L.85,1.1L.85,-1.1Z",
    "M-.6,-1.05L.6,-1.05L1.2,0L.6,1.05L-.6,1.05L-1.2,0Z",
    "M-1.05,-1.1L1.05,-1.1L-1.05,1.1L1.05,1.1Z",
)
# Beyond this many SAEs, interval bars hide the points.
_BARS = 300
# A floor farther from the trained SAEs than this share of their range stands at the edge of the plot, marked as off the scale.
_FAR = 0.5
_FONT = "system-ui, 'Liberation Sans', sans-serif"
_CONFIG: Spec = {
    "background": "transparent",
    "font": _FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor", "titleColor": "currentColor", "domainColor": "currentColor", "tickColor": "currentColor",
        "gridColor": "currentColor", "gridOpacity": 0.12, "domainOpacity": 0.5, "tickOpacity": 0.5, "labelFontSize": 12,
        "titleFontSize": 13, "titleFontWeight": "normal", "labelFlush": False,
    },
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 12, "symbolSize": 80},
    "text": {"color": "currentColor", "fontSize": 12},
    "rule": {"color": "currentColor"},
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """One chart; a notebook shows it."""

    spec: Spec

    def draw(self, kind: Kind) -> bytes:
        """The chart in a file format; equal data give equal bytes."""
        import vl_convert

        if kind == "png":
            return bytes(vl_convert.vegalite_to_png(self._on("white"), scale=2))
        if kind == "pdf":
            return bytes(vl_convert.vegalite_to_pdf(self.spec))
        return str(vl_convert.vegalite_to_svg(self.spec)).encode()

    def save(self, path: Path) -> None:
        """Write the chart in the format of the suffix: .png, .svg or .pdf."""
        path.write_bytes(self.draw(path.suffix.removeprefix(".")))  # type: ignore[arg-type]

    def _on(self, background: str) -> Spec:
        return self.spec | {"config": self.spec["config"] | {"background": background}}

    def _repr_png_(self) -> bytes:
        return self.draw("png")


def bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script for an offline page, safe inside a <script> element.

    Bundling takes seconds, so the cache folder keeps the script for each version of vl-convert.
    """
    import vl_convert

    path = cache_folder() / f"vega-{version('vl-convert-python')}.js"
    try:
        kept = unseal(path.read_bytes()) if path.is_file() else None
    except OSError:
        kept = None
    if kept is not None:
        return kept.decode()
    made = re.sub(r"</(script)", r"<\\/\1", vl_convert.javascript_bundle(), flags=re.IGNORECASE)  # type: ignore[call-arg]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{id(made)}")
        temporary.write_bytes(seal(made.encode()))
        temporary.replace(path)
    except OSError:  # a cache that cannot be written costs seconds the next time
        pass
    return made


def styles(architectures: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each architecture; from the thirteenth on, a colour meets another marker."""
    size = len(COLOURS)
    return {name: (COLOURS[i % size], MARKERS[(i + i // size) % size]) for i, name in enumerate(architectures)}


def scatter_spec(
    values: Sequence[Mapping[str, Any]], x: str, y: str, architectures: Sequence[str], *, y_sign: int = 1, x_sign: int = -1,
    front: bool = True, size: tuple[int, int] = (520, 340), legend: bool = True, log: bool | None = None,
) -> Spec:  # fmt: skip
    """A score over another one: a point per SAE with its intervals, and a Pareto front with a band per architecture.

    Rows of `values` have a `kind`. "sae": `row`, `arch`, `floor` (untrained), x, x0, x1, y, y0, y1. "ref", a reference of one
    SAE: `row`, `arch`, `series`, x, y, `to` (the SAE's score). "level", a horizontal line: y and `series`.

    Args:
        values: the data.
        x, y: titles of the axes.
        architectures: every name that may appear, in the order of their colours.
        y_sign, x_sign: 1 where more is better, -1 where less is.
        front: draw fronts.
        size: of the plot, without axes and legend.
        legend: beside the plot.
        log: a logarithmic x; None: where the values are far apart.
    """
    colour, shape = _by_architecture(architectures, legend)
    log = _wide(values, "x") if log is None else log
    place = {"x": _quantity("x", x, log), "y": _quantity("sy", y)}
    sae, trained = "datum.kind == 'sae'", "datum.kind == 'sae' && !datum.floor"
    rule, few = {"type": "rule", "strokeWidth": 1.2, "opacity": 0.55}, f"{trained} && datum.count <= {_BARS} && "
    y_bars = {"x": place["x"], "y": _quantity("y0", None), "y2": {"field": "y1"}, "color": colour}
    x_bars = {"x": _quantity("x0", None, log), "x2": {"field": "x1"}, "y": place["y"], "color": colour}
    layers = [
        *(_front(trained, place, colour) if front else []),
        {"transform": _only(few + "isValid(datum.y0)"), "mark": rule, "encoding": y_bars},
        {"transform": _only(few + "isValid(datum.x0)"), "mark": rule, "encoding": x_bars},
        *_floors(place),
        *_references(place, colour, shape),
        *_levels(),
        {
            "transform": _only(sae),
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1, "cursor": "pointer"},
            "encoding": place | {
                "color": colour, "shape": shape,
                "fillOpacity": {"condition": {"test": "datum.floor", "value": 0}, "value": 1},
                "stroke": colour, "strokeWidth": {"value": 1.5},
            },
        },
    ]  # fmt: skip
    signs = [{"name": "y_sign", "value": y_sign}, {"name": "x_sign", "value": x_sign}]
    return _whole(values, layers, size) | {"params": signs, "transform": _fitted()}


def _fitted() -> list[Spec]:
    """`sy`: y, clamped for floors to the reach of the trained SAEs, which floors would squash; `off` where it is clamped."""
    return [
        {"calculate": "datum.kind == 'sae' && !datum.floor ? datum.y : null", "as": "ty"},
        {"joinaggregate": [
            {"op": "min", "field": "ty", "as": "lo"}, {"op": "max", "field": "ty", "as": "hi"},
            {"op": "valid", "field": "ty", "as": "count"},
        ]},
        {"calculate": f"datum.hi > datum.lo ? {_FAR} * (datum.hi - datum.lo) : 0.2 * abs(datum.hi) + 1e-9", "as": "reach"},
        {"calculate": "datum.floor && datum.count > 0 ? clamp(datum.y, datum.lo - datum.reach, datum.hi + datum.reach) : datum.y",
         "as": "sy"},
        {"calculate": "datum.sy != datum.y", "as": "off"},
    ]  # fmt: skip


def _front(trained: str, place: Spec, colour: Spec) -> list[Spec]:
    """A line through the SAEs of an architecture that none of it beats, and the band of their intervals."""
    sort = [{"field": "gx", "order": "descending"}, {"field": "gy", "order": "descending"}]
    kept: list[Spec] = [
        *_only(trained),
        {"calculate": "x_sign * datum.x", "as": "gx"},
        {"calculate": "y_sign * datum.y", "as": "gy"},
        {"window": [{"op": "max", "field": "gy", "as": "so_far"}], "groupby": ["arch"], "sort": sort},
        {"window": [{"op": "lag", "field": "so_far", "as": "best"}], "groupby": ["arch"], "sort": sort},
        *_only("!isValid(datum.best) || datum.gy > datum.best"),
    ]  # fmt: skip
    band = {
        "x": place["x"],
        "y": _quantity("y0", None),
        "y2": {"field": "y1"},
        "color": colour,
        "detail": {"field": "arch"},
    }
    return [
        {
            "transform": [*kept, *_only("isValid(datum.y0)")],
            "mark": {"type": "area", "opacity": 0.15},
            "encoding": band,
        },
        {
            "transform": kept,
            "name": "front",
            "mark": {"type": "line", "strokeWidth": 1.8, "opacity": 0.8},
            "encoding": place | {"color": colour, "detail": {"field": "arch"}},
        },
    ]


def _floors(place: Spec) -> list[Spec]:
    """A dashed line at each floor; one that is off the scale has its value written at the edge."""
    inside, outside = "datum.floor && !datum.off", "datum.floor && datum.off"
    named = {
        "calculate": "datum.arch + ' ' + format(datum.y, '.3~g') + (datum.off ? (datum.y < datum.sy ? ' ↓' : ' ↑') : '')"
    }
    text: Spec = {"type": "text", "align": "right", "baseline": "bottom", "dy": -3}
    joined = "join(slice(pluck(datum.all, 'text'), 0, 3), ' · ') + (length(datum.all) > 3 ? ' …' : '')"
    dashed = {"type": "rule", "strokeDash": [4, 4], "opacity": 0.5}
    at_edge = {"x": {"value": "width"}, "y": _quantity("sy", None)}
    return [
        {"transform": _only(inside), "mark": dashed, "encoding": {"y": place["y"]}},
        {
            "transform": [*_only(inside), named | {"as": "text"}],
            "mark": text,
            "encoding": at_edge | {"text": {"field": "text"}},
        },
        {
            "transform": [
                *_only(outside), named | {"as": "text"},
                {"aggregate": [{"op": "values", "as": "all"}], "groupby": ["sy"]},
                {"calculate": f"'off the scale: ' + {joined}", "as": "line"},
            ],
            "mark": text,
            "encoding": at_edge | {"text": {"field": "line"}},
        },
    ]  # fmt: skip


def _references(place: Spec, colour: Spec, shape: Spec) -> list[Spec]:
    """Hollow points, each joined to the score that it belongs to."""
    only = _only("datum.kind == 'ref'")
    joined = {"x": place["x"], "y": place["y"], "y2": {"field": "to"}, "color": colour}
    return [
        {"transform": only, "mark": {"type": "rule", "strokeDash": [1, 3]}, "encoding": joined},
        {
            "transform": only,
            "mark": {"type": "point", "filled": False, "size": 60, "cursor": "pointer"},
            "encoding": place | {"color": colour, "shape": shape},
        },
    ]


def curve_spec(
    values: Sequence[Mapping[str, Any]], x: str, y: str, architectures: Sequence[str], *, size: tuple[int, int] = (520, 340),
    legend: bool = True,
) -> Spec:  # fmt: skip
    """A score over the place where it was taken: a line per SAE with intervals.

    Rows have a `kind`. "sae": `row`, `arch`, x, y, y0, y1. "ref", dotted, of one SAE: also `series`. "shared", gray: `series`, x,
    y. "level": y and `series`.
    """
    colour, shape = _by_architecture(architectures, legend)
    place = {"x": _quantity("x", x, log=_wide(values, "x", 1)), "y": _quantity("y", y)}
    sae, shared = _only("datum.kind == 'sae'"), _only("datum.kind == 'shared'")
    own = {"color": colour, "detail": {"field": "row"}}
    by_series = {
        "field": "series",
        "type": "nominal",
        "legend": None,
        "scale": {"range": [[6, 3], [2, 3], [8, 3, 2, 3], [1, 4]]},
    }
    bars = {"x": place["x"], "y": _quantity("y0", None), "y2": {"field": "y1"}, "color": colour}
    layers: list[Spec] = [
        {
            "transform": _only("datum.kind == 'ref'"),
            "mark": {"type": "line", "strokeDash": [2, 3], "strokeWidth": 1.2},
            "encoding": place | own | {"detail": [{"field": "row"}, {"field": "series"}]},
        },
        {"transform": [*sae, *_only("isValid(datum.y0)")], "mark": {"type": "rule", "opacity": 0.4}, "encoding": bars},
        {"transform": sae, "mark": {"type": "line", "strokeWidth": 1.6}, "encoding": place | own},
        {
            "transform": sae,
            "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1, "cursor": "pointer"},
            "encoding": place | {"color": colour, "shape": shape},
        },
        {
            "transform": shared,
            "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.6, "color": "currentColor"},
            "encoding": place | {"strokeDash": by_series},
        },
        *_end_labels(place),
        *_levels(),
    ]
    return _whole(values, layers, size)


def _end_labels(place: Spec) -> list[Spec]:
    """The names of shared lines at their right ends, above and below in turn: lines often end in nearly the same place."""
    last: list[Spec] = [
        {
            "window": [{"op": "row_number", "as": "back"}],
            "sort": [{"field": "x", "order": "descending"}],
            "groupby": ["series"],
        },
        *_only("datum.back == 1"),
        {"window": [{"op": "dense_rank", "as": "turn"}], "sort": [{"field": "y"}]},
    ]
    return [
        {
            "transform": [*_only("datum.kind == 'shared'"), *last, *_only(f"datum.turn % 2 == {odd}")],
            "mark": {
                "type": "text",
                "align": "left",
                "baseline": "top" if odd else "bottom",
                "dx": 4,
                "dy": 3 if odd else -3,
            },
            "encoding": place | {"text": {"field": "series"}},
        }
        for odd in (0, 1)
    ]


def _levels() -> list[Spec]:
    only, y = _only("datum.kind == 'level'"), _quantity("y", None)
    text = {"type": "text", "align": "left", "baseline": "bottom", "dx": 4, "dy": -3}
    return [
        {"transform": only, "mark": {"type": "rule", "strokeDash": [4, 4], "opacity": 0.6}, "encoding": {"y": y}},
        {"transform": only, "mark": text, "encoding": {"x": {"value": 0}, "y": y, "text": {"field": "series"}}},
    ]


def _whole(values: Sequence[Mapping[str, Any]], layers: list[Spec], size: tuple[int, int]) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "config": _CONFIG,
        "width": size[0],
        "height": size[1],
        "data": {"values": [dict(value) for value in values]},
        "layer": layers,
    }


def _only(test: str) -> list[Spec]:
    return [{"filter": test}]


def _quantity(field: str, title: str | None, log: bool = False) -> Spec:
    scale: Spec = {"type": "log", "nice": False, "padding": 16} if log else {"zero": False, "padding": 12}
    axis: Spec = {"format": ",~g", "tickCount": 6, "grid": False, "labelOverlap": True} if log else {"tickCount": 6}
    named = {} if title is None else {"title": title}
    return {"field": field, "type": "quantitative", "scale": scale, "axis": axis | named}


def _by_architecture(architectures: Sequence[str], legend: bool) -> tuple[Spec, Spec]:
    """Encodings of colour and shape, which share one legend."""
    looks = styles(architectures)
    base: Spec = {
        "field": "arch",
        "type": "nominal",
        "title": None,
        "legend": {"orient": "right", "symbolOpacity": 1} if legend else None,
    }
    colour = base | {"scale": {"domain": list(looks), "range": [colour for colour, _ in looks.values()]}}
    return colour, base | {"scale": {"domain": list(looks), "range": [marker for _, marker in looks.values()]}}


def _wide(values: Sequence[Mapping[str, Any]], field: str, ratio: float = 5) -> bool:
    """Whether the values want a logarithmic axis."""
    found = [value[field] for value in values if value.get(field) is not None]
    return bool(found) and min(found) > 0 and max(found) > ratio * min(found)


def compact(spec: Spec) -> str:
    """A specification as JSON for a page."""
    return json.dumps(spec, separators=(",", ":"), allow_nan=False)
