"""The plan of a run: its tasks, metrics and SAEs, and the model and hook point of each SAE."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from saebench.catalog import activation_task, data_task, load_task, load_tasks
from saebench.errors import SaebenchError, UsageError, one_line
from saebench.hookpoint import ACTIVATIONS, HookPoint
from saebench.loading.checkpoint import check_sae, load_sae
from saebench.metric import NEEDS, Metric, reads_weights_only
from saebench.registry import registry
from saebench.running.names import default_names
from saebench.running.reporting import Failure
from saebench.running.request import Request
from saebench.running.settings import configure, read_settings, require_known
from saebench.running.sources import Source, expand
from saebench.sae import SAE
from saebench.task import MODEL_FREE, ContextSpec, CorpusSpec, Kind, LabelSpec, Task, TextContent

# SAEs together larger than this are dropped after planning and loaded again for their pass.
_KEEP_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Place:
    """The hook points at which SAEs of one pass read and write; they differ for transcoders."""

    read: HookPoint
    write: HookPoint


@dataclass(frozen=True)
class Job:
    """One SAE of a run.

    Attributes:
        name: in records and tables.
        source: the checkpoint's path, or the SAE itself.
        sha256: of the SAE's function.
        model: alias, hub id or path of the language model.
        read, write: hook points.
        about: the record's entry `sae`.
        nbytes: size of the weights.
        loaded: the SAE; None where it is loaded again for its pass, to save memory.
    """

    name: str
    source: Source
    sha256: str
    model: str
    read: HookPoint
    write: HookPoint
    about: dict[str, Any]
    nbytes: int
    loaded: SAE | None = None

    @property
    def place(self) -> Place:
        return Place(self.read, self.write)

    def sae(self, request: Request) -> SAE:
        """The SAE in CPU memory."""
        return self.loaded or self.fresh(request)

    def fresh(self, request: Request) -> SAE:
        """The SAE, loaded again from its source."""
        return _load(self.source, request)


@contextmanager
def named_by_checkpoint(request: Request, model: str) -> Iterator[None]:
    """Add to a model-not-found error that the name came from the checkpoint.

    Raises:
        UsageError: as raised inside, with that.
    """
    try:
        yield
    except UsageError as error:
        if request.model is not None:
            raise
        raise UsageError(
            f"{error}. The checkpoint names its model '{model}': pass its hub id or folder with --model "
            "(for example --model openai-community/gpt2 for gpt2-small)"
        ) from error


def read_tasks(request: Request) -> list[Task]:
    """The task of a request, or those of a suite; a run on token ids is a task of its own.

    Raises:
        UsageError: no such task.
    """
    if request.planted is not None or request.activations is not None:
        return [_source_task(request)]
    for name, value in (("labels", request.labels), ("grid", request.grid)):
        if value is not None:
            raise UsageError(f"--{name} goes with --activations FILE")
    if request.data is not None:
        if request.tokens is not None or request.task != "fidelity":
            raise UsageError("--data is a task of its own: leave --task and --tokens away")
        labels = LabelSpec(request.text_column, request.label_column, group=request.group_column)
        labelled = [name for name, metric in registry(request.strict).metrics.items() if "labels" in metric.needs]
        return [data_task(Path(request.data), labels, labelled)]
    if request.tokens is None:
        return load_tasks("weights" if _of_weights_only(request) else request.task)
    default = load_task(request.task)
    return [Task("tokens", 1, default.metrics, TextContent(CorpusSpec(), ContextSpec(0, False, 0)))]


def _of_weights_only(request: Request) -> bool:
    """Whether nothing but metrics of the weights is requested, of no particular task, model or hook point."""
    if not request.metrics or (request.task, request.model, request.hook) != ("fidelity", None, None):
        return False
    known = registry(request.strict).metrics
    return all(name in known and reads_weights_only(known[name]) for name in request.metrics)


def _source_task(request: Request) -> Task:
    """The task of --planted or --activations.

    Raises:
        UsageError: several texts or sources are given, or a file cannot be read.
    """
    given = {"--planted": request.planted, "--activations": request.activations, "--data": request.data,
             "--tokens": request.tokens, "--task": None if request.task == "fidelity" else request.task}  # fmt: skip
    if len(clash := [flag for flag, value in given.items() if value is not None]) > 1:
        raise UsageError(f"{clash[0]} and {clash[1]} are one source too many: leave one out")
    if request.planted is not None:
        task = load_task(request.planted)
        if task.kind != "planted":
            raise UsageError(f"--planted {request.planted}: a task of {task.kind}; use --task, or name a planted model")
        return task
    labels = None if request.labels is None else Path(request.labels)
    metrics = [
        name for name, metric in sorted(registry(request.strict).metrics.items()) if _fits_files(metric, request)
    ]
    columns = LabelSpec(label=request.label_column, group=request.group_column)
    return activation_task(Path(str(request.activations)), metrics, labels, columns, _grid(request.grid))


def _fits_files(metric: type[Metric], request: Request) -> bool:
    """Whether a file of activations has every part that a metric needs."""
    has = {
        "x",
        "x_read",
        "latents",
        "reconstruction",
        *(["labels"] if request.labels else []),
        *(["grid"] if request.grid else []),
    }
    return metric.needs - metric.optional <= has and not (metric.asks or metric.uses_lens or metric.edit_rows)


def _grid(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch("([1-9][0-9]{0,4})[,x]([1-9][0-9]{0,4})", text)
    if match is None:
        raise UsageError(f"--grid {text}: write it as height,width, like 8,8")
    return int(match[1]), int(match[2])


# Parts of a batch that each kind of task lacks. Labelled texts and prompts lack losses, although a language model runs: the
# texts are short and padded, so that their losses measure no model.
_LACKING: dict[Kind, set[str]] = {
    "contexts": {"labels", "truth"},
    "labels": {"token_losses", "truth"},
    "prompts": {"labels", "token_losses", "truth"},
    "activations": {"token_losses", "truth"},
    "planted": {"labels", "token_losses"},
    "weights": set(NEEDS),
}


def wanted_metrics(request: Request, task: Task) -> dict[str, type[Metric]]:
    """Metric classes by name: those asked for, else the task's.

    Raises:
        UsageError: an unknown metric, with the nearest; or one that needs a part of a batch that the task lacks.
    """
    found = registry(request.strict)
    wanted = {name: found.get("metrics", name) for name in (request.metrics or task.metrics)}
    if not wanted:
        raise UsageError(f"task {task.label} names no metrics: pass --metric")
    for given in (task.settings, read_settings(request.settings)):
        wanted = {name: configure(metric, given.get(name, {})) for name, metric in wanted.items()}
    for name, metric in wanted.items():
        if task.kind != "contexts" and metric.edit_rows:
            raise UsageError(
                f"metric '{name}' edits contexts, which a task of {task.kind} ({task.label}) has not: "
                "choose another --task or --metric"
            )
        if task.kind in MODEL_FREE and metric.uses_lens:
            raise UsageError(
                f"metric '{name}' experiments on a language model, which a task of {task.kind} ({task.label}) has not: "
                "choose another --task or --metric"
            )
        optional = metric.optional if task.kind in ("activations", "planted") else frozenset()
        if lacking := _LACKING[task.kind] & (metric.needs - optional):
            raise UsageError(
                f"metric '{name}' needs {', '.join(sorted(lacking))}, which a task of {task.kind} ({task.label}) has not: "
                "choose another --task or --metric"
            )
    return wanted


def all_wanted(request: Request, tasks: Sequence[Task]) -> list[dict[str, type[Metric]]]:
    """The metric classes of each task.

    Raises:
        UsageError: see `wanted_metrics`; or a setting belongs to none of the metrics.
    """
    wanted = [wanted_metrics(request, task) for task in tasks]
    require_known(read_settings(request.settings), {name for some in wanted for name in some})
    return wanted


def make_jobs(
    request: Request, notify: Callable[[str], None], tasks: Sequence[Task] = ()
) -> tuple[list[Job], list[Failure]]:
    """Load every SAE once, and collect those that cannot be measured.

    Args:
        notify: receives the number of SAEs in each folder or pattern.
        tasks: of the request; a task with its own activations replaces the checkpoints' model and hook point.

    Raises:
        UsageError: no SAE, or another number of names than of SAEs.
    """
    if not request.sources:
        raise UsageError("no SAE given: pass --sae PATH (a folder or file; repeatable)")
    sources = expand(request.sources, request.format, notify)
    if request.names and len(request.names) != len(sources):
        raise UsageError(f"{len(request.names)} --name for {len(sources)} SAEs: give one for each, or none")
    source = _source_name(tasks)
    jobs: list[Job] = []
    failures: list[Failure] = []
    kept = 0
    for name, path in zip(request.names or default_names(sources), sources, strict=True):
        try:
            sae = _load_guarded(path, request)
            job = _job(name, path, sae, request) if source is None else _source_job(name, path, sae, source)
            _refuse_twin(job, jobs)
        except SaebenchError as error:
            failures.append(Failure(name, error))
            continue
        kept += job.nbytes
        jobs.append(replace(job, loaded=sae) if kept <= _KEEP_BYTES else job)
    return jobs, failures


def _source_name(tasks: Sequence[Task]) -> str | None:
    """The id of the source that the tasks bring; None where they run a language model.

    Raises:
        UsageError: one of several tasks brings its own activations.
    """
    own = [task for task in tasks if task.kind in MODEL_FREE]
    if own and len(tasks) > 1:
        raise UsageError(f"task {own[0].label} brings its own activations: run it alone")
    return own[0].name.rpartition("/")[2] if own else None


def _source_job(name: str, path: Source, sae: SAE, source: str) -> Job:
    """One SAE on activations that a task brings, at their pseudo hook point."""
    nbytes = sum(t.numel() * t.element_size() for _, t in sae.tensors())
    sha = sae.sha256()
    return Job(name, path, sha, source, ACTIVATIONS, ACTIVATIONS, _about(name, sae, sha), nbytes)


def _load(source: Source, request: Request) -> SAE:
    if isinstance(source, SAE):
        check_sae(source, Path("the SAE in memory"))
        return copy_sae(source)
    return load_sae(
        source, format=request.format, k=request.k, scale=request.scale,
        ignore_keys=request.ignore_keys,
    )  # fmt: skip


def _load_guarded(source: Source, request: Request) -> SAE:
    """Load an SAE; any exception of a format becomes an error of this SAE.

    Raises:
        SaebenchError: it cannot be loaded.
    """
    try:
        return _load(source, request)
    except (SaebenchError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a plugin's own sys.exit too
        shown = "the SAE in memory" if isinstance(source, SAE) else source
        raise SaebenchError(f"{shown}: its format failed: {type(error).__name__}: {one_line(error)}") from error


def copy_sae(sae: SAE) -> SAE:
    """A float32 copy, so that no change reaches the caller's SAE."""
    return sae.map(lambda tensor: tensor.detach().to(torch.float32, copy=True))


