"""What `saebench run` shows at its end: the scores of one SAE with what they say, and how to read them."""

from collections.abc import Sequence
from dataclasses import replace

from rich.table import Table
from rich.text import Text

from saebench.board.tables import board_table, clean, interval_text, value_text
from saebench.leaderboard import Cell, boards
from saebench.results import Record

# What each number says, in a few words; a stranger's metric shows its unit.
MEANING = {
    "explained_variance": "share of the activations' variance that x̂ explains",
    "explained_variance_all": "the same with the outliers that are not scored",
    "mse": "mean ‖x − x̂‖²",
    "cosine": "mean cosine of x and x̂",
    "l2_ratio": "mean ‖x̂‖/‖x‖; below 1 is shrinkage",
    "relative_reconstruction_bias": "E‖x̂‖²/E[x·x̂]; 1 is unbiased",
    "normalized_mse": "error per dimension, in each token's own variance",
    "ce_clean": "the model's loss as it is (nats per token)",
    "ce_spliced": "its loss with x̂ in place of x",
    "ce_zero": "its loss with 0 in place of x",
    "ce_mean": "its loss with the mean in place of x",
    "ce_increase": "what splicing in x̂ costs",
    "kl": "how far the predictions move",
    "loss_recovered_zero": "of what zeroing costs, the share x̂ recovers (flatters)",
    "loss_recovered_mean": "of what mean ablation costs, the share x̂ recovers",
    "l0": "latents that fire on a token",
    "l0_sd": "its spread over tokens",
    "l1": "Σ|z|·‖decoder row‖ on a token",
    "dead_fraction": "latents that never fired in {n:,} tokens",
    "dense_fraction": "latents that fire on more than a tenth of tokens",
    "decoder_norm": "mean norm of decoder rows",
    "encoder_decoder_cosine": "mean cosine of a latent's encoder and decoder",
    "nearest_neighbour_cosine": "mean cosine with the nearest other latent",
    "duplicate_fraction": "latents with a neighbour closer than 0.9",
    "effective_rank": "dimensions the dictionary spans",
    "accuracy": "test documents whose label 16 latents a class tell",
    "balanced_accuracy": "the same, every class counting alike",
    "auroc": "how well they order documents; chance is a half",
    "gap_to_dense": "accuracy less that of a probe on x itself (the ceiling)",
    "gap_to_random_sae": "accuracy less that of a random SAE (the floor)",
    "dense_accuracy": "accuracy of a probe on x itself",
    "random_sae_accuracy": "accuracy of 16 latents of a random SAE",
    "majority_rate": "accuracy of always saying the commonest label",
    "detection_gain": "what the explanation adds in detection: real less shuffled",
    "detection": "telling activating windows from random silent ones",
    "detection_shuffled": "the same with another latent's explanation; chance is a half",
    "detection_empty": "the same with none",
    "detection_auroc": "how well P(true) orders them; chance is a half",
    "detection_auroc_gain": "the same, real less shuffled",
    "detection_hard_gain": "what the explanation adds against hard negatives",
    "detection_hard": "telling them from silent windows around the same token",
    "detection_hard_shuffled": "the same with another latent's explanation",
    "detection_hard_empty": "the same with none",
    "detection_hard_auroc": "how well P(true) orders them",
    "detection_hard_auroc_gain": "the same, real less shuffled",
    "detection_coverage": "sampled latents that have a detection score",
    "detection_answered": "windows that were answered",
    "fuzzing_gain": "what the explanation adds in fuzzing: real less shuffled",
    "fuzzing": "telling right highlights from the same moved onto silent tokens",
    "fuzzing_shuffled": "the same with another latent's explanation; far above a half: the highlights leak",
    "fuzzing_empty": "the same with none",
    "fuzzing_auroc": "how well P(true) orders them; chance is a half",
    "fuzzing_auroc_gain": "the same, real less shuffled",
    "fuzzing_silent_gain": "what the explanation adds against silent text",
    "fuzzing_silent": "telling right highlights from the same on silent text",
    "fuzzing_silent_shuffled": "the same with another latent's explanation",
    "fuzzing_silent_empty": "the same with none",
    "fuzzing_silent_auroc": "how well P(true) orders them",
    "fuzzing_silent_auroc_gain": "the same, real less shuffled",
    "fuzzing_coverage": "sampled latents that have a fuzzing score",
    "fuzzing_answered": "windows that were answered",
}


def run_tables(records: Sequence[Record]) -> list[Table]:
    """One SAE: all its scores. Several: a board of each group that they form (partial ones too: they were asked for)."""
    if len(records) == 1:
        return [record_table(records[0])]
    return [board_table(board) for board in boards([replace(record, partial=False) for record in records])]


def record_table(record: Record) -> Table:
    """Every score of one SAE that is not a point of a curve."""
    task = f"{record.task['name']}@{record.task['version']}"
    title = f"{clean(record.sae['name'])} · {clean(record.hook)} of {clean(record.model['id'])} · {clean(task)}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("score", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("what it says")
    last = None
    for row in record.scores:
        if row["at"] is not None:
            continue
        if last not in (None, row["metric"]):
            table.add_section()
        last = row["metric"]
        cell = Cell("scored", row["value"], row["low"], row["high"], row["n"])
        better = {"higher": " ↑", "lower": " ↓"}.get(row["direction"], "")
        meaning = MEANING.get(row["key"], str(row["unit"])).replace("{n:,}", f"{row['n']:,}")
        table.add_row(Text(clean(row["key"]) + better), value_text(cell), interval_text(cell), Text(clean(meaning)))
    return table


def reading_help(records: Sequence[Record]) -> str:
    """How to read the numbers, in a few lines."""
    corpus = records[0].corpus
    tokens = corpus.get("tokens")
    seen = "no tokens"
    if tokens:
        aside = f"{tokens['outliers']:,} outliers and {tokens['special']:,} special tokens are not scored"
        seen = f"{tokens['scored']:,} scored tokens ({aside})"
    measured = {name: entry for record in records for name, entry in record.metrics.items()}
    own = [clean(name) for name, entry in measured.items() if not entry.get("paired", True)]
    aside = f" (those of {', '.join(own)}: over each SAE's own sampled latents, and not paired)" if own else ""
    return (
        f"Over {seen} in {corpus['contexts']:,} contexts of {corpus['documents']:,} documents. "
        "↑ higher is better, ↓ lower is better.\n"
        f"Intervals are over documents{aside}: in 95 of 100 such samples the interval holds the true value.\n"
        "To tell two SAEs apart use `saebench compare A B`, which pairs them on the same contexts; overlapping intervals do not\n"
        "mean that they are equal."
    )
