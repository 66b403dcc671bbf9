"""Finds plugins, isolates the broken ones, and says why they are broken.

A plugin that cannot be imported, misspells a hook, raises, or returns something that is not what the hook promises is
left out whole and reported by name; `strict` makes it an error.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from saebench import hookspecs
from saebench.errors import SaebenchError, one_line, unknown

if TYPE_CHECKING:
    from saebench.comparison import Comparison
    from saebench.format import Format
    from saebench.hookspecs import ModelAlias
    from saebench.judge import Judge
    from saebench.metric import Metric
    from saebench.recipe import Recipe
    from saebench.report import Report
    from saebench.task import TaskBuilder

GROUP = "saebench"

# kind -> (its hook, the attributes that each object must have)
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "formats": ("saebench_formats", ("name", "matches", "load")),
    "metrics": ("saebench_metrics", ("name", "version", "needs", "update", "merge", "units", "scores")),
    "judges": ("saebench_judges", ("name", "capabilities", "concurrency", "identity", "open", "complete")),
    "models": ("saebench_models", ("name", "locate")),
    "recipes": ("saebench_recipes", ("name", "architecture", "settings", "loss", "activation")),
    "reports": ("saebench_reports", ("name", "render")),
    "comparisons": ("saebench_comparisons", ("name", "version", "about", "compare")),
    "tasks": ("saebench_tasks", ("name", "version", "build")),
}


@dataclass(frozen=True)
class Plugin:
    """One entry point with its distribution, the objects it provides, or the error for which it was skipped."""

    name: str
    module: str
    distribution: str
    version: str
    provides: tuple[str, ...] = ()
    error: str | None = None


@dataclass
class Registry:
    """The objects of all plugins, by kind and name."""

    plugins: list[Plugin] = field(default_factory=list)
    formats: "dict[str, Format]" = field(default_factory=dict)
    metrics: "dict[str, type[Metric]]" = field(default_factory=dict)
    judges: "dict[str, type[Judge]]" = field(default_factory=dict)
    models: "dict[str, ModelAlias]" = field(default_factory=dict)
    recipes: "dict[str, Recipe]" = field(default_factory=dict)
    reports: "dict[str, Report]" = field(default_factory=dict)
    comparisons: "dict[str, Comparison]" = field(default_factory=dict)
    tasks: "dict[str, TaskBuilder]" = field(default_factory=dict)

    @property
    def broken(self) -> list[Plugin]:
        return [p for p in self.plugins if p.error]

    def kind(self, kind: str) -> dict[str, Any]:
        found: dict[str, Any] = getattr(self, kind)
        return found

    def get(self, kind: str, name: str) -> Any:
        """The object of that kind and name.

        Raises:
            UsageError: unknown name; names the nearest.
        """
        found = self.kind(kind)
        if name not in found:
            raise unknown(kind.removesuffix("s"), name, found)
        return found[name]


def _misspelt(host: pluggy.PluginManager, module: Any) -> str | None:
    """An error message for the first function marked as a hook whose name is unknown."""
    known = [hook for hook, _ in KINDS.values()]
    for name in dir(module):
        try:
            marked = host.parse_hookimpl_opts(module, name) is not None
        except Exception:  # reading an attribute may raise; such an attribute is no hook
            continue
        if marked and name not in known:
            return str(unknown("hook", name, known))
    return None


def _require_code(host: pluggy.PluginManager, module: Any) -> None:
    """Raise ImportError for a module without hooks: most often a folder of the plugin's name that shadows it."""
    if getattr(module, "__file__", None) is None and getattr(module, "__path__", None) is not None:
        folders = ", ".join(map(str, module.__path__))
        raise ImportError(f"the folder {folders} shadows it: run the command from another folder, or rename that one")
    if not any(
        hasattr(module, hook) and host.parse_hookimpl_opts(module, hook) is not None for hook, _ in KINDS.values()
    ):
        raise ImportError(
            f"{getattr(module, '__file__', module)} implements no hook of saebench: mark one with @hookimpl"
        )


def _collect(host: pluggy.PluginManager, module: Any) -> list[tuple[str, Any]]:
    """Checked (kind, object) pairs of one registered plugin."""
    found: list[tuple[str, Any]] = []
    for kind, (hook, attributes) in KINDS.items():
        for impl in getattr(host.hook, hook).get_hookimpls():
            if impl.plugin is not module:
                continue
            for item in impl.function():
                missing = [a for a in attributes if not hasattr(item, a)]
                if missing:
                    raise TypeError(f"{hook} returned {item!r}, which has no {', '.join(missing)}")
                if not isinstance(item.name, str) or not item.name:
                    raise TypeError(f"{hook} returned {item!r}, whose name is {item.name!r} and not a word")
                if kind == "metrics":
                    _check_metric_class(item)
                if kind == "tasks":
                    _check_task(item)
                if any(kind == k and item.name == other.name for k, other in found):
                    raise ValueError(f"{hook} returned two named '{item.name}'")
                found.append((kind, item))
    return found