def _job(name: str, source: Source, sae: SAE, request: Request) -> Job:
    meta = sae.metadata
    model = request.model or meta.model
    hook = request.hook or meta.hook
    if model is None:
        raise UsageError("the checkpoint does not name its model: pass --model (see `saebench list models`)")
    if hook is None:
        raise UsageError("the checkpoint does not name its hook point: pass --hook, like blocks.15.hook_resid_post")
    read = HookPoint.parse(hook)
    if sae.is_transcoder and meta.hook_out is None:
        raise UsageError(
            "a transcoder whose checkpoint does not name the hook point that it writes: load it in Python, set its "
            "metadata's hook_out, and save it with saebench.save_sae"
        )
    write = HookPoint.parse(meta.hook_out) if sae.is_transcoder and meta.hook_out else read
    nbytes = sum(t.numel() * t.element_size() for _, t in sae.tensors())
    sha = sae.sha256()
    return Job(name, source, sha, model, read, write, _about(name, sae, sha), nbytes)


def _about(name: str, sae: SAE, sha: str) -> dict[str, Any]:
    meta = sae.metadata
    warnings = []
    if meta.model is None:
        warnings.append("the checkpoint does not name its model")
    return {
        "name": name,
        "path": _shown(meta.path),
        "format": meta.format,
        "architecture": meta.architecture,
        "sha256": sha,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "model": meta.model,
        "hook": meta.hook,
        "context_length": meta.context_length,
        "prepend_bos": meta.prepend_bos,
        "declared_l0": meta.declared_l0,
        "training_tokens": meta.training_tokens,
        "facts": [{"name": f.name, "value": f.value, "source": f.source} for f in meta.facts],
        "warnings": warnings,
    }


def _shown(path: str | None) -> str | None:
    """A path as records show it: the last part of an absolute path, which may contain a user's home."""
    return Path(path).name if path is not None and Path(path).is_absolute() else path


def _refuse_twin(job: Job, jobs: list[Job]) -> None:
    for other in jobs:
        if (job.sha256, job.model, job.read) == (other.sha256, other.model, other.read):
            raise UsageError(f"the same SAE as '{other.name}': give it once")
