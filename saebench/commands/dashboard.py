"""`saebench dashboard`: every latent of an SAE on one offline page."""

import json
from pathlib import Path
from typing import Any

import click

from saebench.commands.shell import debug_option, echo, errors
from saebench.errors import UsageError


@click.command()
@click.option("--sae", required=True, metavar="PATH", help="An SAE checkpoint.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--format", "as_", type=click.Choice(["html", "neuronpedia"]), default="html", show_default=True,
              help="A page, or JSON in Neuronpedia's batch format.")  # fmt: skip
@click.option("--latent", "latents", default="", metavar="I[,J…]",
              help="Only these latents. Default: all, of more than 4,096 an even spread.")  # fmt: skip
@click.option("--contexts", type=click.IntRange(min=1), help="Of the fidelity task's text. Default: all.")
@click.option("--model", help="Alias, hub id, folder or .gguf. Default: the model the checkpoint names.")
@click.option("--hook", help="Where the SAE reads. Default: from the checkpoint.")
@click.option("--device", help="cpu, cuda, cuda:1 … Default: a GPU if there is one.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
              help="Records whose explanations are shown.")  # fmt: skip
@debug_option
def dashboard(
    sae: str, output: Path, as_: str, latents: str, contexts: int | None, results: Path, debug: bool, **where: Any
) -> None:
    """Write what every latent does: activations, windows, promoted tokens, neighbours and explanation.

    \b
    Examples:
      saebench dashboard --sae results/baselines/smollm2-135m-layer15-topk-k32 --output latents.html
      saebench dashboard --sae PATH --latent 12,99 --format neuronpedia --output latents.json
    """
    with errors(debug):
        try:
            chosen = [int(part) for part in latents.split(",") if part.strip()]
        except ValueError as error:
            raise UsageError(f"--latent {latents}: not a list of numbers; write it like --latent 1,2") from error
        from saebench.dashboard.build import dashboard as collected
        from saebench.dashboard.build import neuronpedia, page
        from saebench.results import write_atomically
        from saebench.steering.steer import Steerer

        steerer = Steerer(sae, **{name: value for name, value in where.items() if value is not None})
        body = collected(steerer, sae, latents=chosen, contexts=contexts, results=results)
        text = page(body) if as_ == "html" else json.dumps(neuronpedia(body), ensure_ascii=False)
        write_atomically(output, text.encode())
        echo(
            f"{output}: {len(body['latents']):,} latents, {body['tokens']:,} tokens, {len(text) / 1e6:.1f} MB", err=True
        )
