"""A metric's declared scores -> numbers with intervals in a record."""

import math
from typing import Any

import pandas as pd

from saebench.errors import SaebenchError, one_line
from saebench.metric import Env, Metric, Score
from saebench.results import Record
from saebench.stats import ratio_interval


def finish_metric(record: Record, metric: Metric, error: str | None, env: Env) -> pd.DataFrame | None:
    """Put one metric's scores into the record, or its error; returns the units to keep beside it.

    A metric that fails leaves an error and no number; what the record held of it before is replaced.

    Args:
        error: why it failed during the pass, if it did.
    """
    name = metric.name
    record.scores = [row for row in record.scores if row["metric"] != name]
    record.errors.pop(name, None)
    record.metrics[name] = {"version": metric.version, "units": None}
    try:
        if error:
            raise SaebenchError(error)
        scores = metric.scores(env)  # first: a metric that fits makes its units there
        units = metric.units()
        rows = [_row(metric, s, units) for s in scores]
        details = metric.details()
    except Exception as problem:  # a stranger's metric must not cost the others their numbers
        kind = "" if isinstance(problem, SaebenchError) else f"{type(problem).__name__}: "
        record.errors[name] = kind + one_line(problem)
        return None
    record.scores += rows
    if details:
        record.metrics[name]["details"] = details
    return units if len(units) else None


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
        "at": score.at,
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
    }
