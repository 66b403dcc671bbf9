"""Records for notebooks: a tidy table of every score, and one record as HTML."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from saebench.results import Record, fingerprint, load_records

# Fixed dtypes, so that a column of missing values has the dtype of a full one.
_TEXT = ("sae", "sha256", "architecture", "format", "model", "revision", "hook", "hook_out", "task", "corpus", "model_dtype",
         "sae_dtype", "metric", "key", "unit", "direction", "no_interval", "group", "fingerprint", "path")  # fmt: skip
_FLOAT = ("at", "value", "low", "high")
_WHOLE = ("width", "d_in", "seed", "limit", "version", "n")
_COLUMNS = (
    "sae", "architecture", "width", "d_in", "format", "model", "revision", "hook", "hook_out", "task", "metric", "version",
    "key", "at", "value", "low", "high", "n", "unit", "direction", "no_interval", "partial", "model_dtype", "sae_dtype",
    "seed", "limit", "corpus", "group", "sha256", "fingerprint", "path",
)  # fmt: skip


def load_results(path: str | Path | Iterable[str | Path] = "results") -> pd.DataFrame:
    """Every score of every record below a folder as a tidy table: one row per score, curves too.

    Args:
        path: a results folder or a record file, or several of them.

    Returns:
        Columns sae (its name), architecture, width (latents), d_in, format, model, revision, hook, hook_out, task
        (name@version), metric, version (the metric's), key, at (the place on a curve; missing for other scores), value,
        low and high (95 % interval; missing where there is none), n, unit, direction ("higher", "lower" or missing),
        no_interval (why there is none), partial (made with --limit), model_dtype, sae_dtype, seed, limit, corpus,
        group, sha256 (of the SAE), fingerprint, path. Scores of one metric, version and key are comparable where `group` is
        equal: a hash of everything else that changes a number (weights of the language model, hook point, task and its text,
        precision, the norm above which tokens are not scored, the judge and its prompts). With --limit the text differs.

    Raises:
        RecordError: no such folder, or no valid record in it. Each invalid file beside valid ones gives a warning.
    """
    rows = [_about(record) | _score(row) for record in load_records(path, skip_damaged=True) for row in record.scores]
    frame = pd.DataFrame(rows, columns=list(_COLUMNS))
    kinds = dict.fromkeys(_TEXT, "string") | dict.fromkeys(_FLOAT, "float64")
    kinds |= dict.fromkeys(_WHOLE, "Int64") | {"partial": "bool"}
    return frame.astype(kinds)


def _about(record: Record) -> dict[str, Any]:
    sae, settings = record.sae, record.settings
    return {
        "sae": _text(sae["name"]), "sha256": _text(sae["sha256"]), "architecture": _text(sae.get("architecture")),
        "format": _text(sae.get("format")), "width": _whole(sae.get("d_sae")), "d_in": _whole(sae.get("d_in")),
        "model": _text(record.model["id"]), "revision": _text(record.model.get("revision")), "hook": record.hook,
        "hook_out": record.hook_out, "task": record.task_label, "corpus": _text(record.corpus["fingerprint"]),
        "model_dtype": _text(settings["model_dtype"]), "sae_dtype": _text(settings["sae_dtype"]),
        "seed": _whole(settings["seed"]), "limit": _whole(settings["limit"]), "partial": record.partial,
        "group": fingerprint({"group": record.group})[:16], "fingerprint": record.fingerprint,
        "path": None if record.path is None else str(record.path),
    }  # fmt: skip


def _score(row: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: row[name] for name in _FLOAT} | {name: _whole(row[name]) for name in ("version", "n")}
    return numbers | {name: _text(row[name]) for name in ("metric", "key", "unit", "direction", "no_interval")}


def _text(value: object) -> str | None:
    """Text of bounded length: a record's values are untrusted."""
    return None if value is None else str(value)[:1000]


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62 else None
