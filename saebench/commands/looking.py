"""Commands that only show: `list` and `inspect`."""

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
    """List the available plugins of a kind, or the tasks, one line each.

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
@click.option("--k", type=int, help="Active latents per token, for a TopK checkpoint without it.")
@click.option("--scale", type=float, help="Input scale, for a checkpoint that needs one and lacks it.")
@click.option("--hook", help="Hook point of the SAE, for a checkpoint without it.")
@click.option("--model", help="Language model, to run on a sample of text and measure the L0.")
@click.option("--ignore-key", "ignore_keys", multiple=True, help="Ignore this unknown config key; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@debug_option
def inspect(path: str, model: str | None, as_json: bool, debug: bool, **options: Any) -> None:
    """Show a checkpoint's properties, the source of each convention, and missing information.

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
