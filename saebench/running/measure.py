"""A task on a language model, for some SAEs: identify → plan → pass → finish.

`identify` finds each SAE's record and the metrics it lacks, `plan_passes` groups the SAEs of one hook point, `run_pass`
streams the text through them, and `finish` writes each record.
"""

from collections.abc import Iterator, Sequence

from saebench import ranks
from saebench.cache import cache_folder
from saebench.errors import NonFiniteError, SaebenchError, UsageError, one_line
from saebench.forward.calibration import Calibration, calibrate, check_l0
from saebench.metric import NEEDS
from saebench.results import Record
from saebench.running.finish import finish
from saebench.running.identify import Work, identify
from saebench.running.passes import (
    Passed,
    default_batch,
    edit_rows,
    make_lane,
    plan_passes,
    run_pass,
    state_key,
    together,
)
from saebench.running.plan import Job, Place
from saebench.running.provenance import provenance
from saebench.running.setting import Setting
from saebench.stream import Tally

Result = Record | SaebenchError


def measure(setting: Setting, jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
    """Yield each SAE with its record, or with the error that prevented it, as soon as it is finished; rank 0 writes records."""
    todo = []
    for job in jobs:
        try:
            work = identify(setting, job)
        except SaebenchError as error:
            yield job, error
            continue
        if work.missing:
            todo.append(work)
        else:
            setting.state.settle(work.record.fingerprint)
            yield job, work.record
    for place in dict.fromkeys(work.job.place for work in todo):
        left = [work for work in todo if work.job.place == place]
        try:
            for work, result in _measure_at(setting, place, list(left)):
                left.remove(work)
                yield work.job, result
        except SaebenchError as error:
            for work in left:
                yield work.job, error


def _measure_at(setting: Setting, place: Place, works: Sequence[Work]) -> Iterator[tuple[Work, Result]]:
    """The results of SAEs at one hook point."""
    if setting.task.kind == "weights":
        yield from _without_activations(setting, works, None)
        return
    device = setting.subject.device.type
    wanted = [metric for work in works for metric in work.missing.values()]
    losses = setting.subject.predicts and any("token_losses" in metric.needs for metric in wanted)
    edits = max(edit_rows(work.missing.values()) for work in works)
    size = together(device, edits)
    streams = min(len(works), size) * (losses + edits)
    batch = setting.request.batch_size or default_batch(device, streams, setting.contexts.length)
    try:
        with setting.clock.timed("calibrate"):
            setting.subject.check(place.write)
            calibration = calibrate(
                setting.subject, setting.contexts, place.read, place.write, setting.task.contexts.max_norm, batch,
                cache_folder(),
            )  # fmt: skip
    except NonFiniteError as error:
        yield from _without_activations(setting, works, error)
        return
    fit = []
    for work in works:
        try:
            _require_fit(setting, work, calibration)
            fit.append(work)
        except SaebenchError as error:
            yield work, error
    key = state_key(setting, place)
    for planned in plan_passes(setting, fit, key, size):
        passed = run_pass(setting, place, planned, calibration, batch, key)
        yield from _finish_all(setting, planned.works, passed)
        setting.state.drop(key)


def _finish_all(setting: Setting, works: Sequence[Work], passed: Passed) -> Iterator[tuple[Work, Result]]:
    """Write the records on rank 0; the other ranks wait, and fail if rank 0 fails.

    Raises:
        SaebenchError: a record could not be written.
    """
    problem = None
    settled: list[str] = []
    if setting.rank == 0:
        try:
            for work, lane in zip(works, passed.lanes, strict=True):
                record = finish(setting, work, lane, passed)
                if not _awaits_judge(setting, record):
                    settled.append(record.fingerprint)
                yield work, record
        except SaebenchError as error:
            problem = str(error)
    if message := ranks.first(problem):
        raise SaebenchError(message)
    for mark in ranks.agree(settled):
        setting.state.settle(mark)
    if setting.rank > 0:
        yield from ((work, work.record) for work in works)


def _awaits_judge(setting: Setting, record: Record) -> bool:
    """Whether a metric still lacks judge replies; the pass's state is then kept for the next run."""
    return any(metric.asks and name in record.errors for name, metric in setting.metrics.items())


def _without_activations(
    setting: Setting, works: Sequence[Work], error: SaebenchError | None
) -> Iterator[tuple[Work, Result]]:
    """Records of metrics of the weights; the error, if any, stands in place of every metric that reads activations."""
    lanes = [make_lane(setting, work) for work in works]
    if error is not None:
        for lane in lanes:
            lane.fail(one_line(error), NEEDS)
    run = {"provenance": provenance(setting.subject.device), "timings": dict(setting.clock.seconds)}
    yield from _finish_all(setting, works, Passed(lanes, Tally(), run, None))


def _require_fit(setting: Setting, work: Work, calibration: Calibration) -> None:
    """Raise SaebenchError unless the SAE has the hook point's width and about its declared L0 there."""
    job = work.job
    sae = job.sae(setting.request).to(setting.subject.device)
    widths = calibration.sample.shape[1], calibration.mean.shape[0]
    if (sae.d_in, sae.d_out) != widths:
        raise UsageError(
            f"the SAE reads {sae.d_in} and writes {sae.d_out} numbers per token, but {job.read} of "
            f"{setting.subject.loaded.id} has {widths[0]} and {job.write} {widths[1]}: check --model and --hook"
        )
    check_l0(sae, calibration)
