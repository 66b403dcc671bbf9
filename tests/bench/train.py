"""Ours beside the fastest peers on the same activations -> results/bench/train.json and train.md.

    python tests/bench/train.py .bench PEER_PYTHON [--steps 300] [--stage train|measure|report]

Each line is a process of its own (train_one.py). Every SAE is then measured by saebench itself: explained variance, L0 and
dead latents on activations of documents held back from training, ce_increase on held-out speeches.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from train_one import BATCH, DEAD_AFTER, WIDTH, K

import saebench
from saebench.sae import Metadata, TopK

ROOT = Path(__file__).parents[2]
OURS = 2e-3
# Each at its default rate, then at ours; SAELens also in bfloat16, which it offers on a CPU.
LINES: list[tuple[str, float | None]] = [
    ("saebench", OURS), ("saebench", 2e-4 / (WIDTH / 2**14) ** 0.5), ("sparsify", None), ("sparsify", OURS),
    ("dictionary_learning", None), ("dictionary_learning", OURS), ("sae_lens_bf16", None), ("sae_lens_bf16", OURS),
]  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One trainer's figures."""

    trainer: str
    rate: str
    lr: float
    activations: int
    activations_per_s: float
    peak_mib: float
    others_cores: float | None
    explained_variance: float
    l0: float
    dead_fraction: float
    ce_increase: float


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("peer")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--stage",
        choices=["train", "measure", "report", "all"],
        default="all",
        help="timing needs a quiet machine; report only writes train.md again from train.json",
    )
    options = parser.parse_args()
    results = ROOT / "results" / "bench"
    runs = options.folder / "train-runs.json"
    if options.stage in ("train", "all"):
        ran = [one(options.folder, options.peer, *line, options.steps) for line in LINES]
        runs.write_text(json.dumps(ran, indent=1, default=str))
    if options.stage in ("measure", "all"):
        lines = measure(options.folder, json.loads(runs.read_text()))
        found = {"activations": lines[0].activations, "batch": BATCH, "width": WIDTH, "k": K, "torch": torch.__version__,
                 "lines": [asdict(line) for line in lines]}  # fmt: skip
        results.mkdir(parents=True, exist_ok=True)
        (results / "train.json").write_text(json.dumps(found, indent=1) + "\n")
    if options.stage != "train":
        (results / "train.md").write_text(page(json.loads((results / "train.json").read_text())))


def one(folder: Path, peer: str, trainer: str, lr: float | None, steps: int) -> dict[str, Any]:
    out = folder / f"made-{trainer}-{lr or 'default'}.pt"
    python = sys.executable if trainer == "saebench" else peer
    rate = [] if lr is None else ["--lr", str(lr)]
    command = [python, ROOT / "tests/bench/train_one.py", trainer, folder, out, "--steps", str(steps), *rate]
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{trainer} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    default = "ours" if trainer == "saebench" else "its default"
    return found | {"out": out, "rate": default if lr is None else "ours" if lr == OURS else "dictionary_learning's"}


def measure(folder: Path, ran: list[dict[str, Any]]) -> list[Line]:
    """Each SAE's quality, all of them in one pass over the language model."""
    valid = torch.load(folder / "valid-acts.pt").float()
    paths = []
    for i, run in enumerate(ran):
        tensors = {name: t.detach().contiguous() for name, t in torch.load(run["out"]).items()}
        meta = Metadata("topk", model="smollm2-135m-instruct", hook="blocks.15.hook_resid_post", declared_l0=K)
        sae = saebench.SAE(**tensors, activation=TopK(K), subtracts_b_dec=True, metadata=meta)
        run |= on_activations(sae, valid)
        paths.append(folder / "made" / f"{i}-{run['trainer']}")
        saebench.save_sae(sae, paths[-1])
    records = saebench.run(paths, metrics=["fidelity"], limit=32, results=folder / "made" / "results")
    lines = []
    for run, path in zip(ran, paths, strict=True):
        [record] = [r for r in records if Path(r.sae["path"]).name == path.name]
        score = record.score("ce_increase")["value"]
        assert score is not None
        keys = (
            "explained_variance",
            "l0",
            "dead_fraction",
            "trainer",
            "rate",
            "lr",
            "activations",
            "peak_mib",
            "others_cores",
        )
        speed = run["activations"] / run["wall_s"]
        lines.append(Line(activations_per_s=speed, ce_increase=score, **{key: run[key] for key in keys}))
    return lines


