"""Runs of the tiny Llama, and comparisons of their records."""

import json
from pathlib import Path
from typing import Any

import pytest

import saebench
from saebench.results import Record
from tests.conftest import HOOK


def measure(saes: Any, llama: Path, tokens: Path, results: Path, **more: Any) -> list[Record]:
    return saebench.run(saes, model=str(llama), tokens=tokens, results=results, **{"hook": HOOK, **more})


def values(record: Record) -> dict[tuple[str, str, float | None], float]:
    return {(s["metric"], s["key"], s["at"]): s["value"] for s in record.scores}


def same(a: Record, b: Record, tolerance: float = 1e-5) -> None:
    left, right = values(a), values(b)
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert right[key] == pytest.approx(value, rel=tolerance, abs=1e-7), key


def without_timings(path: Path) -> dict[str, Any]:
    body = json.loads(path.read_text())
    for run in body["runs"]:
        del run["timings"]
    return body


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def arguments(saes: list[Path], llama: Path, tokens: Path, results: Path) -> list[str]:
    flags = [part for sae in saes for part in ("--sae", str(sae))]
    return ["run", *flags, "--model", str(llama), "--tokens", str(tokens), "--results", str(results)]
