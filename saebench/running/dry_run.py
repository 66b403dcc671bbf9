"""`--dry-run`: the passes of a run and their cost, without running the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from saebench.arithmetic.speed import duration, matrix_speed
from saebench.corpus import open_tokens, task_contexts
from saebench.errors import SaebenchError, UsageError, one_line
from saebench.metric import Metric
from saebench.models import DTYPES, default_device, default_dtype, load_config, load_tokenizer, require_length
from saebench.running.cost import Cost, ModelSize, Streams, hook_width, memory_bytes, model_size, pass_cost
from saebench.running.judge import JudgePlan, plan_judge
from saebench.running.passes import default_batch, edit_rows, together
from saebench.running.plan import Job, all_wanted, make_jobs, named_by_checkpoint, read_tasks
from saebench.running.reporting import Failure, Reporter, Silent
from saebench.running.request import Request, check_request
from saebench.sources.open import open_source
from saebench.task import MODEL_FREE, ActivationContent, Task


@dataclass(frozen=True)
class Group:
    """SAEs that would share passes.

    Attributes:
        memory: bytes.
        seconds: of the passes, at least: all of `cost` at the speed of this machine's matrix products. Four runs of
            SmolLM2-135M on two CPU cores (1 and 3 SAEs, float32 and bfloat16, with losses and without) took 1.3 to 1.8
            times that; loading, scores and a judge's calls come on top.
    """

    model: str
    hook: str
    saes: list[str]
    passes: int
    cost: Cost
    memory: float
    seconds: float


@dataclass(frozen=True)
class Text:
    """The text of a run: contexts of at most `length` tokens, `mean` on average.

    Attributes:
        bound: whether the numbers are upper bounds: a dry run reads no labelled texts of the hub.
    """

    contexts: int
    length: int
    mean: float
    bound: bool = False

    def __str__(self) -> str:
        if self.bound:
            return f"at most {self.contexts} contexts of at most {self.length} tokens"
        if self.mean == self.length:
            return f"{self.contexts} contexts of {self.length} tokens"
        return f"{self.contexts} contexts of {self.mean:.1f} tokens on average (at most {self.length})"


@dataclass(frozen=True)
class DryRun:
    """The plan of a run: its text, passes, failures and judge calls.

    Attributes:
        undeclared: metrics whose experiments have no declared cost, so that `seconds` leaves them out.
        without_model: SAEs of a task that brings its own activations, or reads weights alone; their cost is not estimated.
    """

    task: str
    metrics: list[str]
    text: Text
    groups: list[Group]
    failures: list[Failure]
    judge: JudgePlan | None = None
    undeclared: Sequence[str] = ()
    without_model: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values: costs in multiply-adds, memory in bytes, time in seconds."""
        groups = [
            {"model": g.model, "hook": g.hook, "saes": g.saes, "passes": g.passes, "tokens": g.cost.tokens,
             "multiply_adds": g.cost.stages, "forwards": g.cost.forwards, "seconds": g.seconds, "memory_bytes": g.memory}
            for g in self.groups
        ]  # fmt: skip
        failures = [{"name": f.name, "error": str(f.error)} for f in self.failures]
        judge = {"judge": self.judge.to_json()} if self.judge else {}
        free = {"without_model": list(self.without_model)} if self.without_model else {}
        return {"task": self.task, "metrics": self.metrics, "contexts": self.text.contexts, "length": self.text.length,
                "groups": groups, "failures": failures, "undeclared": list(self.undeclared), **free, **judge}  # fmt: skip

    def lines(self) -> list[str]:
        """The same for people."""
        out = [f"task {self.task}: {self.text}; metrics {', '.join(self.metrics)}"]
        for g in self.groups:
            out.append(f"{g.model}, {g.hook}: {len(g.saes)} SAE(s) in {g.passes} pass(es): {', '.join(g.saes)}")
            wide = max(30, *map(len, g.cost.stages))
            for stage, macs in g.cost.stages.items():
                out.append(f"  {stage:<{wide}} {macs / g.cost.forward:6.2f} forwards  {2 * macs / 1e12:10.2f} TFLOP")
            out.append(f"  {'total':<{wide}} {g.cost.forwards:6.2f} forwards of {g.cost.tokens:,} tokens each")
            out.append(
                f"  time at least about {duration(g.seconds)}: all of it at the speed of this machine's matrix products"
            )
            out.append(f"  memory about {g.memory / 2**30:.1f} GiB; records that exist already are not computed again")
        out += [
            f"metric {name} does not declare the cost of its experiments: time leaves them out"
            for name in self.undeclared
        ]
        if self.without_model:
            out.append(f"no language model: {len(self.without_model)} SAE(s): {', '.join(self.without_model)}")
        if self.judge:
            out.append(self.judge.line())
        return out + [f"cannot be measured: {f.name}: {f.error}" for f in self.failures]


