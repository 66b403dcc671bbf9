"""`saebench steer`: continuations with a latent's direction added, beside the unsteered one."""

import json
from pathlib import Path
from typing import Any

import click

from saebench.commands.shell import console_on, debug_option, echo, errors
from saebench.errors import UsageError


@click.command()
@click.option("--sae", required=True, metavar="PATH", help="An SAE checkpoint.")
@click.option("--latent", "latents", metavar="I[,J…]", help="Latents whose directions are added together.")
@click.option("--strength", "strengths", default="1", show_default=True, metavar="F[,…]",
              help="In 99.9th percentile activations of each latent; several give a continuation each.")  # fmt: skip
@click.option("--find", "words", metavar="WORDS", help="List latents that match these words, and steer with none.")
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option("--tokens", type=int, default=48, show_default=True, help="New tokens at most.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: the likeliest token each time.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampling.")
@click.option("--model", help="Alias, hub id, folder or .gguf. Default: the model the checkpoint names.")
@click.option("--hook", help="Where the SAE reads. Default: from the checkpoint.")
@click.option("--format", help="The checkpoint's format. Default: recognised from its files.")
@click.option("--k", type=int, help="Active latents per token, for a TopK checkpoint that does not contain it.")
@click.option("--scale", type=float, help="Input scale, for a checkpoint that needs one and does not contain it.")
@click.option("--device", help="cpu, cuda, cuda:1 … Default: a GPU if there is one.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of the model.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
              help="Records whose explanations --find reads.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@click.argument("prompt", required=False)
@debug_option
def steer(
    sae: str, prompt: str | None, latents: str | None, strengths: str, words: str | None, chat: bool, tokens: int,
    temperature: float, seed: int, results: Path, as_json: bool, debug: bool, **where: Any,
) -> None:  # fmt: skip
    """Continue PROMPT with and without a latent's direction, side by side.

    \b
    Examples:
      saebench steer --sae results/baselines/smollm2-135m-layer15-topk-k32 --find music
      saebench steer --sae PATH --latent 123 --strength 2,4 "Once upon a time"
      saebench steer --sae PATH --latent 123 --strength 3 --chat "Tell me about your day."
    """
    with errors(debug):
        if words is None and prompt is None:
            raise UsageError("nothing to continue: pass a PROMPT, or --find WORDS to look for latents")
        wanted, factors = _numbers("--latent", latents or "", int), _numbers("--strength", strengths, float)
        from saebench.steering.steer import Steerer

        steerer = Steerer(sae, **{name: value for name, value in where.items() if value is not None})
        if words is not None:
            _find(steerer, words, results, as_json)
            return
        assert prompt is not None
        found = steerer.continuations(
            prompt, wanted, factors, tokens=tokens, chat=chat, temperature=temperature, seed=seed
        )
        if as_json:
            rows = [{"strength": c.strength, "text": c.text} for c in found]
            body = {"prompt": prompt, "latents": wanted, "continuations": rows}
            echo(json.dumps(body, indent=1, ensure_ascii=False))
            return
        _show(prompt, wanted, [(c.strength, c.text) for c in found])


def _numbers(flag: str, text: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(f"{flag} {text}: not a list of numbers; write it like {flag} 1,2") from error


def _show(prompt: str, latents: list[int], found: list[tuple[float, str]]) -> None:
    import sys

    from rich.table import Table
    from rich.text import Text

    names = ", ".join(map(str, latents))
    table = Table(title=Text(prompt), title_justify="left", expand=True)
    for strength, _ in found:
        table.add_column("without" if strength == 0 else f"latent {names}, strength {strength:g}", ratio=1)
    table.add_row(*(Text(text) for _, text in found))
    console_on(sys.stdout).print(table)


def _find(steerer: Any, words: str, results: Path, as_json: bool) -> None:
    from saebench.steering.find import find

    rows = find(steerer, words, results)
    if as_json:
        echo(json.dumps([vars(row) for row in rows], indent=1, ensure_ascii=False))
        return
    for row in rows:
        echo(f"{row.latent:>8}  {row.by:<16}  {row.detail}")
    if not rows:
        echo(f"no latent matches '{words}'", err=True)
