"""Presentation of a metric's scores: headlines, captions and figures, declared by metrics and drawn by boards.

A record stores the presentation of each of its metrics, so that a board renders without the plugin installed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, TypeAdapter, ValidationError

from saebench.errors import SaebenchError, one_line

Key = Annotated[str, Field(min_length=1, max_length=200)]
Label = Annotated[str, Field(max_length=200)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Axis:
    """The score that measures how sparse an SAE is: boards draw, sort and filter by it.

    Attributes:
        key: of a score that is no point of a curve.
        label: label of the axis.
    """

    key: Key
    label: Label


@dataclass(frozen=True)
class Reference:
    """A score that a figure's score is read against: a control, a ceiling, a floor.

    Attributes:
        key: a curve, or a single value, drawn as a level.
        label: text in the legend.
        shared: equal for all SAEs of a board (a probe on x itself), so drawn once; otherwise once per SAE (its own control).
    """

    key: Key
    label: Label
    shared: bool = False


@dataclass(frozen=True)
class Figure:
    """One picture of a score, with its interval.

    Attributes:
        key: the score that is drawn.
        against: "sparsity": a point per SAE, over the board's sparsity axis, drawn where a table shows the score;
            "at": a line per SAE, over the places of the score's curve.
        x: label of the horizontal axis of a curve.
        y: label of the vertical axis; empty: the key and the unit.
        references: scores to read it against.
        worthless: score of a worthless SAE (a gain of 0), drawn as a level; None for no level.
        worthless_label: text for that level in the legend.
    """

    key: Key
    against: Literal["sparsity", "at"] = "sparsity"
    x: Label = ""
    y: Label = ""
    references: Annotated[tuple[Reference, ...], Field(max_length=20)] = ()
    worthless: Finite | None = None
    worthless_label: Label = ""


class Presented(Protocol):
    """The declarations of a metric class; see `saebench.metric.Metric`."""

    headlines: ClassVar[tuple[str, ...]]
    about: ClassVar[Mapping[str, str]]
    figures: ClassVar[tuple[Figure, ...]]
    sparsity: ClassVar[Axis | None]
    smallest: ClassVar[Mapping[str, float]]


@dataclass(frozen=True)
class Presentation:
    """The presentation of one version of a metric.

    Attributes:
        headlines: keys shown by default; empty: all scores with a direction.
        about: a caption per key; `{n:,}` in it is the score's n.
        figures: figures; a headline without one is drawn over the sparsity axis.
        sparsity: the score that serves as the sparsity axis, if any.
        smallest: by key, the smallest difference of interest between two SAEs, in the score's unit.
    """

    headlines: Annotated[tuple[Key, ...], Field(max_length=200)] = ()
    about: Annotated[dict[Key, Label], Field(max_length=2000)] = field(default_factory=dict)
    figures: Annotated[tuple[Figure, ...], Field(max_length=200)] = ()
    sparsity: Axis | None = None
    smallest: Annotated[dict[Key, Annotated[Finite, Field(ge=0)]], Field(max_length=2000)] = field(default_factory=dict)

    @classmethod
    def of(cls, metric: type[Presented]) -> "Presentation":
        """The presentation that a metric class declares."""
        smallest = {key: float(size) for key, size in metric.smallest.items()}
        return cls(tuple(metric.headlines), dict(metric.about), tuple(metric.figures), metric.sparsity, smallest)

    @classmethod
    def read(cls, stored: Any) -> "Presentation":
        """Validate a presentation stored in a record.

        Raises:
            SaebenchError: invalid; names the key and the problem.
        """
        try:
            return _ADAPTER.validate_python(stored)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part)[:40] for part in first["loc"]) or "presentation"
            raise SaebenchError(f"presentation: {place}: {one_line(Exception(first['msg']))}") from error

    def to_json(self) -> dict[str, Any]:
        """Plain values without defaults, for `read`.

        Raises:
            SaebenchError: a declared value has the wrong type or is too long.
        """
        stored = asdict(self)
        Presentation.read(stored)
        stored["figures"] = [_lean(figure) for figure in stored["figures"]]
        return _lean(stored)


def _lean(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Drop empty values and turn tuples into lists."""
    kept = {k: list(v) if isinstance(v, tuple) else v for k, v in stored.items()}
    return {k: v for k, v in kept.items() if v not in (None, "", [], {})}


_ADAPTER = TypeAdapter(Presentation)  # unknown keys are ignored: a newer saebench may write more
