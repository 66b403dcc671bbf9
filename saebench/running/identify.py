"""From an SAE to its record: the identity of a measurement, and the metrics still missing from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saebench import ranks
from saebench.errors import UsageError
from saebench.hookpoint import HookPoint
from saebench.metric import Metric
from saebench.results import Record, RecordError, fingerprint, read_record, record_path
from saebench.running.judge import judge_settings
from saebench.running.plan import Job
from saebench.running.setting import Setting


@dataclass(frozen=True)
class Work:
    """One SAE, its record and the metrics to compute.

    Attributes:
        record: the existing record of this identity, or a new one without scores.
        missing: metric classes by name; empty where the record is complete.
    """

    job: Job
    record: Record
    missing: Mapping[str, type[Metric]]

    @property
    def key(self) -> str:
        """Identity of the computation: the key of its saved state."""
        versions = ",".join(f"{name}@{metric.version}" for name, metric in sorted(self.missing.items()))
        return f"{self.record.fingerprint}:{versions}"


def identify(setting: Setting, job: Job) -> Work:
    """Find the SAE's record, and the metrics that it lacks, on rank 0's disk.

    Raises:
        UsageError: the model lacks the hook point.
        SaebenchError: ranks differ in SAE, model or text.
    """
    setting.subject.require(job.read)
    setting.subject.require(job.write)
    new = _new_record(setting, job)
    ranks.require_same(f"SAE, model or text ({job.name})", new.fingerprint)
    record, missing = ranks.decide(lambda: _find(setting, job, new))
    return Work(job, record, {name: setting.metrics[name] for name in missing})


def _find(setting: Setting, job: Job, new: Record) -> tuple[Record, list[str]]:
    """The existing record, else `new`, and the names of the metrics it lacks."""
    path = record_path(setting.request.folder, new)
    record = read_record(path) if path.exists() else new
    have = {name: entry["version"] for name, entry in record.metrics.items() if name not in record.errors}
    force = setting.request.force
    missing = [name for name, metric in setting.metrics.items() if force or have.get(name) != metric.version]
    if not missing:
        setting.reporter.message(f"{job.name}: already measured, {path}")
    return record, missing


def _new_record(setting: Setting, job: Job) -> Record:
    request, task, subject = setting.request, setting.task, setting.subject
    settings = {
        "model_dtype": subject.dtype,
        "sae_dtype": "float32",
        "seed": request.seed if any(metric.seeded for metric in setting.metrics.values()) else 0,
        "limit": request.limit,
        "max_norm": task.contexts.max_norm,
        **(
            {}
            if request.tokens is not None or setting.contexts.bos == task.contexts.bos
            else {"bos": setting.contexts.bos}
        ),
        **judge_settings(setting.judge.judge if setting.judge else None, setting.metrics),
    }
    changed = {name: dict(m.changed_settings) for name, m in setting.metrics.items() if m.changed_settings}
    if changed:
        settings["metrics"] = changed
    record = Record(
        fingerprint="",
        partial=request.limit is not None,
        sae=job.about | {"warnings": job.about["warnings"] + _habits(setting, job)},
        model={
            "id": subject.loaded.id,
            "sha256": subject.loaded.sha256,
            "revision": subject.loaded.revision,
            "type": subject.kind,
        },
        hook=str(job.read),
        hook_out=str(job.write),
        task={"name": task.name, "version": task.version, "sha256": task.sha256()},
        corpus=_corpus(setting),
        settings=settings,
    )
    record.fingerprint = fingerprint(record.identity)
    try:
        record.dump()
    except RecordError as error:  # found here, not after the pass
        raise UsageError(f"no record can hold this SAE: {error}") from error
    return record


def _corpus(setting: Setting) -> dict[str, Any]:
    contexts = setting.contexts
    corpus = {
        "fingerprint": contexts.fingerprint(),
        "contexts": len(contexts),
        "length": contexts.length,
        "documents": len(set(contexts.document_id.tolist())),
        "available": contexts.available,
        "dropped_tokens": contexts.dropped_tokens,
    }
    if contexts.labels is not None:
        corpus |= {"labels": contexts.labels.about(), "left_out": dict(contexts.left_out)}
    if contexts.prompts is not None:
        corpus |= {"prompts": contexts.prompts.about()}
    return corpus


def _habits(setting: Setting, job: Job) -> list[str]:
    """Warnings where training and measurement differ: BOS, model, hook point."""
    if setting.task.kind == "weights":
        return []
    about, read, out = job.about, job.read, []
    bos = setting.contexts.bos
    if setting.request.tokens is None and about["prepend_bos"] not in (None, bos):
        out.append(f"trained with{'' if about['prepend_bos'] else 'out'} BOS, measured with{'' if bos else 'out'}")
    if about["model"] is not None and about["model"] != setting.subject.loaded.id:
        out.append(f"made for model '{about['model']}', measured on '{setting.subject.loaded.id}'")
    if about["hook"] is not None and about["hook"] != str(read) and _place(about["hook"]) != read:
        out.append(f"made for hook point '{about['hook']}', measured at {read}")
    return out


def _place(hook: str) -> HookPoint | None:
    try:
        return HookPoint.parse(hook)
    except UsageError:
        return None
