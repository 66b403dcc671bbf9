"""`saebench stability`: agreement of SAEs that differ in their training seed."""

import json
from pathlib import Path
from typing import Any

import click

from saebench.commands.shell import console_on, debug_option, echo, errors


@click.command()
@click.argument("saes", nargs=-1, required=True, metavar="A B [C…]")
@click.option("--model", help="Language model. Default: the checkpoints' own.")
@click.option("--hook", help="Hook point of the SAEs. Default: the checkpoints' own.")
@click.option(
    "--contexts",
    type=int,
    default=64,
    show_default=True,
    help="Contexts of text for finding live latents and their firing rates; 0: compare weights only.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the null distribution.")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder of the records.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the record as JSON to stdout.")
@debug_option
def stability(saes: tuple[str, ...], as_json: bool, debug: bool, **options: Any) -> None:
    """Match the latents of SAEs that differ in their training seed, and count those they share.

    A shared initial dictionary or order of the data makes SAEs look more stable than they are.

    \b
    Examples:
      saebench stability runs/topk-s0 runs/topk-s1 runs/topk-s2
      saebench stability a/ b/ --contexts 0
    """
    with errors(debug):
        from saebench.running.comparing import ComparisonRequest, compare_saes

        record = compare_saes(ComparisonRequest("stability", saes, **options))
        if as_json:
            echo(json.dumps(record.to_json(), indent=1, allow_nan=False))
            return
        from saebench.board.run_table import record_table

        console = console_on()
        console.print(record_table(record))
        for pair in record.metrics["stability"]["details"]["pairs"]:
            a, b = (record.sae["names"][i] for i in pair["saes"])
            line = f"{a} ~ {b}: pw_mcc {pair['pw_mcc']:.3f}, null {pair['null']:.3f}, shared {pair['shared']:.3f}"
            console.print(f"{line}; {pair['matching']} matching of {min(pair['live']):,} live latents", markup=False)
        console.print(f"record: {record.path}", markup=False, soft_wrap=True)
