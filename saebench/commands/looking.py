"""Commands that look and compute nothing: `list` and `inspect`."""

import json
from typing import Any

import click

from saebench.commands.shell import debug_option, echo, errors


@click.command("list")
@click.argument(
    "kind", type=click.Choice(["metrics", "tasks", "formats", "judges", "models", "recipes", "reports", "comparisons"])
)
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@debug_option
def list_(kind: str, as_json: bool, debug: bool) -> None:
    """What there is of a kind, with a line about each.

    \b
    Examples:
      saebench list metrics
      saebench list tasks --json
    """
    with errors(debug):
        rows = _task_rows() if kind == "tasks" else _plugin_rows(kind)
        if as_json:
            echo(json.dumps(rows, indent=1))
            return
        width = max((len(r["name"]) for r in rows), default=0)
        for row in rows:
            echo(f"{row['name']:<{width}}  {row['about']}")


def _task_rows() -> list[dict[str, str]]:
    from saebench.catalog import known_tasks

    return [
        {"name": t.label, "about": t.title, "kind": t.kind, "description": t.description}
        for t in known_tasks().values()
    ]


def _plugin_rows(kind: str) -> list[dict[str, str]]:
    from saebench.registry import registry

    rows = []
    for name, item in sorted(registry().kind(kind).items()):
        doc = (item.__doc__ if isinstance(item, type) else type(item).__doc__) or ""
        rows.append({"name": name, "about": doc.strip().split("\n")[0]})
    return rows


@click.command()
@click.argument("path")
@click.option("--format", help="The checkpoint's format. Default: recognised from its files.")
@click.option("--k", type=int, help="Active latents per token, for a TopK checkpoint that does not say.")
@click.option("--scale", type=float, help="Input scale, for a checkpoint that needs one and does not hold it.")
@click.option("--hook", help="Where the SAE reads, for a checkpoint that does not say.")
@click.option("--model", help="Run this model over a little text and count the latents that fire.")
@click.option("--ignore-key", "ignore_keys", multiple=True, help="A config key that changes nothing; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@debug_option
def inspect(path: str, model: str | None, as_json: bool, debug: bool, **options: Any) -> None:
    """What a checkpoint is, where each convention was read, and what it does not say.

    \b
    Examples:
      saebench inspect results/baselines/smollm2-135m-layer15-topk-k32
      saebench inspect sae.pth --k 64 --hook model.layers.22.input_layernorm --json
      saebench inspect sae/ --model smollm2-135m-instruct
    """
    with errors(debug):
        from saebench.inspection import inspect_sae

        found = inspect_sae(path, model=model, measure=model is not None, **options)
        if as_json:
            echo(json.dumps(found.to_json(), indent=1, allow_nan=False))
            return
        for line in found.lines():
            echo(line)
