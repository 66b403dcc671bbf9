"""From a finished pass to a record on disk: scores, intervals, units and files of each metric."""

import time
from collections.abc import Mapping
from dataclasses import asdict, astuple, replace
from typing import Any

import numpy as np

from saebench.cache import cache_folder
from saebench.forward.lane import Lane
from saebench.lens import Lens
from saebench.metric import Env, Metric
from saebench.results import Record, RecordError, add_to_record, with_metrics
from saebench.running.identify import Work
from saebench.running.passes import Passed
from saebench.running.scoring import Measured, finish_metric
from saebench.running.setting import Setting
from saebench.subject import Subject


def finish(setting: Setting, work: Work, lane: Lane, passed: Passed) -> Record:
    """Score one SAE's metrics, write them into its record, and return the record as it is on disk.

    Raises:
        SaebenchError: the record cannot be written.
    """
    found: dict[str, Measured] = {}
    seconds, judged = {}, {}
    for name, metric in work.missing.items():
        begin = time.perf_counter()
        env = _env(setting, work, lane, metric)
        found[name] = _finish_one(lane, metric, env)
        try:
            with_metrics(work.record, _record_of(work, found), list(found)).dump()
        except RecordError as problem:
            found[name] = finish_metric(metric, f"does not fit into a record: {problem}", env)
        if metric.asks and setting.judge is not None:
            judged[name] = setting.judge.ledger.about()
        seconds[name] = round(time.perf_counter() - begin, 3)
    timings = passed.run["timings"] | {"scores": seconds}
    run = {"metrics": list(work.missing), **passed.run, "timings": timings}
    if judged and setting.judge is not None:
        run["judged"] = judged
        timings["judge"] = setting.judge.ledger.timings()
    measured = replace(
        _record_of(work, found),
        corpus=work.record.corpus | _tokens(passed),
        calibration=_calibration(passed) or work.record.calibration,
        runs=[*work.record.runs, run],
    )
    record = replace(
        with_metrics(work.record, measured, list(found)),
        corpus=measured.corpus,
        calibration=measured.calibration,
        runs=measured.runs,
    )
    units = {name: part.units for name, part in found.items() if part.units is not None}
    files = {name: part.files for name, part in found.items() if part.files}
    written = add_to_record(setting.request.folder, record, list(found), units, files)
    for name, part in found.items():
        if name not in part.errors and work.missing[name].uses_lens:
            setting.state.drop_units(record.fingerprint, _label(work.missing[name]))
    return written


def _record_of(work: Work, found: Mapping[str, Measured]) -> Record:
    """The work's record with these metrics only."""
    return replace(
        work.record,
        metrics={name: part.entry for name, part in found.items()},
        scores=[row for part in found.values() for row in part.scores],
        errors={key: message for part in found.values() for key, message in part.errors.items()},
    )


def _finish_one(lane: Lane, metric: type[Metric], env: Env) -> Measured:
    """One metric's scores; a metric that changes the SAE, which others read too, has none."""
    name = metric.name
    found = finish_metric(lane.metrics.get(name, metric), lane.errors.get(name), env)
    lane.attempt(name, lambda: None)  # looks at the SAE
    return found if name not in lane.errors else finish_metric(metric, lane.errors[name], env)


def _env(setting: Setting, work: Work, lane: Lane, metric: type[Metric]) -> Env:
    """The environment of one metric's scores: judge and language model where the metric declares that it uses them."""
    request = setting.request
    judge = setting.judge if metric.asks else None
    if judge is not None:
        judge.ledger.begin()
    lens = None
    if metric.uses_lens and isinstance(setting.subject, Subject):
        if request.force:
            setting.state.drop_units(work.record.fingerprint, _label(metric))
        lens = Lens(
            setting.subject, work.job.read, work.job.write, batch_size=request.batch_size, progress=setting.reporter,
            work=setting.state.units(work.record.fingerprint, _label(metric)),
        )  # fmt: skip
    seed = request.seed if metric.seeded else 0
    return Env(lane.sae, setting.subject.loaded.tokenizer, seed, cache_folder(), judge, lens)


def _label(metric: type[Metric]) -> str:
    return f"{metric.name}@{metric.version}"


def _tokens(passed: Passed) -> dict[str, Any]:
    """The record's token counts; none where the pass ran no text."""
    return {"tokens": asdict(passed.tally)} if sum(astuple(passed.tally)) else {}


def _calibration(passed: Passed) -> dict[str, Any]:
    if passed.calibration is None:
        return {}
    finite = np.isfinite(passed.calibration.threshold)
    return {
        "median_norm": passed.calibration.median_norm,
        "threshold": passed.calibration.threshold if finite else None,
    }
