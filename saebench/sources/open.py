"""Open the source of a task with activations of its own."""

from pathlib import Path

from saebench.errors import UsageError
from saebench.sources.file import FileSource
from saebench.sources.labels import read_labels
from saebench.sources.planted_source import PlantedSource
from saebench.sources.source import ArraySource
from saebench.sources.weights import WeightsSource
from saebench.task import ActivationContent, PlantedContent, Task, WeightsContent


def open_source(task: Task) -> ArraySource | None:
    """The task's source; None if the task needs a language model.

    Raises:
        UsageError: a file is missing, changed or malformed, or does not fit its labels or grid.
    """
    content = task.content
    if isinstance(content, PlantedContent):
        return PlantedSource(task.name, content.planted, content.samples)
    if isinstance(content, WeightsContent):
        return WeightsSource()
    if not isinstance(content, ActivationContent):
        return None
    spec = content.activations
    source = FileSource(task.folder / spec.file)
    if source.file_sha256 != spec.sha256:
        raise UsageError(f"task {task.label}: {spec.file} has changed since the task was made: its sha256 differs")
    if spec.grid is not None and spec.grid[0] * spec.grid[1] != source.x.shape[1]:
        height, width = spec.grid
        raise UsageError(
            f"--grid {height},{width} has {height * width} places, but {spec.file} has {source.x.shape[1]} positions"
        )
    source.grid = spec.grid
    if spec.labels is not None:
        source.labels = read_labels(task.folder / Path(spec.labels), spec, len(source.x))
    return source
