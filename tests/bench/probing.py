"""k-sparse probing beside SAEBench's, and what it costs -> results/bench/probing.json and probing.md.

    python tests/bench/probing.py .bench .bench/venv/bin/python [--only peer|cost|tasks] [--records DIR]

`peer`: the same tokens and labels through SAEBench's functions (saebench_probing_peer.py) and ours. `cost`: one SAE against
eight, the model's time apart from the SAEs' and the probes'. `tasks`: what the probing records below DIR say.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from core import permuted_copies
from meter import Meter
from probing_report import write_report
from probing_tokens import main as write_tokens

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SAE = ROOT / "results/baselines/smollm2-135m-layer15-topk-k32"
LAYER, DOCUMENTS, TOGETHER = 15, 500, 8
FITS = ("ours", "their_fit", "scaled_C1", "unscaled_cv")


# --- the same tokens through both ----------------------------------------------------------------------------------


def peer(folder: Path, python: Path) -> dict[str, Any]:
    """SAEBench's accuracies over its seeds, ours on sets drawn as it draws them, and how far the pooled latents differ."""
    if not (folder / "probing.npz").is_file():
        write_tokens(folder)
    answer = folder / "peer-probing.json"
    if not answer.is_file():
        command = [python, "-W", "ignore", HERE / "saebench_probing_peer.py", "--model", folder / "model"]
        command += ["--tokens", folder / "probing.npz", "--sae", SAE, "--out", answer]
        subprocess.run(list(map(str, command)), check=True, cwd=ROOT)
    theirs = json.loads(answer.read_text())
    data = np.load(folder / "probing.npz")
    mine = folder / "our-probing.npz"
    if not mine.is_file():
        np.savez(mine, **dict(zip(("latents", "scale"), our_latents(data), strict=True)))
    found, scale = (np.load(mine)[name] for name in ("latents", "scale"))
    other = np.load(answer.with_suffix(".npz"))["latents"]
    ours = [accuracies(found, scale, data, seed, theirs["ks"]) for seed in range(theirs["seeds"])]
    rows = []
    for k in theirs["ks"]:
        a = [float(np.mean(list(run[str(k)].values()))) for run in theirs["accuracy"]]
        row = {"k": k, "saebench": a} | {name: [run[k][name] for run in ours] for name in FITS}
        rows.append(row)
    return {
        "documents": len(data["label"]),
        "classes": len(data["classes"]),
        "largest_difference": float(np.abs(found - other).max()),
        "largest_latent": float(np.abs(other).max()),
        "rows": rows,
        "versions": theirs["versions"],
    }