def on_activations(sae: saebench.SAE, valid: torch.Tensor) -> dict[str, float]:
    error = fired = active = 0.0
    for x in valid.split(2 * BATCH):
        z = sae.encode(x)
        error += float((sae.decode(z) - x).double().pow(2).sum())
        fired = fired + torch.zeros(sae.d_sae).index_add_(0, z.indices, torch.ones(len(z.indices)))
        active += len(z.values)
    total = float((valid - valid.mean(0)).double().pow(2).sum())
    dead = float((torch.as_tensor(fired) == 0).float().mean())
    return {"explained_variance": 1 - error / total, "l0": active / len(valid), "dead_fraction": dead}


def page(found: dict[str, Any]) -> str:
    """train.md of what train.json holds."""
    lines = [Line(**line) for line in found["lines"]]
    activations = found["activations"]
    fastest = max(line.activations_per_s for line in lines if line.trainer != "saebench")
    text = [
        "# Trainers, side by side", "",
        f"Written by `make bench-train`: SmolLM2-135M-Instruct, the output of layer 15, {activations:,} activations once, "
        f"batches of {BATCH}, {WIDTH} latents, TopK with k {K}, two cores; "
        "for all, warm-up over 5 % of the steps and decay over the last 20 %.",
        "Dense products of ours and of sae_lens_bf16 are in bfloat16 (parameters in float32), those of sparsify and "
        "dictionary_learning in float32, as their training loops have it on a CPU.",
        "Explained variance, L0 and latents that never fire: on 40,960 activations of documents held back; ΔCE (nats per token): "
        "on 32 contexts of held-out speeches. Activations/s is the training loop alone, activations in memory.",
        f"Not equal: for ours a latent that was silent for {DEAD_AFTER:,} tokens is dead, so that its auxiliary loss is on in "
        "this run; the peers' own limits (10 million tokens; SAELens: 1,000 steps) lie beyond its end, and theirs stays off.",
        _dead(lines),
        '"Others" is how many cores other processes kept busy meanwhile: above about 0.1, speeds are not to be trusted.', "",
        "| Trainer | Rate | lr | Activations/s | × fastest peer | Explained variance | L0 | Dead | ΔCE | Memory, MiB | Others |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for x in lines:
        text.append(
            f"| {x.trainer} | {x.rate} | {x.lr:.3g} | {x.activations_per_s:,.0f} | {x.activations_per_s / fastest:.2f} | "
            f"{x.explained_variance:.4f} | {x.l0:.2f} | {x.dead_fraction:.4f} | {x.ce_increase:.4f} | {x.peak_mib:.0f} | "
            f"{x.others_cores or 0:.2f} |"
        )
    return "\n".join(text) + "\n"


def _dead(lines: list[Line]) -> str:
    """How many latents of each never fired, in words, at each rate that ours was trained at too."""
    said = []
    for ours in (line for line in lines if line.trainer == "saebench"):
        same = [line for line in lines if abs(line.lr - ours.lr) < 1e-9]
        counts = ", ".join(f"{line.trainer} {round(line.dead_fraction * WIDTH):,}" for line in same)
        fewer = [line.trainer for line in same if line.dead_fraction < ours.dead_fraction]
        said.append(f"at {ours.lr:.3g} {counts}" + (f" (ours more than {' and '.join(fewer)})" if fewer else ""))
    return f"Latents that never fire, of {WIDTH:,}: {'; '.join(said)}."


if __name__ == "__main__":
    main()
