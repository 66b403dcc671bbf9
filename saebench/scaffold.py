"""`saebench new-plugin`: write a small, working, installable plugin package with its test."""

import keyword
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from saebench.errors import SaebenchError, UsageError, one_line
from saebench.registry import installed

# Kind of plugin -> the command that tries it after installation.
KINDS = {
    "metric": "saebench run --sae PATH --metric $module",
    "format": "saebench inspect PATH",
    "judge": "saebench run --sae PATH --task autointerp --judge $module:MODEL",
    "recipe": "saebench train $module --toy --out runs/$module",
    "report": "saebench leaderboard --format $module",
    "comparison": "saebench list comparisons",
    "task": "saebench run --sae PATH --task $module",
}


def new_plugin(name: str, kind: str, parent: Path) -> list[Path]:
    """Write a plugin package into the new folder `parent / name`; return its files.

    Args:
        name: name of the distribution, like my-metric; with '_' for '-' also of the module, the entry point and the plugin.
        kind: a key of `KINDS`.
        parent: the folder for the new folder.

    Raises:
        UsageError: an invalid name, or one that is taken.
        SaebenchError: the folder exists or cannot be written.
    """
    module = _module(name, kind)
    words = {
        "name": name, "kind": kind, "module": module,
        "cls": "".join(part.capitalize() for part in [*module.removesuffix(f"_{kind}").split("_"), kind]),
    }  # fmt: skip
    words["try_it"] = Template(KINDS[kind]).substitute(words)
    folder = parent / name
    contents = {
        "pyproject.toml": "pyproject", "README.md": "readme", f"{module}.py": kind, f"test_{module}.py": f"test_{kind}",
    }  # fmt: skip
    try:
        folder.mkdir()
        for file, template in contents.items():
            (folder / file).write_text(_template(template).substitute(words), encoding="utf-8")
    except FileExistsError as error:
        raise SaebenchError(f"{folder} exists already: choose another name, or remove it") from error
    except OSError as error:
        raise SaebenchError(f"{folder} could not be written: {one_line(error)}") from error
    return [folder / file for file in contents]


def _template(name: str) -> Template:
    return Template(files("saebench").joinpath("templates", f"{name}.txt").read_text(encoding="utf-8"))


def _module(name: str, kind: str) -> str:
    """The name of the module, after a check that it is valid and free."""
    module = name.replace("-", "_")
    if not re.fullmatch("[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) or len(name) > 60 or keyword.iskeyword(module):
        raise UsageError(f"'{name[:60]}' cannot name a plugin: use lower-case letters, digits and '-', like my-{kind}")
    if find_spec(module) is not None:
        raise UsageError(f"'{name}': a Python module '{module}' is already there: choose another name")
    if module in installed().kind(f"{kind}s"):
        raise UsageError(f"'{name}': there is already a {kind} '{module}' (see `saebench list {kind}s`)")
    return module
