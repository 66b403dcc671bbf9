"""The plugin contract. Each hook is called once and returns objects; no hook runs inside a loop.

A plugin is a module registered under the entry-point group `saebench` that implements any of these with `@hookimpl`.
`plugins/README.md` has a complete example.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pluggy

if TYPE_CHECKING:
    from saebench.comparison import Comparison
    from saebench.format import Format
    from saebench.judge import Judge
    from saebench.metric import Metric
    from saebench.recipe import Recipe
    from saebench.report import Report
    from saebench.task import TaskBuilder

hookspec = pluggy.HookspecMarker("saebench")
hookimpl = pluggy.HookimplMarker("saebench")


class ModelAlias(Protocol):
    """A short name for a model on this machine."""

    name: str

    def locate(self) -> Path:
        """The model's folder or GGUF file; a SaebenchError with the command that installs it."""
        ...


@hookspec
def saebench_formats() -> "Sequence[Format]":
    """Checkpoint formats: objects with `name`, `matches(path)` and `load(path, options) -> SAE`."""
    raise AssertionError("a specification is never called")


@hookspec
def saebench_metrics() -> "Sequence[type[Metric]]":
    """Metrics: subclasses of `saebench.Metric`, instantiated once per SAE."""
    raise AssertionError("a specification is never called")


@hookspec
def saebench_judges() -> "Sequence[type[Judge]]":
    """Judges: subclasses of `saebench.judge.Judge`, instantiated for `--judge name:model`."""
    raise AssertionError("a specification is never called")


@hookspec
def saebench_models() -> "Sequence[ModelAlias]":
    """Model aliases: objects with `name` and `locate()`, the path of the weights on this machine."""
    raise AssertionError("a specification is never called")


@hookspec
def saebench_recipes() -> "Sequence[Recipe]":
    """Training recipes: objects with `name`, `settings` and `loss(sae, batch, settings) -> Loss`."""
    raise AssertionError("a specification is never called")


@hookspec
def saebench_reports() -> "Sequence[Report]":
    """Renderers of a leaderboard: objects with `name` and `render(boards) -> str`, or bytes."""
    raise AssertionError("a specification is never called")


@hookspec
def saebench_comparisons() -> "Sequence[Comparison]":
    """Comparisons of several SAEs: objects with `name`, `version`, `about` and `compare(saes, shared) -> Compared`."""
    raise AssertionError("a specification is never called")


@hookspec
def saebench_tasks() -> "Sequence[TaskBuilder]":
    """Tasks: objects with `name`, `version` and `build(tokenizer) -> Task`; a `Task` is one itself."""
    raise AssertionError("a specification is never called")
