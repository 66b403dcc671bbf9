"""The benchmark itself: SAEBench's core and ours, interleaved, on one machine -> results/bench/core.json and core.md.

    python tests/bench/core.py .bench .bench/venv/bin/python [--rounds 3] [--peer-rounds 2] [--sae DIR] [--quick]

Each measurement is a process of its own, timed inside (meter.py), loading of the language model left out on both sides.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from report import write_report

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
TOGETHER = (4, 8, 16)


class Bench:
    """Where things lie, and how one measurement is started."""

    def __init__(self, folder: Path, peer_python: Path, sae: Path) -> None:
        self.folder, self.peer_python, self.sae = folder.resolve(), peer_python, sae
        self.cache = self.folder / "cache"
        self.env = os.environ | {"SAEBENCH_CACHE": str(self.cache), "OMP_NUM_THREADS": threads(), "TQDM_DISABLE": "1"}

    def tokens(self, name: str) -> Path:
        return self.folder / f"tokens-{name}.npy"

    def _start(self, python: Path | str, script: str, *arguments: str | Path) -> dict[str, Any]:
        out = self.folder / "answer.json"
        out.unlink(missing_ok=True)
        wait_for_quiet()
        command = [str(python), "-W", "ignore", str(HERE / script), "--out", str(out), *map(str, arguments)]
        done = subprocess.run(command, env=self.env, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{script} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        answer: dict[str, Any] = json.loads(out.read_text())
        return answer

    def peer(self, tokens: str) -> dict[str, Any]:
        where = ("--model", self.folder / "model", "--tokens", self.tokens(tokens), "--sae", self.sae)
        return self._start(self.peer_python, "saebench_core_peer.py", *where)

    def cost(self) -> dict[str, Any]:
        where = ("--model", self.folder / "model", "--tokens", self.tokens("8k"), "--sae", self.sae)
        return self._start(sys.executable, "cost_model.py", *where)

    def ours(self, saes: list[Path], tokens: str, *, cold: bool = False) -> dict[str, Any]:
        """One run; `cold` forgets the ablated losses and the calibration first."""
        if cold:
            for kind in ("ablations", "calibration"):
                shutil.rmtree(self.cache / kind, ignore_errors=True)
        results = self.folder / "results"
        shutil.rmtree(results, ignore_errors=True)
        return self._start(sys.executable, "ours.py", "--tokens", self.tokens(tokens), "--results", results, *saes)


def threads() -> str:
    return os.environ.get("OMP_NUM_THREADS") or str(min(2, os.cpu_count() or 1))


def wait_for_quiet(patience_s: float = float(os.environ.get("BENCH_PATIENCE", "60"))) -> None:
    """Wait until other processes leave the machine alone, but not for ever: what they took stands beside every time."""
    from meter import Meter

    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        meter = Meter()
        time.sleep(2)
        if (meter.stop()["others_cores"] or 0.0) < 0.1:
            return


def permuted_copies(sae: Path, to: Path, n: int) -> list[Path]:
    """n folders of the SAE with its latents in another order each: as much work as n SAEs, and all must score the same."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(sae / "sae_weights.safetensors")
    folders = []
    for i in range(n):
        folder = to / f"{sae.name}-{i:02d}"
        folders.append(folder)
        if (folder / "sae_weights.safetensors").is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        order = torch.randperm(len(tensors["b_enc"]), generator=torch.Generator().manual_seed(i))
        order = order.sort().values if i == 0 else order
        columns = {"W_enc": (slice(None), order), "W_dec": (order,), "b_enc": (order,), "b_dec": (slice(None),)}
        shutil.copy(sae / "cfg.json", folder / "cfg.json")
        save_file({n: t[columns[n]].contiguous() for n, t in tensors.items()}, folder / "sae_weights.safetensors")
    return folders


def measure(bench: Bench, rounds: int, peer_rounds: int, *, quick: bool) -> dict[str, Any]:
    """Every measurement, the two sides taking turns so that a slow stretch of the machine hits both."""
    many = permuted_copies(bench.sae, bench.folder / "saes", max(TOGETHER))
    runs: dict[str, list[dict[str, Any]]] = {}

    def keep(name: str, answer: dict[str, Any]) -> None:
        runs.setdefault(name, []).append(answer)
        others = answer.get("others_cores")
        print(
            f"{name:12} {answer.get('wall_s', 0):7.1f} s wall, others used {others} cores", file=sys.stderr, flush=True
        )

    for i in range(max(rounds, peer_rounds)):
        if i < peer_rounds:
            keep("peer", bench.peer("8k"))
        if i < rounds:
            keep("cost", bench.cost())
            keep("cold", bench.ours([bench.sae], "8k", cold=True))
            keep("cached", bench.ours([bench.sae], "8k"))
            for k in TOGETHER[:1] if quick else TOGETHER[: 3 if i == 0 else 2]:
                keep(f"together{k}", bench.ours(many[:k], "8k"))
    for name in () if quick else ("16k", "32k"):
        keep(f"memory{name}", bench.ours([bench.sae], name, cold=True))
    return {"threads": int(threads()), "sae": bench.sae.name, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("peer_python", type=Path)
    parser.add_argument("--sae", type=Path, default=ROOT / "results/baselines/smollm2-135m-layer15-topk-k32")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="fewer SAEs together, no runs on more tokens")
    args = parser.parse_args()
    bench = Bench(args.folder, args.peer_python.absolute(), args.sae.resolve())
    found = measure(bench, args.rounds, args.peer_rounds, quick=args.quick)
    write_report(found, args.out)
    print((args.out / "core.md").read_text())


if __name__ == "__main__":
    main()
