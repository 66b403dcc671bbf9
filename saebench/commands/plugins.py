"""Commands about plugins: `plugins` and `new-plugin`."""

import json
from pathlib import Path

import click

from saebench.commands.shell import debug_option, echo, errors
from saebench.errors import SaebenchError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@click.option("--strict", is_flag=True, help="Exit with 1 if a plugin is broken.")
@debug_option
def plugins(as_json: bool, strict: bool, debug: bool) -> None:
    """List the installed plugins, the objects each provides, and the errors of broken ones.

    \b
    Examples:
      saebench plugins
      saebench plugins --json
    """
    with errors(debug):
        from dataclasses import asdict

        from saebench.registry import installed

        found = installed()
        if as_json:
            echo(json.dumps([asdict(p) for p in found.plugins], indent=1))
        else:
            for p in found.plugins:
                provides = f"BROKEN: {p.error}" if p.error else ", ".join(p.provides) or "nothing"
                echo(f"{p.name} ({p.distribution} {p.version}): {provides}")
        if strict and found.broken:
            raise SaebenchError(f"broken plugins: {', '.join(p.name for p in found.broken)}")


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--kind",
    required=True,
    type=click.Choice(["metric", "format", "judge", "recipe", "report", "task", "comparison"]),
    help="Kind of plugin.",
)
@debug_option
def new_plugin(name: str, kind: str, debug: bool) -> None:
    """Write a working, installable plugin with its test into a new folder NAME.

    \b
    Examples:
      saebench new-plugin my-metric --kind metric
      saebench new-plugin my-format --kind format
    """
    with errors(debug):
        from saebench.scaffold import new_plugin as write

        for path in write(name, kind, Path()):
            echo(str(path))
        echo(f"next: cd {name} && pip install -e . pytest && pytest; then try it as in README.md", err=True)
