"""The audit of metrics: panels, ordinary runs, cards."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

from saebench.audit.cards import Judged
from saebench.audit.measure import Budget, measure, reseeded
from saebench.audit.panel import Panel, model_panel, planted_panel
from saebench.cache import cache_folder
from saebench.catalog import load_task
from saebench.errors import SaebenchError, UsageError, one_line
from saebench.metric import Metric
from saebench.presentation import Presentation
from saebench.registry import registry
from saebench.reliability import Card, ScoreCard
from saebench.report import Column
from saebench.running.plan import wanted_metrics
from saebench.running.reporting import Reporter
from saebench.running.request import Request
from saebench.task import Task, builtin_tasks
from saebench.training.loop import Reporter as TrainReporter
from saebench.training.plan import read_requests, with_options
from saebench.training.request import TrainRequest, require_whole

# A language model's SAEs where none are named: those of a clone of the project.
_SAES = Path("results/baselines")
_TASK = "fidelity"


@dataclass(frozen=True)
class Size:
    """How much an audit measures.

    Attributes:
        tokens: samples that the planted panel trains on; None is the file's own number.
        limit: contexts that members are measured on; None is all of the task.
    """

    tokens: int | None
    limit: int | None


SMALL = Size(tokens=300_000, limit=64)
FULL = Size(tokens=None, limit=None)


@dataclass(frozen=True)
class AuditRequest:
    """Everything that `saebench audit` is given.

    Attributes:
        metrics: names; empty: every metric that some panel can measure.
        small: less training and fewer contexts: under an hour on two cores.
        saes: trained SAEs of one language model, for metrics that need one.
        task: theirs; None is the first built-in task that has the metric.
        results: cards are written to its folder `reliability`.
        seed: of the degraded copies.
        panel: the training file of the planted panel; None is `tasks/train/planted-panel.toml`.
        size: None follows `small`.
    """

    metrics: Sequence[str] = ()
    small: bool = False
    saes: Sequence[Path] = ()
    task: str | None = None
    results: Path = Path("results")
    seed: int = 0
    panel: Path | None = None
    size: Size | None = None

    def command(self, metric: str) -> str:
        """The command line that makes a metric's card."""
        words = ["saebench", "audit", "--metric", metric, *(["--small"] if self.small else [])]
        words += [word for path in self.saes for word in ("--sae", str(path))]
        words += ["--task", self.task] if self.task else []
        words += ["--seed", str(self.seed)] if self.seed else []
        return shlex.join(words)