def dry_runs(request: Request, reporter: Reporter | None = None) -> list[DryRun]:
    """Plan a request, one plan for each task of a suite. SAEs are loaded, of the model only its config.

    Args:
        reporter: receives a line for each folder or pattern that stands for several SAEs.

    Raises:
        UsageError: the request is invalid.
    """
    check_request(request)
    tasks = read_tasks(request)
    wanted = all_wanted(request, tasks)
    jobs, failures = make_jobs(request, (reporter or Silent()).message, tasks)
    return [_dry_run(request, *each, jobs, failures) for each in zip(tasks, wanted, strict=True)]


def over_limit(plans: Sequence[DryRun], max_cost: float | None) -> str | None:
    """A line where the estimated cost of all judge calls exceeds `max_cost`; else None."""
    cost = sum(plan.judge.cost or 0.0 for plan in plans if plan.judge)
    if max_cost is None or cost <= max_cost:
        return None
    return (
        f"over --max-cost {max_cost:g}: about ${cost:.4f} in all, so the run would stop before passing it, "
        "unless enough replies are cached; replies so far are kept"
    )


def _dry_run(
    request: Request, task: Task, wanted: dict[str, type[Metric]], jobs: list[Job], failures: list[Failure]
) -> DryRun:
    if task.kind in MODEL_FREE:
        judge = plan_judge(request, wanted, [job.about["d_sae"] for job in jobs])
        return DryRun(
            task.label,
            list(wanted),
            _samples(request, task),
            [],
            failures,
            judge,
            without_model=[job.name for job in jobs],
        )
    text, groups, failures = _text(request, task, None), [], list(failures)
    streams = Streams(any("token_losses" in m.needs for m in wanted.values()), edit_rows(wanted.values()))
    for model in dict.fromkeys(job.model for job in jobs):
        of_model = [job for job in jobs if job.model == model]
        try:
            with named_by_checkpoint(request, model):
                size, config = _size(model, request.revision)
            text = _text(request, task, model)
        except SaebenchError as error:
            failures += [Failure(job.name, error) for job in of_model]
            continue
        for place in dict.fromkeys((j.read, j.write) for j in of_model):
            mine = [j for j in of_model if (j.read, j.write) == place]
            width = hook_width(config, place[0])
            failures += [Failure(j.name, _misfit(j, model, width)) for j in mine if j.about["d_in"] != width]
            mine = [j for j in mine if j.about["d_in"] == width]
            if not mine:
                continue
            try:
                groups.append(_group(request, model, mine, size, config, text, streams, list(wanted.values())))
            except UsageError as error:
                failures += [Failure(job.name, error) for job in mine]
    judge = plan_judge(request, wanted, [job.about["d_sae"] for job in jobs])
    undeclared = [name for name, m in wanted.items() if m.uses_lens and m.lens_work(1, text.length) is None]
    return DryRun(task.label, list(wanted), text, groups, failures, judge, undeclared=undeclared)


def _misfit(job: Job, model: str, width: int) -> UsageError:
    return UsageError(
        f"the SAE reads {job.about['d_in']} numbers per token, but {job.read} of {model} has {width}: check --model and --hook"
    )


