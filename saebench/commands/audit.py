"""`saebench audit`: how far each score of a metric can be trusted."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench.commands.run import RunProgress
from saebench.commands.shell import console_on, debug_option, echo, errors
from saebench.commands.train import TrainProgress

if TYPE_CHECKING:
    from rich.table import Table

    from saebench.reliability import Card, ScoreCard


@click.command()
@click.option(
    "--metric", "metrics", multiple=True, help="Only this metric; repeatable. Default: all that need no judge."
)
@click.option("--small", is_flag=True, help="Less training and fewer contexts: under an hour on two cores.")
@click.option(
    "--sae",
    "saes",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A trained SAE, for metrics that need a language model; repeatable, all of one model. Default: results/baselines.",
)
@click.option("--task", help="Of those SAEs. Default: the metric's own.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the degraded copies.")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Cards are written to its folder reliability.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the cards as JSON to stdout.")
@debug_option
def audit(as_json: bool, debug: bool, **options: Any) -> None:
    """Measure how reliable each score of a metric is, on SAEs whose order is known.

    A panel of SAEs is trained on a planted model; copies of them are degraded step by step. Panel and records are cached: an
    audit that was interrupted goes on.

    \b
    Examples:
      saebench audit --metric geometry --small
      saebench audit --small --json
      saebench audit --metric my_metric --small
    """
    with errors(debug):
        from saebench.audit.audit import AuditRequest
        from saebench.audit.audit import audit as run_audit

        console = console_on()
        progress = _Progress(console, quiet=False)
        cards = []
        for card in run_audit(AuditRequest(**options), progress, TrainProgress(console, quiet=False)):
            cards.append(card)
            if not as_json:
                console_on(sys.stdout).print(card_table(card))
        if as_json:
            echo(json.dumps([card.to_json() for card in cards], indent=1, allow_nan=False))


class _Progress(RunProgress):
    """Without a line for each of a hundred records that an earlier audit made."""

    def message(self, text: str) -> None:
        if "already measured" not in text:
            super().message(text)


def card_table(card: "Card") -> "Table":
    """The cards of a metric, a row per score."""
    from rich.table import Table

    table = Table(title=f"{card.metric}@{card.version}: {card.command}", title_justify="left")
    table.add_column("score")
    for name in _COLUMNS:
        table.add_column(name.replace("_", " "), justify="right")
    for score in card.scores:
        table.add_row(score.key + ("*" if score.headline else ""), *(cell(score, name) for name in _COLUMNS))
    table.caption = "* headline; –: not measured (--json has the reason)"
    return table


_COLUMNS = (
    "reseed_cv", "smallest_difference", "seed_sd", "discriminability", "degraded", "wrong_way", "ladder", "monotone", "truth",
    "floor",
)  # fmt: skip


def cell(score: "ScoreCard", name: str) -> str:
    """One number of a card as text."""
    value = getattr(score, name)
    return "–" if value is None else value if isinstance(value, str) else f"{value:.3g}"
