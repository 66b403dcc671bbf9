"""Training on activations that come without a language model: a planted model, or a file."""

from pathlib import Path

import numpy as np

from saebench.catalog import load_task
from saebench.errors import UsageError
from saebench.planting import SampleSpec
from saebench.sources.file import FileSource
from saebench.sources.planted_source import PlantedSource
from saebench.sources.source import ArraySource
from saebench.task import PlantedContent
from saebench.training.request import TrainRequest
from saebench.training.text import Text

# Samples of a planted model that an SAE sees unless --tokens is given (design: minutes a recipe on two cores).
_PLANTED_TOKENS = 3_000_000


def open_training_source(request: TrainRequest) -> ArraySource | None:
    """The source of a run without a language model; None for a run with one.

    Raises:
        UsageError: no such planted model, or a file that holds no activations.
    """
    if request.activations is not None:
        return FileSource(request.activations)
    if request.planted is None:
        return None
    task = load_task(request.planted)
    if not isinstance(task.content, PlantedContent):
        raise UsageError(f"--planted {request.planted}: a task of {task.kind}, expected a planted model (planted-1k)")
    length = task.content.samples.length
    contexts = -(-(request.tokens or _PLANTED_TOKENS) // (length * request.epochs)) + 1
    # Streams of their own: no SAE is measured on a sample that it was trained on.
    return PlantedSource(task.name, task.content.planted, SampleSpec(contexts, length), purpose="training")


def source_text(source: ArraySource) -> Text:
    """The source's rows as contexts of row numbers, none of them special."""
    contexts = source.contexts()
    return Text(contexts.token_ids.astype(np.int64), np.empty(0, dtype=np.int64), len(contexts))


def source_width(request: TrainRequest) -> int | None:
    """d_in of a run without a language model; None for a run with one."""
    if request.activations is not None:
        return int(FileSource(Path(request.activations)).x.shape[-1])
    if request.planted is not None:
        task = load_task(request.planted)
        return task.content.planted.d if isinstance(task.content, PlantedContent) else None
    return None