def our_latents(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean-pooled latents [N, d_sae] of every token but BOS (no outlier is left out here), and decoder norms [d_sae]."""
    import torch
    from saebench.plugins.metrics.probing.pooling import pool_latents, sparse_rows

    import saebench
    from saebench.hookpoint import HookPoint
    from saebench.models import load_model
    from saebench.subject import Subject

    subject = Subject(load_model("smollm2-135m-instruct"))
    sae, place = saebench.load_sae(SAE), HookPoint.parse(f"blocks.{LAYER}.hook_resid_post")
    parts = []
    for rows in np.array_split(np.arange(len(data["label"])), math.ceil(len(data["label"]) / 32)):
        lengths = data["lengths"][rows]
        ids = torch.from_numpy(data["token_ids"][rows, : lengths.max()])
        place_in = torch.arange(ids.shape[1])
        scored = (place_in > 0) & (place_in < torch.from_numpy(lengths)[:, None])
        with torch.no_grad():
            x, _ = subject.capture(ids, place, place)
            parts.append(pool_latents(sae.encode(x.float()).select(scored), scored))
    dense = sparse_rows(parts, "mean", sae.d_sae).toarray()
    return dense, sae.W_dec.double().norm(dim=1).numpy()


def accuracies(
    latents: np.ndarray, scale: np.ndarray, data: Any, seed: int, ks: list[int]
) -> dict[int, dict[str, float]]:
    """{k: {"ours": mean accuracy over classes, and the same with other fits on the latents that ours chose}}.

    `their_fit`: unscaled, C = 1. `scaled_C1`: to unit variance, with C = 1. `unscaled_cv`: unscaled, C of our grid.
    """
    from saebench.plugins.metrics.probing.probes import FOLDS, GRID, Documents
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

    from saebench.labels import Labels

    rng = np.random.default_rng(seed)
    found: dict[int, dict[str, list[float]]] = {k: {name: [] for name in FITS} for k in ks}
    for c in range(len(data["classes"])):
        rows = np.concatenate(
            [balanced(data["label"], np.flatnonzero(data["test"] == side), c, rng) for side in (0, 1)]
        )
        own, test = (data["label"][rows] == c).astype(np.int64), data["test"][rows]
        documents = Documents(Labels(("rest", "own"), own, test, np.arange(len(rows))))
        features = latents[rows]
        for k, probe in documents.sparse_probes(features * scale, ks).items():
            found[k]["ours"].append(float((documents.predicted(probe.decision) == own[test]).mean()))
            columns = features[:, probe.chosen[0]].astype(np.float64)
            sd = columns[~test].std(0)
            scaled = (columns - columns[~test].mean(0)) / np.where(sd > 0, sd, 1)
            fixed, chosen = (
                LogisticRegression(max_iter=1000),
                LogisticRegressionCV(Cs=GRID, cv=FOLDS, scoring="neg_log_loss", max_iter=1000),
            )
            for name, rows_of, model in (
                ("their_fit", columns, fixed), ("scaled_C1", scaled, fixed), ("unscaled_cv", columns, chosen)
            ):  # fmt: skip
                model.fit(rows_of[~test], own[~test])
                found[k][name].append(float((model.predict(rows_of[test]) == own[test]).mean()))
    return {k: {name: float(np.mean(v)) for name, v in one.items()} for k, one in found.items()}


def balanced(label: np.ndarray, rows: np.ndarray, c: int, rng: np.random.Generator) -> np.ndarray:
    """All of a class and as many of the others, spread over them: how SAEBench sets a class against the rest."""
    own = rows[label[rows] == c]
    others = sorted(set(label.tolist()) - {c})
    each = math.ceil(len(own) / len(others))
    rest = np.concatenate([rng.permutation(rows[label[rows] == o])[:each] for o in others])
    return np.concatenate([own, rng.permutation(rest)[: len(own)]])


# --- what it costs ---------------------------------------------------------------------------------------------------


def cost(folder: Path) -> dict[str, Any]:
    """One SAE and eight on the first documents of wordnet@1, twice by turns; then one fit on all latents, three ways."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    saes = permuted_copies(SAE, folder / "saes", TOGETHER)
    with threadpool_limits(1):
        runs = [{"saes": n, **timed_run(saes[:n])} for n in (1, 1, TOGETHER, 1, TOGETHER)]
        return {"documents": DOCUMENTS, "runs": runs[1:], "fit": fits()}  # the first has the baselines to fit


def timed_run(saes: list[Path]) -> dict[str, Any]:
    """CPU seconds of a run: up to the hook point in the model, everything else of the pass, and each SAE's probes.

    CPU time, since other processes stretch the wall time; on one thread, since waiting threads count as busy.
    """
    from saebench.plugins.metrics.probing.metric import Probing

    import saebench
    from saebench.stream import Pass
    from saebench.subject import Subject

    with tempfile.TemporaryDirectory() as results, ExitStack() as stack:
        model, whole, probes = (
            stack.enter_context(stopwatch(*place))
            for place in ((Subject, "capture"), (Pass, "run"), (Probing, "scores"))
        )
        meter = Meter()
        records = saebench.run(saes, task="probing/wordnet", limit=DOCUMENTS, results=results, force=True)
        spent = meter.stop()
    if bad := {r.sae["name"]: r.errors for r in records if r.errors}:
        raise SystemExit(f"metrics failed: {bad}")
    batch = records[0].runs[-1]["provenance"]["batch_size"]
    return {"model_s": sum(model), "pass_s": sum(whole), "probes_s": probes, "batch": batch, **spent}


@contextmanager
def stopwatch(owner: Any, name: str) -> Iterator[list[float]]:
    """CPU seconds of every call of a method."""
    method, spent = getattr(owner, name), []

    def timed(*args: Any) -> Any:
        begin = time.process_time()
        found = method(*args)
        spent.append(time.process_time() - begin)
        return found

    setattr(owner, name, timed)
    try:
        yield spent
    finally:
        setattr(owner, name, method)


def fits() -> dict[str, float]:
    """CPU seconds of ten one-against-the-rest probes on 2,304 made-up latents of 4,000 documents; some tell the class."""
    from saebench.plugins.metrics.probing.probes import GRID, Documents
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    from saebench.labels import Labels

    rng = np.random.default_rng(0)
    n, width, classes = 5000, 2304, 10
    label = rng.integers(0, classes, n)
    latents = rng.exponential(size=(n, width)).astype(np.float32) * (rng.random((n, width)) < 0.08)
    for c in range(classes):
        latents[label == c, c * 20 : c * 20 + 20] += (rng.random(((label == c).sum(), 20)) < 0.2).astype(np.float32)
    from scipy.sparse import csr_matrix

    test = np.arange(n) % 5 == 0
    documents = Documents(Labels(tuple(map(str, range(classes))), label, test, np.arange(n)))
    sparse, out = csr_matrix(latents), {}
    for name, run in {
        "all latents, fixed C (what is done)": lambda: documents.full_probe(sparse),
        "128 latents, cross-validated C (what is done)": lambda: documents.sparse_probes(sparse, [128]),
    }.items():
        begin = time.process_time()
        run()
        out[name] = time.process_time() - begin
    begin = time.process_time()
    train, one = latents[~test].astype(np.float64), label[~test] == 0
    for C in GRID:  # one class of ten; the other nine cost the same
        cross_val_score(LogisticRegression(C=C, max_iter=1000), train, one, cv=3)
    out["all latents, cross-validated C, a plain scikit-learn loop (one class × 10)"] = 10 * (
        time.process_time() - begin
    )
    return out


# --- what records say --------------------------------------------------------------------------------------------------


def tasks(records: Path) -> list[dict[str, Any]]:
    """Headline numbers of every probing record: value, low and high of each."""
    import saebench

    keys = ("accuracy", "random_sae_accuracy", "gap_to_random_sae", "dense_accuracy", "gap_to_dense", "majority_rate")
    found = []
    for record in saebench.load_records([records]):
        scores = {key: [record.score(key)[part] for part in ("value", "low", "high")] for key in keys}
        groups = record.corpus["labels"]["groups"]["test"]
        about = {
            "task": record.task_label,
            "sae": record.sae["name"],
            "n": record.score("accuracy")["n"],
            "groups": groups,
        }
        found.append(about | scores | {"partial": record.partial})
    return sorted(found, key=lambda row: (row["task"], row["sae"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("peer_python", type=Path)
    parser.add_argument("--only", choices=["peer", "cost", "tasks"])
    parser.add_argument("--records", type=Path, help="a folder of probing records")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench")
    args = parser.parse_args()
    os.environ.setdefault("SAEBENCH_CACHE", str(args.folder.resolve() / "cache"))
    path = args.out / "probing.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    if args.records:
        found["tasks"] = tasks(args.records)
    if args.only in (None, "peer"):
        found["peer"] = peer(args.folder.resolve(), args.peer_python.absolute())
    if args.only in (None, "cost"):
        found["cost"] = cost(args.folder.resolve())
    path.write_text(json.dumps(found, indent=1) + "\n")
    write_report(found, args.out)
    print((args.out / "probing.md").read_text())


if __name__ == "__main__":
    sys.exit(main())