@dataclass
class _Audit:
    """Panels are made when the first metric needs them."""

    request: AuditRequest
    reporter: Reporter
    trainer: TrainReporter
    folder: Path
    size: Size
    panels: dict[str, Panel] = field(default_factory=dict)

    @property
    def budget(self) -> Budget:
        return Budget(self.folder / "records", self.size.limit)

    @property
    def panel_file(self) -> Path:
        return self.request.panel or Path(str(files("saebench.tasks"))) / "train" / "planted-panel.toml"

    def training(self) -> TrainRequest:
        """The run that makes the planted panel."""
        return with_options(read_requests(self.panel_file)[0], {"tokens": self.size.tokens})

    def planted(self) -> Panel:
        if "planted" not in self.panels:
            request = self.training()
            folder = self.folder / f"{self.panel_file.stem}-{request.tokens}"
            self.panels["planted"] = planted_panel(request, folder, self.request.seed, self.trainer)
        return self.panels["planted"]

    def language(self, task: str) -> Panel:
        if task not in self.panels:
            saes = self.request.saes or sorted(path for path in _SAES.glob("*") if path.is_dir())
            self.panels[task] = model_panel(saes, task, self.request.seed)
        return self.panels[task]

    def card(self, metric: type[Metric]) -> Card:
        """Measure a metric on every panel that it runs on; a score's card is of the first that has it."""
        scores: dict[str, ScoreCard] = {}
        panels = {}
        for panel in self._panels(metric):
            panels[panel.name] = dict(panel.about) | {"contexts": self.size.limit or "all"}
            for card in self._cards(panel, metric):
                scores.setdefault(card.key, card)
        return Card(
            metric.name,
            metric.version,
            self.request.command(metric.name),
            self.request.seed,
            panels,
            tuple(scores.values()),
        )

    def _panels(self, metric: type[Metric]) -> Iterator[Panel]:
        """Planted features where the metric runs on them; a language model where it does not, or has more scores there."""
        runs = _runs_on(metric, load_task(str(self.training().planted)))
        if runs:
            yield self.planted()
            if not metric.optional or not (self.request.saes or _SAES.is_dir()):
                return
        task = self.request.task or _task_of(metric)
        if not _runs_on(metric, load_task(task)):
            lacking = ", ".join(sorted(metric.needs))
            raise UsageError(f"metric '{metric.name}' needs {lacking}, which task {task} has not: name another --task")
        yield self.language(task)

    def _cards(self, panel: Panel, metric: type[Metric]) -> Iterator[ScoreCard]:
        truth = self._truth() if "planted" in panel.options else None
        measured = measure(panel, metric.name, self.budget, self.reporter, truth.metric if truth else None)
        reseeds = reseeded(panel, metric.name, self.budget, self.reporter) if metric.seeded else None
        known = None
        if truth is not None:
            other = measured if truth.metric == metric.name else type(measured)(panel, truth.metric, measured.records)
            values = {m.name: other.value(m, truth) for m in panel.members}
            known = {name: value for name, value in values.items() if value is not None}
        headlines = Presentation.of(metric).headlines
        for column in measured.columns():
            card = Judged(measured, column).card(reseeds, known)
            yield replace(card, headline=column.key in headlines or (not headlines and column.direction is not None))

    def _truth(self) -> Column | None:
        """The score of the planted task that declares itself the truth."""
        plan = self.training()
        for name in load_task(str(plan.planted)).metrics:
            metric = registry().get("metrics", name)
            if metric.truth is not None:
                return Column(name, metric.version, metric.truth, None, "", None)
        return None


def audit(request: AuditRequest, reporter: Reporter, trainer: TrainReporter) -> Iterator[Card]:
    """The card of each metric, written below the results folder as soon as it is made.

    Records and panels are kept in the cache folder, so an audit that was interrupted goes on.

    Raises:
        UsageError: a metric that no panel can measure, or SAEs of different models.
        SaebenchError: a metric failed on every SAE.
    """
    require_whole("--seed", request.seed, 0)
    size = request.size or (SMALL if request.small else FULL)
    known = registry().metrics
    folder = cache_folder() / "audit"
    state = _Audit(request, reporter, trainer, folder, size)
    asked = [registry().get("metrics", name) for name in request.metrics]
    for metric in asked:
        if metric.asks:
            raise UsageError(
                f"metric '{metric.name}' asks a judge, whose replies cannot be drawn again for every SAE of a panel: "
                "audit another metric"
            )
    for metric in asked or [metric for _, metric in sorted(known.items()) if not metric.asks]:
        try:
            card = state.card(metric)
        except SaebenchError as error:
            if asked:
                raise
            reporter.message(f"{metric.name}: no card: {one_line(error)}")
            continue
        card.write(request.results)
        yield card


def _runs_on(metric: type[Metric], task: Task) -> bool:
    """Whether a task has all that the metric must have."""
    request = Request(saes=[], metrics=[metric.name])
    try:
        return metric.name in wanted_metrics(request, task)
    except UsageError:
        return False


def _task_of(metric: type[Metric]) -> str:
    """The first built-in task that measures the metric from files that every installation has; else the text of `fidelity`."""
    for name in builtin_tasks():
        task = load_task(name)
        if metric.name in task.metrics and task.kind in ("contexts", "labels", "prompts") and _vendored(task):
            return name
    return _TASK


def _vendored(task: Task) -> bool:
    return task.corpus.file is not None and not task.corpus.fetched
