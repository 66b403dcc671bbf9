"""SIGKILL `saebench run` at random moments of its experiments until it finishes: the record must be that of an undisturbed run.

python -m tests.kills 20    # kills; prints how many hit, and whether the scores are identical
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import saebench
from saebench.testing import random_sae, tiny_llama

METRICS = ("effects_small", "steering_small")
# Sizes at which a run lasts seconds: enough units for a kill to fall among them.
FEW = ("effects_small.latents=5", "steering_small.latents=3", "steering_small.contexts=4", "steering_small.length=8")


def prepare(folder: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """A tiny model, an SAE and token ids; returns the arguments of `saebench.run` that measure them."""
    model = tiny_llama(folder / "tiny-llama")
    saebench.save_sae(
        random_sae(hook="blocks.1.hook_resid_post", model="tiny", seed=1), folder / "sae", format="saelens"
    )
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(3, 97, (64, 40)))
    tokens = str(folder / "ids.npy")
    return {"saes": str(folder / "sae"), "model": str(model), "tokens": tokens, "metrics": METRICS, "batch_size": 32,
            "settings": list(settings)}  # fmt: skip


def run_killed(arguments: dict[str, Any], results: Path, kills: int, seed: int = 0) -> int:
    """Start, kill after a random number of finished units, and repeat; then run to the end. Returns the kills that hit."""
    source, hit = random.Random(seed), 0
    for _ in range(kills):
        process = _start(arguments, results)
        wanted = _finished(results) + source.randint(1, 3)
        while process.poll() is None and _finished(results) < wanted:
            time.sleep(0.005)
        time.sleep(source.uniform(0, 0.05))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            hit += 1
        process.wait()
    saebench.run(**arguments, results=results)
    return hit


def scores(results: Path) -> Any:
    """Scores, errors, states and units of the one record, as they are written."""
    [path] = [p for p in results.rglob("tokens@1*.json") if ".state" not in p.parts]
    record = json.loads(path.read_text())
    units = {p.name: p.read_bytes() for p in sorted(path.parent.glob("*.parquet"))}
    return record["scores"], record["errors"], record["metrics"], units


def _start(arguments: dict[str, Any], results: Path) -> subprocess.Popen[bytes]:
    code = "import json, sys, saebench; saebench.run(**json.loads(sys.argv[1]), results=sys.argv[2])"
    command = [sys.executable, "-c", code, json.dumps(arguments), str(results)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _finished(results: Path) -> int:
    return sum(1 for _ in (results / ".state").glob("units-*/*/*.json"))


def main(kills: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = prepare(folder)
        saebench.run(**arguments, results=folder / "whole")
        hit = run_killed(arguments, folder / "killed", kills)
        same = scores(folder / "whole") == scores(folder / "killed")
    print(f"{hit} of {kills} kills hit a running measurement; scores identical: {same}")  # noqa: T201
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
