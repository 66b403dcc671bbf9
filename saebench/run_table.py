"""What `saebench run` shows at its end: the scores of one SAE, or several side by side, and how to read them."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from saebench.results import Record

# What each number says, in a few words; a stranger's metric shows its unit and direction instead.
MEANING = {
    "explained_variance": "share of the activations' variance that x̂ explains",
    "explained_variance_all": "the same with the outliers that are not scored",
    "mse": "mean ‖x − x̂‖²",
    "cosine": "mean cosine of x and x̂",
    "l2_ratio": "mean ‖x̂‖/‖x‖; below 1 is shrinkage",
    "relative_reconstruction_bias": "E‖x̂‖²/E[x·x̂]; 1 is unbiased",
    "normalized_mse": "error per dimension, in each token's own variance",
    "ce_clean": "the model's loss as it is",
    "ce_spliced": "its loss with x̂ in place of x",
    "ce_zero": "its loss with 0 in place of x",
    "ce_mean": "its loss with the mean in place of x",
    "ce_increase": "what splicing in x̂ costs",
    "kl": "how far the predictions move",
    "loss_recovered_zero": "of the loss that zeroing costs, what x̂ recovers (flatters)",
    "loss_recovered_mean": "of the loss that mean ablation costs, what x̂ recovers",
    "l0": "latents that fire on a token",
    "l0_sd": "its spread over tokens",
    "l1": "Σ|z|·‖decoder row‖ on a token",
    "dead_fraction": "latents that never fired in the n tokens seen",
    "dense_fraction": "latents that fire on more than a tenth of tokens",
    "decoder_norm": "mean norm of decoder rows",
    "encoder_decoder_cosine": "mean cosine of a latent's encoder and decoder",
    "nearest_neighbour_cosine": "mean cosine with the nearest other latent",
    "duplicate_fraction": "latents with a neighbour closer than 0.9",
    "effective_rank": "dimensions the dictionary spans",
}
SIDE_BY_SIDE = ("explained_variance", "loss_recovered_mean", "ce_increase", "kl", "l0", "dead_fraction")


def number(value: float) -> str:
    """Four significant digits or more, never a bare exponent for what people read."""
    if value == 0:
        return "0"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 100 else f"{value:.4g}" if abs(value) < 1e-3 else f"{value:,.1f}"


def interval(row: dict[str, Any]) -> str:
    return "" if row["low"] is None else f"{number(row['low'])} – {number(row['high'])}"


def record_table(record: Record) -> Table:
    """Every score of one SAE that is not a point of a curve."""
    task = f"{record.task['name']}@{record.task['version']}"
    table = Table(
        title=Text(f"{record.sae['name']} · {record.hook} of {record.model['id']} · {task}"), title_justify="left"
    )
    for name, justify in (("score", "left"), ("value", "right"), ("95 % interval", "right"), ("what it says", "left")):
        table.add_column(name, justify=justify, no_wrap=name != "what it says")  # type: ignore[arg-type]
    last = None
    for row in record.scores:
        if row["at"] is not None:
            continue
        if last not in (None, row["metric"]):
            table.add_section()
        last = row["metric"]
        better = {"higher": " ↑", "lower": " ↓"}.get(row["direction"], "")
        meaning = MEANING.get(row["key"], row["unit"])
        if row["key"] == "dead_fraction":
            meaning = meaning.replace("n tokens", f"{row['n']:,} tokens")
        table.add_row(Text(row["key"] + better), number(row["value"]), interval(row), Text(meaning))
    return table


def runs_table(records: Sequence[Record]) -> Table:
    """The main scores of several SAEs, a row each."""
    table = Table(title_justify="left")
    table.add_column("SAE", overflow="fold")
    keys = [k for k in SIDE_BY_SIDE if any(_find(r, k) for r in records)]
    keys = keys or [s["key"] for s in records[0].scores if s["at"] is None][:6]
    for key in keys:
        table.add_column(key, justify="right")
    for record in records:
        cells = []
        for key in keys:
            row = _find(record, key)
            cells.append("–" if row is None else number(row["value"]) + _plus_minus(row))
        table.add_row(Text(record.sae["name"]), *cells)
    return table


def _plus_minus(row: dict[str, Any]) -> str:
    return "" if row["low"] is None else f" ± {number((row['high'] - row['low']) / 2)}"


def _find(record: Record, key: str) -> dict[str, Any] | None:
    try:
        return record.score(key)
    except KeyError:
        return None


def reading_help(records: Sequence[Record]) -> str:
    """Three lines on how to read the table."""
    corpus = records[0].corpus
    tokens = corpus.get("tokens", {})
    seen = (
        f"{tokens['scored']:,} scored tokens ({tokens['outliers']:,} outliers and {tokens['special']:,} special tokens are not scored)"
        if tokens
        else "no tokens (weights only)"
    )
    return (
        f"Over {seen} in {corpus['contexts']:,} contexts of {corpus['documents']:,} documents. ↑ higher is better, ↓ lower is.\n"
        "Intervals are over documents: another sample of documents would give a value in there 95 times in 100. To tell two SAEs\n"
        "apart do not look whether intervals overlap, use `saebench compare`: it pairs them on the same contexts."
    )
