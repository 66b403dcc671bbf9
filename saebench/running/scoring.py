"""A metric's declared scores -> numbers with intervals in a record."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa

from saebench.errors import SaebenchError, one_line
from saebench.metric import Env, Metric, Score
from saebench.presentation import Presentation
from saebench.reading import LARGEST, TABLE_BYTES, UNIT_CELLS, require_numbers
from saebench.stats import ratio_interval


@dataclass(frozen=True)
class Measured:
    """One metric's part of a record, and the files to write beside it.

    Attributes:
        entry: the record's `metrics` entry.
        scores: rows of the record's `scores`.
        errors: by metric, or by `metric.score` for a single undefined score.
        units: None where there are none.
        files: by suffix.
    """

    entry: dict[str, Any]
    scores: list[dict[str, Any]] = field(default_factory=list)
    errors: Mapping[str, str] = field(default_factory=dict)
    units: pd.DataFrame | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


def finish_metric(metric: Metric | type[Metric], error: str | None, env: Env) -> Measured:
    """Compute one metric's scores and intervals.

    A metric that fails has an error and no score; a single undefined score (denominator 0, not finite) has an error of its own.

    Args:
        metric: the instance; its class where the instance could not be made.
        error: the metric's failure during the pass, if any.
    """
    name = metric.name
    entry: dict[str, Any] = {"version": metric.version, "units": None}
    if not metric.paired:
        entry["paired"] = False
    try:
        if error or isinstance(metric, type):
            raise SaebenchError(error or "it could not be made")
        if metric.uses_lens and env.lens is None:
            raise SaebenchError("needs the language model, and this run has none: measure the SAE on its model")
        shown = Presentation.of(type(metric)).to_json()
        scores = metric.scores(env)  # first: a metric that fits makes its units there
        units = metric.units()
        rows, undefined = score_rows(metric, scores, units)
        if len(units):
            _require_readable(units, rows)
        details = metric.details()
        json.dumps([rows, details], allow_nan=False)
        files = metric.files()
        for suffix, data in files.items():
            if not re.fullmatch("[a-z]{1,20}", suffix) or suffix in ("json", "parquet") or not isinstance(data, bytes):
                raise SaebenchError(
                    f"file '{suffix}': expected bytes, under a suffix of 1 to 20 small letters, not json or parquet"
                )
            if len(data) > TABLE_BYTES:
                raise SaebenchError(f"file '{suffix}': {len(data):,} bytes; a record keeps at most {TABLE_BYTES:,}")
    except KeyboardInterrupt:
        raise
    except BaseException as problem:  # a metric that fails, by sys.exit too, must not cost the others their scores
        kind = "" if isinstance(problem, SaebenchError) else f"{type(problem).__name__}: "
        return Measured(entry, errors={name: kind + one_line(problem)})
    if shown:
        entry["presentation"] = shown
    if details:
        entry["details"] = details
    return Measured(entry, rows, undefined, units if len(units) else None, files)


def _require_readable(units: pd.DataFrame, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError unless a record's reader accepts these units: here the metric fails alone, at the write its record."""
    table = pa.Table.from_pandas(units, preserve_index=False)
    if nested := [field.name for field in table.schema if pa.types.is_nested(field.type)]:
        raise ValueError(f"units: column {nested[0]!r} holds lists or tables; use flat columns")
    if units.size > UNIT_CELLS or table.nbytes > TABLE_BYTES:
        raise ValueError(f"units: {len(units):,} rows of {len(units.columns)} columns are more than a record keeps")
    require_numbers(units, {row[column] for row in rows for column in ("num", "den")})


class Named(Protocol):
    """A metric or a comparison."""

    name: str
    version: int


def score_rows(
    metric: Named | Metric, scores: Sequence[Score], units: pd.DataFrame
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of a record's `scores` for those that are defined, and the reasons of the others by `metric.score`."""
    rows, undefined = [], {}
    for score in scores:
        try:
            rows.append(_row(metric, score, units))
        except SaebenchError as problem:
            undefined[f"{metric.name}.{score.key}"] = one_line(problem)
    return rows, undefined


def _row(metric: Named | Metric, score: Score, units: pd.DataFrame) -> dict[str, Any]:
    low, high = score.low, score.high
    reason = score.no_interval
    if score.num is not None:
        interval = ratio_interval(units, score)
        value, low, high, reason, n = interval.value, interval.low, interval.high, interval.no_interval, interval.n
    else:
        if score.value is None or score.n is None:
            raise SaebenchError(f"score '{score.key}' has neither columns nor a value")
        value, n = float(score.value), int(score.n)
    at = None if score.at is None else float(score.at)
    for number in (at, value, low, high):
        if number is not None and not math.isfinite(number):
            raise SaebenchError(f"score '{score.key}' is not finite")
        if number is not None and abs(number) > LARGEST:
            raise SaebenchError(f"score '{score.key}' is {number:g}; a record holds numbers up to {LARGEST:g}")
    return {
        "metric": metric.name,
        "version": metric.version,
        "key": score.key,
        "at": at,
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
        **({} if score.kind == "ratio" else {"kind": score.kind}),
    }
