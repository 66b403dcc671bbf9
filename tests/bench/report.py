"""What the benchmark found -> core.json (all of it) and core.md (two tables and what to make of them)."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from cost_model import predict

# SAEBench's name, ours, and how ours is made comparable.
PAIRS = [
    ("ce_loss_without_sae", "fidelity.ce_clean"),
    ("ce_loss_with_sae", "fidelity.ce_spliced"),
    ("ce_loss_with_ablation", "fidelity.ce_zero"),
    ("ce_loss_score", "fidelity.loss_recovered_zero"),
    ("kl_div_with_sae", "fidelity.kl"),
    ("l0", "sparsity.l0"),
    ("cossim", "fidelity.cosine"),
    ("l2_ratio", "fidelity.l2_ratio"),
    ("frac_alive", "1 - sparsity.dead_fraction"),
    ("average_max_decoder_cosine_sim", "geometry.nearest_neighbour_cosine"),
    ("float64 explained variance", "fidelity.explained_variance"),
]
NOT_COMPARABLE = [
    ("explained_variance", "fidelity.explained_variance"),
    ("mse", "fidelity.mse"),
    ("relative_reconstruction_bias", "fidelity.relative_reconstruction_bias"),
]
TARGETS = {"cold": 3.7, "cached": 6.5, "together8": 12.0}


def write_report(found: dict[str, Any], folder: Path) -> None:
    """Write core.json and core.md."""
    runs = found["runs"]
    peer, ours = runs["peer"][0], runs["cold"][0]
    found["numbers"] = numbers(peer, ours["scores"][0])
    found["speed"] = speeds(runs)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "core.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "core.md").write_text(
        "\n".join([*head(found), *speed_table(found), *memory_table(runs), *number_tables(found)]) + "\n"
    )


def value_of(scores: dict[str, float], name: str) -> float:
    return 1 - scores[name.removeprefix("1 - ")] if name.startswith("1 - ") else scores[name]


def numbers(peer: dict[str, Any], ours: dict[str, float]) -> list[dict[str, Any]]:
    """Side by side, with the relative difference."""
    theirs = peer["scores"] | {"float64 explained variance": peer["float64_explained_variance"]}
    out = []
    for a, b in PAIRS + NOT_COMPARABLE:
        x, y = theirs[a], value_of(ours, b)
        row = {"peer": a, "ours": b, "peer_value": x, "our_value": y, "relative": abs(x - y) / abs(x)}
        out.append(row | {"comparable": (a, b) in PAIRS})
    return out


def speeds(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Per SAE: medians of wall and CPU seconds, the ratio to the peer, and wall over what the cost model gives."""
    parts = ("full", "below", "above", "sae")
    cost, cost_cpu = (
        {name: median(r[unit][name] for r in runs["cost"]) for name in parts}
        for unit in ("per_token_s", "per_token_cpu_s")
    )
    peer_wall, peer_cpu = (median(r[u] for r in runs["peer"]) for u in ("wall_s", "cpu_s"))
    n, t = runs["peer"][0]["contexts"] * runs["peer"][0]["context"], runs["peer"][0]["context"]
    out = []
    for name, k in (("cold", 1), ("cached", 1), ("together4", 4), ("together8", 8), ("together16", 16)):
        if name not in runs:
            continue
        wall, cpu = (median(r[u] for r in runs[name]) for u in ("wall_s", "cpu_s"))
        model, model_cpu = (predict(c, n, k, t, cached=name != "cold") for c in (cost, cost_cpu))
        out.append(
            {"run": name, "saes": k, "repeats": len(runs[name]), "wall_s": wall, "wall_per_sae_s": wall / k,
             "ratio": peer_wall * k / wall, "cpu_ratio": peer_cpu * k / cpu, "target": TARGETS.get(name),
             "cost_model_s": model, "wall_over_model": wall / model, "cpu_over_model": cpu / model_cpu,
             "others_cores": median(r["others_cores"] or 0 for r in runs[name])}
        )  # fmt: skip
    return out


