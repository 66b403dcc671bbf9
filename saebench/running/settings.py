"""Settings of metrics: from a task and from `--set METRIC.NAME=VALUE` to metric classes that hold them."""

import json
import math
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from saebench.errors import UsageError, one_line, unknown
from saebench.metric import Metric
from saebench.text import clean

Given = Mapping[str, Mapping[str, Any]]


class Unparsed(str):
    """A value from the command line: JSON if it parses as JSON of the setting's type, else text."""


def read_settings(asked: Sequence[str] | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Values by metric and setting.

    Args:
        asked: texts "metric.name=value"; or from Python {"metric.name": value} or {"metric": {"name": value}}.

    Raises:
        UsageError: not of that form, or one setting twice.
    """
    if isinstance(asked, str):
        asked = [asked]
    found: dict[str, dict[str, Any]] = {}
    for place, value in _pairs(asked):
        metric, dot, name = place.partition(".")
        if not (metric and dot and name):
            raise UsageError(f"--set {clean(place)}: name a metric and its setting, like --set autointerp.latents=50")
        if name in found.setdefault(metric, {}):
            raise UsageError(f"--set {clean(place)} is given twice: give it once")
        found[metric][name] = value
    return found


def _pairs(asked: Sequence[str] | Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    if not isinstance(asked, Mapping):
        for text in asked:
            place, equals, value = text.partition("=")
            if not equals:
                raise UsageError(f"--set {clean(text)}: write METRIC.NAME=VALUE")
            yield place.strip(), Unparsed(value)
        return
    for place, value in asked.items():
        if isinstance(value, Mapping) and "." not in place:
            yield from ((f"{place}.{name}", inner) for name, inner in value.items())
        else:
            yield str(place), value


def require_known(given: Given, metrics: Collection[str]) -> None:
    """Raise UsageError where a setting belongs to a metric that is not measured."""
    for metric in given:
        if metric not in metrics:
            problem = unknown("metric", metric, metrics)
            raise UsageError(f"--set {clean(metric)}.{clean(next(iter(given[metric])))}: {problem}")


def configure(metric: type[Metric], given: Mapping[str, Any]) -> type[Metric]:
    """The metric class with these settings; the class itself where all are defaults.

    Raises:
        UsageError: the metric has no such setting, or a value of another type.
    """
    if not given:
        return metric
    defaults = metric.settings
    if not is_dataclass(defaults) or isinstance(defaults, type):
        raise UsageError(f"metric '{metric.name}' has no settings: leave --set {metric.name}.{next(iter(given))} out")
    names = {f.name for f in fields(defaults)}
    for name in given:
        if name not in names:
            raise unknown(f"setting of metric '{metric.name}'", clean(name), names)
    values = asdict(defaults)
    for name, value in given.items():
        values[name] = _typed(metric, name, value)
    try:
        settings = type(defaults)(**values)
    except (ValueError, TypeError) as error:  # raised by the dataclass's own checks
        raise UsageError(f"metric '{metric.name}': settings {_shown(given)}: {one_line(error)}") from error
    changed = {n: v for n, v in plain(settings).items() if v != plain(defaults)[n]}
    if not changed:
        return metric
    own = {
        "settings": settings,
        "changed_settings": {**metric.changed_settings, **changed},
        "__module__": metric.__module__,
    }
    configured: type[Metric] = types.new_class(metric.__name__, (metric,), exec_body=lambda space: space.update(own))
    return configured


def plain(settings: Any) -> dict[str, Any]:
    """The values of a settings object, as JSON has them."""
    values: dict[str, Any] = TypeAdapter(type(settings)).dump_python(settings, mode="json")
    return values


def _typed(metric: type[Metric], name: str, value: Any) -> Any:
    """The value, converted to the type of the setting.

    Raises:
        UsageError: another type, or not finite.
    """
    kind = TypeAdapter(_types(type(metric.settings))[name])
    tries = [value]
    if isinstance(value, Unparsed):
        try:
            tries = [json.loads(value), str(value)]
        except ValueError:
            tries = [str(value)]
    problem = ""
    for attempt in tries:
        try:
            # Strict for numbers and truth values: true is not 1. Lax for text and lists: a path, a tuple.
            found = kind.validate_python(attempt, strict=isinstance(attempt, int))
        except ValidationError as error:
            problem = problem or str(error.errors()[0]["msg"]).replace("Input should be ", "")
            continue
        if not _is_finite(found):
            problem = "a finite number"
            continue
        return found
    raise UsageError(f"--set {metric.name}.{name}={clean(value, 60)}: expected {problem}")


def _is_finite(value: Any) -> bool:
    """Whether no number in a value, nested lists included, is infinite or NaN."""
    if isinstance(value, float):
        return math.isfinite(value)
    return all(_is_finite(part) for part in value) if isinstance(value, list | tuple) else True


def _types(settings: type) -> dict[str, Any]:
    return get_type_hints(settings)


def _shown(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={clean(value, 60)}" for name, value in given.items())
