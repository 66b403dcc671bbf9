"""Records made by hand: an SAE on a common text, better or worse by a known amount."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saebench.presentation import Axis, Figure, Presentation
from saebench.results import Record, load_records
from saebench.stats import Ratio, ratio_interval

DOCUMENTS = np.repeat(np.arange(20), 6)
Make = Callable[..., Record]
# Stored as a run stores it: these metrics are nobody's plugins.
FIDELITY = Presentation(("explained_variance",), sparsity=Axis("l0", "latents per token (L0)")).to_json()
USE = Presentation(figures=(Figure("dead_fraction_curve", "at", "tokens seen"),)).to_json()


def units(shift: float, seed: int = 0) -> pd.DataFrame:
    """120 contexts of 20 documents; what the documents do is common to all SAEs, `shift` and a little noise are not."""
    common = 0.3 * np.exp(np.random.default_rng(0).normal(0, 0.3, 20))[DOCUMENTS]
    noise = np.random.default_rng([1, seed]).normal(0, 0.01, len(DOCUMENTS))
    den = np.full(len(DOCUMENTS), 127.0)
    return pd.DataFrame(
        {
            "unit_id": np.arange(len(DOCUMENTS)),
            "cluster_id": DOCUMENTS,
            "sse": den * (common + shift + noise),
            "variance": den,
            "active": den * (30 + 100 * shift),
        }
    )


def digest(*what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()


def declared(metric: str, key: str, frame: pd.DataFrame, ratio: Ratio, direction: str | None) -> dict[str, Any]:
    found = ratio_interval(frame, ratio)
    return {
        "metric": metric, "version": 1, "key": key, "at": None, "value": found.value, "low": found.low,
        "high": found.high, "n": found.n, "unit": "", "direction": direction, "no_interval": None,
        "num": ratio.num, "den": ratio.den, "offset": ratio.offset, "scale": ratio.scale,
    }  # fmt: skip


def plain(metric: str, key: str, value: float, direction: str | None = None, at: float | None = None) -> dict[str, Any]:
    return {
        "metric": metric, "version": 1, "key": key, "at": at, "value": value, "low": None, "high": None, "n": 9,
        "unit": "fraction", "direction": direction, "no_interval": "exact", "num": None, "den": None, "offset": 0.0,
        "scale": 1.0,
    }  # fmt: skip


def make_record(root: Path, name: str, shift: float = 0.0, seed: int = 0, folder: str = "", **changes: Any) -> Record:
    """Write the record of one SAE with metrics `fidelity` and `use`, and read it back."""
    frame = units(shift, seed)
    scores = [
        declared("fidelity", "explained_variance", frame, Ratio("sse", "variance", 1.0, -1.0), "higher"),
        declared("fidelity", "l0", frame, Ratio("active", "variance"), None),
        plain("use", "dead_fraction", 0.25, "lower"),
        plain("use", "dead_fraction_curve", 0.5, at=1000.0),
    ]
    body: dict[str, Any] = {
        "fingerprint": f"{name}-{shift}-{seed}",
        "partial": False,
        "sae": {"name": name, "sha256": digest(name, shift, seed), "architecture": "topk", "d_sae": 64},
        "model": {"id": "tiny", "sha256": "m", "revision": None},
        "hook": "blocks.1.hook_resid_post",
        "hook_out": "blocks.1.hook_resid_post",
        "task": {"name": "fidelity", "version": 1, "sha256": "t"},
        "corpus": {"fingerprint": "c"},
        "settings": {
            "model_dtype": "float32", "sae_dtype": "float32", "max_norm": 10.0, "seed": 0, "limit": None,
        },
        "metrics": {
            "fidelity": {"version": 1, "units": None, "presentation": FIDELITY},
            "use": {"version": 1, "units": None, "presentation": USE},
        },
        "scores": scores,
        "runs": [{
            "metrics": ["fidelity", "use"],
            "provenance": {"saebench": "0.1.0", "commit": "c0ffee" * 6 + "beef", "dirty": False, "device": "cpu",
                           "chip": "x86_64", "libraries": {"torch": "2.13.0"}},
            "timings": {"finished": "2026-01-02T03:04:05Z"},
        }],
    }  # fmt: skip
    record = Record(**(body | changes))
    fits = {m: frame for m in ("fidelity",) if m in record.metrics}
    path = root / folder / f"{digest(name, shift, seed, changes)}@1.json"
    record.write(path, fits)
    return load_records([path])[0]