def head(found: dict[str, Any]) -> list[str]:
    peer = found["runs"]["peer"]
    first = peer[0]
    versions = ", ".join(f"{n} {v}" for n, v in first["versions"].items())
    walls = ", ".join(f"{r['wall_s']:.1f}" for r in peer)
    others = median(r["others_cores"] or 0 for r in peer)
    return [
        "# SAEBench's core and ours, side by side",
        "",
        f"Written by `make bench`: {first['contexts'] * first['context']} fixed tokens in contexts of {first['context']} "
        "(no BOS, no special token), SmolLM2-135M-Instruct in float32, the output of layer 15, SAE "
        f"`{found['sae']}`, {found['threads']} CPU cores.",
        "Every number is of this one run; on another machine only the ratios carry over, and not exactly.",
        "",
        f"SAEBench took {walls} s (batches of {first['batch_size']} contexts, its default; loading the model left out, as "
        f"on our side) and at most {first['peak_mib']:.0f} MiB of resident memory; other processes kept {others:.2f} cores "
        f"busy meanwhile. {versions}.",
        "",
    ]


LABELS = {"cold": "nothing cached", "cached": "ablated losses cached"}


def speed_table(found: dict[str, Any]) -> list[str]:
    columns = (
        "Run", "SAEs", "Repeats", "Wall, s", "Per SAE, s", "× faster per SAE", "× less CPU time", "Target",
        "Cost model, s", "Wall / model", "CPU / model", "Others, cores",
    )  # fmt: skip
    lines = ["## Speed", "", *table_head(columns)]
    for s in found["speed"]:
        cells = (
            LABELS.get(s["run"], "together, cached"),
            s["saes"],
            s["repeats"],
            f"{s['wall_s']:.1f}",
            f"{s['wall_per_sae_s']:.1f}",
            f"{s['ratio']:.1f}",
            f"{s['cpu_ratio']:.1f}",
            f"{s['target']:g}" if s["target"] else "",
            f"{s['cost_model_s']:.1f}",
            f"{s['wall_over_model']:.2f}",
            f"{s['cpu_over_model']:.2f}",
            f"{s['others_cores']:.2f}",
        )
        lines.append(table_row(cells))
    return [
        *lines,
        "",
        'Medians of repeats that took turns. "Others" is what other processes kept busy meanwhile: above about 0.1 the wall',
        "times are not to be trusted, and CPU time is the better guide. The cost model (design.md) is one full forward pass at",
        "the fastest batch size, the layers above the hook point once per SAE and ablation, each SAE, and calibration, timed",
        "in the same run; losses, KL and metrics are not in it.",
        "",
    ]


def memory_table(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = ["## Memory", "", *table_head(("Run", "Tokens", "SAEs", "Largest resident memory, MiB"))]
    for name in ("cold", "memory16k", "memory32k", "together4", "together8", "together16"):
        for r in runs.get(name, [])[:1]:
            lines.append(table_row((name, sum(r["tokens"].values()), len(r["scores"]), f"{r['peak_mib']:.0f}")))
    return [*lines, ""]


def number_tables(found: dict[str, Any]) -> list[str]:
    columns = table_head(("SAEBench", "saebench", "value of SAEBench", "value of saebench", "relative difference"))
    rows: dict[bool, list[str]] = {True: [], False: []}
    for r in found["numbers"]:
        values = f"{r['peer_value']:.9g}", f"{r['our_value']:.9g}", f"{r['relative']:.1e}"
        rows[r["comparable"]].append(table_row((r["peer"], r["ours"], *values)))
    return [
        "## Every number",
        "",
        *columns,
        *rows[True],
        "",
        '"float64 explained variance" is not SAEBench\'s: 1 − Σ‖x−x̂‖²/Σ‖x−μ‖², computed beside it in float64 from the Hugging',
        "Face model's activations.",
        "",
        "Not comparable, for the reasons in tests/bench/saebench_core_peer.py:",
        "",
        *columns,
        *rows[False],
    ]


def table_head(columns: tuple[str, ...]) -> list[str]:
    return [table_row(columns), "|" + "---|" * len(columns)]


def table_row(cells: tuple[Any, ...]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