def _check_metric_class(metric: Any) -> None:
    """Check the attributes of a metric that records and file names rely on."""
    from saebench.metric import NEEDS

    if not re.fullmatch("[A-Za-z0-9_-]{1,80}", metric.name):
        raise TypeError(f"metric name '{metric.name}' may hold letters, digits, '-' and '_' only, at most 80 of them")
    if type(metric.version) is not int or not 1 <= metric.version < 2**31:
        raise TypeError(f"metric '{metric.name}' has version {metric.version!r}, expected a whole number from 1")
    about = getattr(metric, "about", {})
    if not isinstance(about, Mapping) or not all(isinstance(caption, str) for caption in about.values()):
        raise TypeError(f"metric '{metric.name}': about should be a dictionary with a sentence for each key")
    defaults = getattr(metric, "settings", None)
    if defaults is not None and not (is_dataclass(defaults) and vars(type(defaults))["__dataclass_params__"].frozen):
        raise TypeError(
            f"metric '{metric.name}': settings should be a frozen dataclass with defaults, not {defaults!r}"
        )
    if strange := sorted(set(metric.needs) - NEEDS):
        raise TypeError(
            f"metric '{metric.name}' needs '{strange[0]}', which no batch has; known: {', '.join(sorted(NEEDS))}"
        )


def _check_task(task: Any) -> None:
    """Check the attributes of a task that records and file names rely on."""
    from saebench.task import NAME, announced, builtin_tasks

    if not re.fullmatch(NAME, task.name):
        raise TypeError(
            f"task name '{task.name}' may hold letters, digits, '-' and '_', after its suite and '/' if any"
        )
    if type(task.version) is not int or task.version < 1:
        raise TypeError(f"task '{task.name}' has version {task.version!r}, expected a whole number from 1")
    if task.name in builtin_tasks():
        raise ValueError(f"task '{task.name}' is already taken")
    if not all(isinstance(name, str) for name in announced(task).metrics):
        raise TypeError(f"task '{task.name}': metrics should be a tuple of names")


def build(points: Iterable[EntryPoint]) -> Registry:
    """A registry of the given entry points; a faulty plugin becomes an error entry and never raises."""
    host = pluggy.PluginManager(GROUP)
    host.add_hookspecs(hookspecs)
    registry = Registry()
    for point in points:
        dist = point.dist
        about = (point.name, point.value, dist.name if dist else "?", dist.version if dist else "?")
        try:
            module = point.load()
            if problem := _misspelt(host, module):
                raise TypeError(problem)
            _require_code(host, module)
            host.register(module, name=f"{about[2]}:{point.name}")
            items = _collect(host, module)
            for kind, item in items:
                if item.name in registry.kind(kind):
                    raise ValueError(f"{kind.removesuffix('s')} '{item.name}' is already taken")
        except (Exception, SystemExit) as error:  # importing a plugin may raise anything
            reason = f"{type(error).__name__}: {one_line(error)}"
            registry.plugins.append(Plugin(*about, error=reason))
            continue
        for kind, item in items:
            registry.kind(kind)[item.name] = item
        provides = tuple(f"{kind.removesuffix('s')} {item.name}" for kind, item in items)
        registry.plugins.append(Plugin(*about, provides=provides))
    return registry


def _sorted_points() -> list[EntryPoint]:
    """Built-in entry points first, so that no plugin takes a built-in name; then sorted by name."""

    def order(point: EntryPoint) -> tuple[bool, str, str]:
        dist = point.dist.name if point.dist else ""
        return (dist != "saebench", dist, point.name)

    unique = {(p.name, p.value): p for p in entry_points(group=GROUP)}
    return sorted(unique.values(), key=order)


@cache
def installed() -> Registry:
    """The cached registry of installed plugins, without warnings of broken ones.

    Raises:
        SaebenchError: saebench itself is not installed.
    """
    points = _sorted_points()
    if not points:
        raise SaebenchError("no plugin is installed, not even saebench's own: pip install -e . (or the wheel)")
    return build(points)


def registry(strict: bool = False) -> Registry:
    """The registry of installed plugins; warns of each broken one once.

    Raises:
        SaebenchError: a plugin is broken and `strict` is set; or saebench itself is not installed.
    """
    found = installed()
    for plugin in found.broken:
        message = f"plugin '{plugin.name}' ({plugin.distribution} {plugin.version}) was left out: {plugin.error}"
        if strict:
            raise SaebenchError(message)
        _warn_once(message)
    return found


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)
