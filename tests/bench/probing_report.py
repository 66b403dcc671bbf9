"""What the probing benchmark found -> probing.md."""

import math
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from report import table_head, table_row


def write_report(found: dict[str, Any], folder: Path) -> None:
    """Write probing.md from what is in probing.json."""
    lines = ["# k-sparse probing: SAEBench's and ours, and what it costs", ""]
    lines += ["Written by `make bench-probing`. SmolLM2-135M-Instruct, float32, the output of layer 15.", ""]
    if "peer" in found:
        lines += _peer(found["peer"])
    if "cost" in found:
        lines += _cost(found["cost"])
    if "tasks" in found:
        lines += ["", *_tasks(found["tasks"])]
    (folder / "probing.md").write_text("\n".join(lines) + "\n")


def _peer(peer: dict[str, Any]) -> list[str]:
    columns = ("k", "SAEBench", "its seed noise", "saebench", "difference", "± 1.96 standard errors",
               "unscaled, C = 1", "scaled, C = 1", "unscaled, C as ours")  # fmt: skip
    seeds = len(peer["rows"][0]["ours"])
    lines = [
        "## The same tokens and labels",
        "",
        f"{peer['documents']} documents of `probing/wordnet`, {peer['classes']} classes, each against as many documents of "
        f"the others (SAEBench's protocol: chance is a half), the mean over classes and over {seeds} draws of those others. "
        "SAEBench's own functions on one side, our choice of latents, scaling and cross-validated C on the other; neither "
        "leaves outliers out.",
        "",
        *table_head(columns),
    ]
    for row in peer["rows"]:
        a, b = row["saebench"], row["ours"]
        error = 1.96 * math.sqrt((stdev(a) ** 2 + stdev(b) ** 2) / seeds)
        cells = (row["k"], f"{mean(a):.4f}", f"{stdev(a):.4f}", f"{mean(b):.4f}", f"{mean(b) - mean(a):+.4f}", f"{error:.4f}",
                 *(f"{mean(row[name]):.4f}" for name in ("their_fit", "scaled_C1", "unscaled_cv")))  # fmt: skip
        lines.append(table_row(cells))
    versions = ", ".join(f"{name} {version}" for name, version in peer["versions"].items())
    return [
        *lines,
        "",
        f"The mean-pooled latents of the two differ by {peer['largest_difference']:.1e} at most (the largest is "
        f"{peer['largest_latent']:.1f}). Seed noise is the standard deviation of SAEBench's number over draws. The last three "
        "columns are other fits on the latents that ours chose, on the very sets that ours were fitted on; the first of them is "
        "SAEBench's fit. Ours multiplies latents by their decoder norm, divides the chosen ones by one common factor and takes "
        "the C with the fewest held-out errors (here about 112 documents a probe).",
        "",
        versions + ".",
        "",
    ]


def _cost(cost: dict[str, Any]) -> list[str]:
    columns = ("SAEs", "model, s", "rest of the pass, s", "per SAE, s", "probes, s", "per SAE, s")
    lines = [
        "## Cost",
        "",
        f"The first {cost['documents']} documents of `probing/wordnet`. CPU seconds on one thread, since the machine was not "
        "ours alone; medians of two repeats that took turns. The rest of the pass is each SAE's latents, those of its three "
        "random floors, and pooling all.",
        "",
        *table_head(columns),
    ]
    model = {}
    for n in sorted({run["saes"] for run in cost["runs"]}):
        runs = [run for run in cost["runs"] if run["saes"] == n]
        model[n] = median(run["model_s"] for run in runs)
        rest = median(run["pass_s"] - run["model_s"] for run in runs)
        probes = median(sum(run["probes_s"]) for run in runs)
        cells = (n, f"{model[n]:.1f}", f"{rest:.1f}", f"{rest / n:.1f}", f"{probes:.1f}", f"{probes / n:.1f}")
        lines.append(table_row(cells))
    few, many = min(model), max(model)
    lines += [
        "",
        f"The model's time for {many} SAEs is {model[many] / model[few]:.2f} × that for {few}: it runs once.",
        "",
    ]
    lines += [
        "Probes are fitted for each SAE. Ten one-against-the-rest probes on 2,304 latents and 4,000 training documents:",
        "",
        *table_head(("Fit", "CPU seconds")),
        *(table_row((name, f"{seconds:.1f}")) for name, seconds in cost["fit"].items()),
        "",
        "What was done about it: C is chosen by cross-validation up to k = 128 only and is fixed for all latents; folds go up "
        "the grid from where they were, in Newton steps; all latents stay sparse; the fits run on one thread, which is "
        "faster; probes that do not depend on the SAE are fitted once for a model, place and task, and cached.",
    ]
    return lines


def _tasks(rows: list[dict[str, Any]]) -> list[str]:
    columns = (
        "task",
        "SAE",
        "n",
        "groups",
        "accuracy",
        "random SAE",
        "gap to the random SAE",
        "dense probe",
        "gap to it",
        "majority",
    )
    lines = [
        "## Trained against random, and the dense probe's lead",
        "",
        "Accuracy on the test side at k = 16 and mean pooling; gaps are paired over documents, with 95 % intervals. **Bold**: "
        "the interval of the gap to the random SAE excludes zero.",
        "",
        *table_head(columns),
    ]
    for row in rows:
        random = _with_interval(row["gap_to_random_sae"])
        low = row["gap_to_random_sae"][1]
        cells = (row["task"] + (" (partial)" if row["partial"] else ""), row["sae"], row["n"], row["groups"],
                 f"{row['accuracy'][0]:.3f}", f"{row['random_sae_accuracy'][0]:.3f}",
                 f"**{random}**" if low is not None and low > 0 else random, f"{row['dense_accuracy'][0]:.3f}",
                 _with_interval(row["gap_to_dense"]), f"{row['majority_rate'][0]:.3f}")  # fmt: skip
        lines.append(table_row(cells))
    return lines


def _with_interval(score: list[float | None]) -> str:
    value, low, high = score
    return f"{value:+.3f}" + ("" if low is None else f" ({low:+.3f} … {high:+.3f})")
