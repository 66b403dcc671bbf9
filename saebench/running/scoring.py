"""A metric's declared scores -> numbers with intervals in a record."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from saebench.errors import SaebenchError, one_line
from saebench.metric import Env, Metric, Score
from saebench.presentation import Presentation
from saebench.results import Record
from saebench.stats import ratio_interval


@dataclass(frozen=True)
class Kept:
    """What is written beside a record for one metric: its units, and files by suffix."""

    units: pd.DataFrame | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


def finish_metric(record: Record, metric: Metric | type[Metric], error: str | None, env: Env) -> Kept:
    """Put one metric's scores into the record, or its error; returns what to keep beside it.

    A metric that fails leaves an error and no number, and so does a single score that is not defined (its denominator
    is 0, it is not finite), under `metric.score`. What the record held of the metric before is replaced.

    Args:
        metric: the instance; its class where none could be made.
        error: why it failed during the pass, if it did.
    """
    name = metric.name
    record.scores = [row for row in record.scores if row["metric"] != name]
    record.errors = {k: v for k, v in record.errors.items() if k != name and not k.startswith(f"{name}.")}
    record.metrics[name] = {"version": metric.version, "units": None}
    if not metric.paired:
        record.metrics[name]["paired"] = False
    try:
        if error or isinstance(metric, type):
            raise SaebenchError(error or "it could not be made")
        shown = Presentation.of(type(metric)).to_json()
        scores = metric.scores(env)  # first: a metric that fits makes its units there
        units = metric.units()
        pa.Table.from_pandas(units, preserve_index=False)  # what parquet cannot hold fails here, not when it is written
        rows, undefined = _rows(metric, scores, units)
        details = metric.details()
        json.dumps([rows, details], allow_nan=False)
        files = metric.files()
        for suffix, data in files.items():
            if not re.fullmatch("[a-z]+", suffix) or suffix in ("json", "parquet") or not isinstance(data, bytes):
                raise SaebenchError(
                    f"file '{suffix}': it should be bytes, under a suffix of small letters, not json or parquet"
                )
    except Exception as problem:  # a stranger's metric must not cost the others their numbers
        kind = "" if isinstance(problem, SaebenchError) else f"{type(problem).__name__}: "
        record.errors[name] = kind + one_line(problem)
        return Kept()
    record.scores += rows
    record.errors |= undefined
    if shown:
        record.metrics[name]["presentation"] = shown
    if details:
        record.metrics[name]["details"] = details
    return Kept(units if len(units) else None, files)


def _rows(metric: Metric, scores: list[Score], units: pd.DataFrame) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The scores that are defined, and why the others are not."""
    rows, undefined = [], {}
    for score in scores:
        try:
            rows.append(_row(metric, score, units))
        except SaebenchError as problem:
            undefined[f"{metric.name}.{score.key}"] = one_line(problem)
    return rows, undefined


def _row(metric: Metric, score: Score, units: pd.DataFrame) -> dict[str, Any]:
    low, high = score.low, score.high
    reason = score.no_interval
    if score.num is not None:
        interval = ratio_interval(units, score)
        value, low, high, reason, n = interval.value, interval.low, interval.high, interval.no_interval, interval.n
    else:
        if score.value is None or score.n is None:
            raise SaebenchError(f"score '{score.key}' has neither columns nor a value")
        value, n = float(score.value), int(score.n)
    for number in (value, low, high):
        if number is not None and not math.isfinite(number):
            raise SaebenchError(f"score '{score.key}' is not finite")
    return {
        "metric": metric.name,
        "version": metric.version,
        "key": score.key,
        "at": None if score.at is None else float(score.at),
        "value": value,
        "low": low,
        "high": high,
        "n": n,
        "unit": score.unit,
        "direction": score.direction,
        "no_interval": reason,
        "num": score.num,
        "den": score.den,
        "offset": score.offset,
        "scale": score.scale,
        "within": None if score.within is None else list(score.within),
    }