def _size(model: str, revision: str | None) -> tuple[ModelSize, Any]:
    """The model's sizes, and its config.

    Raises:
        SaebenchError: the config cannot be read, or is of an unknown architecture.
    """
    try:
        config = load_config(model, revision)
        return model_size(config), config
    except (ValueError, OSError, KeyError, AttributeError, StopIteration) as error:
        raise SaebenchError(f"model '{model}': its config cannot be read: {one_line(error)}") from error


def _samples(request: Request, task: Task) -> Text:
    """The contexts of a task that brings its own activations."""
    contexts, length = task.contexts.count, task.contexts.length
    if isinstance(task.content, ActivationContent) and (source := open_source(task)) is not None:
        contexts, length = len(source.contexts()), source.contexts().length
    return Text(min(contexts, request.limit or contexts), length, length)


def _text(request: Request, task: Task, model: str | None) -> Text:
    """How much there is to run. Labelled texts are as long as they are, so they are tokenized; other contexts are all full."""
    if request.tokens is not None:
        contexts, length = open_tokens(Path(request.tokens)).shape
    else:
        contexts, length = task.contexts.count, task.contexts.length
    contexts = min(contexts, request.limit or contexts)
    if task.kind == "contexts" or request.tokens is not None:
        return Text(contexts, length, length)
    if task.corpus.hub or model is None or task.kind == "activations":
        return Text(contexts, length, length, bound=True)
    found = task_contexts(task, load_tokenizer(model, request.revision), bos=not request.no_bos).head(request.limit)
    return Text(len(found), found.length, found.tokens / len(found))


def _group(
    request: Request,
    model: str,
    jobs: list[Job],
    size: ModelSize,
    config: Any,
    text: Text,
    streams: Streams,
    metrics: Sequence[type[Metric]],
) -> Group:
    if not text.bound:
        require_length(config, text.length, model)
    write = jobs[0].write
    if write.layer >= size.n_layers:
        raise UsageError(f"hook point {write} is not in {model}, which has layers 0 to {size.n_layers - 1}")
    shapes = [(job.about["d_in"], job.about["d_sae"]) for job in jobs]
    device = request.device or default_device()
    lanes = together(device, streams.edits)
    passes = -(-len(jobs) // lanes)
    parts = [
        pass_cost(size, write, shapes[i : i + lanes], text.contexts, text.mean, streams)
        for i in range(0, len(jobs), lanes)
    ]
    stages = {name: sum(p.stages[name] for p in parts) for name in parts[0].stages}
    stages["calibration"] = parts[0].stages["calibration"]
    for metric in metrics:
        works = [metric.lens_work(d_sae, text.length) for _, d_sae in shapes] if metric.uses_lens else []
        if declared := [work for work in works if work is not None]:
            stages[f"experiments: {metric.name}"] = sum(size.experiments(work, write) for work in declared)
    copies = min(len(jobs), lanes) * (streams.losses + streams.edits)
    batch = request.batch_size or default_batch(device, copies, text.length)
    nbytes = DTYPES[request.dtype or default_dtype(device)].itemsize
    memory = memory_bytes(size, nbytes, max(copies, min(len(jobs), lanes)), batch, text.length, config)
    saes = sum(job.nbytes for job in jobs)
    return Group(
        model,
        str(write),
        [j.name for j in jobs],
        passes,
        Cost(stages, parts[0].tokens, parts[0].forward),
        memory + saes,
        _seconds(stages, device, request.dtype or default_dtype(device)),
    )


def _seconds(stages: dict[str, float], device: str, dtype: str) -> float:
    """The time of these multiply-adds; SAEs compute in float32."""
    rates = {stage: _speed(device, DTYPES["float32" if stage == "SAEs" else dtype]) for stage in stages}
    return sum(2 * macs / rates[stage] for stage, macs in stages.items())


_speed = cache(matrix_speed)
