"""The setting of a measurement: one task on one language model, shared by all SAEs measured there."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from saebench import ranks
from saebench.cache import cache_folder
from saebench.corpus import Contexts, special_ids, task_contexts, token_contexts
from saebench.forward.knowledge import with_filter
from saebench.judging.session import JudgeSession
from saebench.metric import Metric
from saebench.models import default_device, default_dtype, load_model
from saebench.running.plan import named_by_checkpoint
from saebench.running.reporting import Reporter
from saebench.running.request import Request
from saebench.running.state import StateFolder
from saebench.source import Source
from saebench.sources.open import open_source
from saebench.sources.source import ArraySource
from saebench.subject import Subject
from saebench.task import Task


class Stopwatch:
    """Seconds by stage.

    Attributes:
        seconds: stage -> seconds, summed over its repetitions.
    """

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Setting:
    """A task, a loaded model and the text to run.

    Attributes:
        metrics: requested metric classes by name.
        judge: the session of metrics that ask a judge; None where no metric does.
        clock: seconds of loading the model and the text, then of calibration.
        state: saved states of unfinished passes.
        rank, world: this process and the number of processes.
    """

    request: Request
    task: Task
    metrics: Mapping[str, type[Metric]]
    subject: Source
    contexts: Contexts
    judge: JudgeSession | None
    reporter: Reporter
    clock: Stopwatch
    state: StateFolder
    rank: int
    world: int


def load_source(
    request: Request, tasks: Sequence[Task], model: str, reporter: Reporter
) -> tuple[Source, dict[str, float]]:
    """The activation source: a task's own, else the language model on this rank's device; and the seconds of loading it."""
    for task in tasks:
        if source := open_source(task):
            return source, {}
    device = ranks.own_device(request.device or default_device())
    clock = Stopwatch()
    reporter.message(f"loading {model}")
    with clock.timed("load_model"), named_by_checkpoint(request, model):
        loaded = load_model(
            model, revision=request.revision, dtype=request.dtype or default_dtype(device), device=device
        )
    return Subject(loaded), clock.seconds


def make_setting(
    request: Request,
    task: Task,
    metrics: Mapping[str, type[Metric]],
    subject: Source,
    seconds: Mapping[str, float],
    reporter: Reporter,
    judge: JudgeSession | None,
) -> Setting:
    """Read the task's text for this model.

    Args:
        seconds: loading times of the model, by stage.

    Raises:
        SaebenchError: the text cannot be read.
    """
    clock = Stopwatch(seconds)
    with clock.timed("text"):
        task = task.build(subject.loaded.tokenizer)
        contexts = _contexts(request, task, subject)
    if contexts.prompts is not None and isinstance(subject, Subject):
        with clock.timed("knowledge"):
            contexts = with_filter(subject, contexts, task, cache_folder())
    if task.contexts.bos is True and request.tokens is None and not contexts.bos and not request.no_bos:
        reporter.message(
            f"warning: {task.label} begins contexts with BOS and this model's tokenizer has none: measured without"
        )
    state = StateFolder(request.folder)
    return Setting(request, task, metrics, subject, contexts, judge, reporter, clock, state, *ranks.start())


def _contexts(request: Request, task: Task, subject: Source) -> Contexts:
    if isinstance(subject, ArraySource):
        return subject.contexts().head(request.limit)
    assert isinstance(subject, Subject)
    tokenizer = subject.loaded.tokenizer
    if request.tokens is None:
        return task_contexts(task, tokenizer, bos=not request.no_bos).head(request.limit)
    specials = special_ids(tokenizer, subject.model.config.get_text_config())
    vocabulary = subject.model.get_input_embeddings().weight.shape[0]
    return token_contexts(Path(request.tokens), vocabulary, specials.tolist()).head(request.limit)
