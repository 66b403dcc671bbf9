"""A campaign: one TOML file of SAEs × layers × models × tasks, run whole or as one shard of several."""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from saebench.errors import UsageError, one_line, unknown
from saebench.options import Option, options_of
from saebench.reading import read_toml
from saebench.running.names import default_names
from saebench.running.request import Request
from saebench.running.sources import expand

# Keys whose lists stand for one run per entry; `layer` fills {layer} in the others.
GRID = ("model", "hook", "task", "layer")
# More runs than this are most often a mistake of the grid.
_RUNS = 100_000


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `count` parts, counted from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """
        Raises:
            UsageError: not of the form 3/16.
        """
        match = re.fullmatch("([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"--shard {text}: write it as NUMBER/COUNT, from 1/16 to 16/16")
        return cls(int(match[1]), int(match[2]))


def read_campaign(path: Path, results: Path | None = None) -> list[Request]:
    """The runs of a campaign file, each with all of its SAEs.

    Keys are the options of `saebench run` (`sae`, `model`, `hook`, `task`, `metric`, `limit`, …). Lists of `model`, `hook`,
    `task` and `layer` multiply; {layer}, {model} and {task} in `sae` and `hook` stand for their values. Keys before the
    tables `[[saes]]` hold for each table.

    Args:
        results: in place of the file's `results`.

    Raises:
        UsageError: no such file, an unknown key, a value of another type, or no SAE.
    """
    try:
        body = read_toml(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a readable campaign: {one_line(error)}") from error
    tables = body.pop("saes", [{}])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path}: saes should be tables: write [[saes]]")
    requests = []
    for table in tables:
        try:
            for values in _grid({**body, **table}):
                requests.append(_request(values, results))
                if len(requests) > _RUNS:
                    raise UsageError(f"more than {_RUNS:,} runs: split the campaign")
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
    return requests


def shard_of(requests: Sequence[Request], shard: Shard, say: Callable[[str], None]) -> list[Request]:
    """The runs of one shard: a contiguous part of all (run, SAE) pairs, so that SAEs of one place share its passes.

    Every shard sees the same list, if it sees the same files; names are those of the whole run.
    """
    units: list[tuple[int, Any, str]] = []
    for i, request in enumerate(requests):
        sources = expand(request.sources, request.format, say)
        units += [(i, sae, name) for sae, name in zip(sources, default_names(sources), strict=True)]
    first, last = ((n * len(units)) // shard.count for n in (shard.number - 1, shard.number))
    runs = []
    for i, group in itertools.groupby(units[first:last], lambda unit: unit[0]):
        _, saes, names = zip(*group, strict=True)
        runs.append(replace(requests[i], saes=list(saes), names=list(names)))
    return runs


def _grid(table: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The table once for each combination of its lists."""
    layers = table.get("layer", [None])
    axes = {name: _several(table[name]) for name in GRID if name in table and name != "layer"}
    for layer in _several(layers):
        for values in itertools.product(*axes.values()):
            chosen = dict(table)
            chosen.update(zip(axes, values, strict=True))
            chosen.pop("layer", None)
            names = {"layer": layer, "model": chosen.get("model"), "task": chosen.get("task")}
            yield {key: _filled(value, names) if key in ("sae", "hook") else value for key, value in chosen.items()}


def _several(value: Any) -> list[Any]:
    if isinstance(value, list) and not value:
        raise UsageError("an empty list stands for no run: fill it, or leave it out")
    return value if isinstance(value, list) else [value]


def _filled(value: Any, names: Mapping[str, Any]) -> Any:
    """Text with {layer}, {model} and {task} replaced, each by the part behind its last slash."""
    if isinstance(value, list):
        return [_filled(item, names) for item in value]
    if not isinstance(value, str):
        return value
    for place in re.findall(r"\{(\w+)\}", value):
        if names.get(place) is None:
            raise UsageError(
                f"'{value}' names {{{place}}}, which the file does not set: known are layer, model and task"
            )
        value = value.replace(f"{{{place}}}", str(names[place]).rpartition("/")[2])
    return value


def _request(values: Mapping[str, Any], results: Path | None) -> Request:
    known = {option.flag.removeprefix("--").replace("-", "_"): option for option in options_of(Request)}
    known.pop("name")  # names belong to single SAEs
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise unknown("key", key, [*known, "layer", "saes"])
        given[known[key].name] = _typed(known[key], value)
    if not given.get("saes"):
        raise UsageError("no SAE: set sae, to a path or a list of them")
    if results is not None:
        given["results"] = results
    assert {field.name for field in fields(Request)} >= given.keys()
    return Request(**given)


def _typed(option: Option, value: Any) -> Any:
    """The value, checked against the option's kind.

    Raises:
        UsageError: another type.
    """
    name = option.flag.removeprefix("--").replace("-", "_")
    if option.name == "saes":
        option = replace(option, kind="many")
    if option.kind == "many":
        if option.name == "settings" and isinstance(value, dict):
            return value
        several = [value] if isinstance(value, str) else value
        if isinstance(several, list) and all(isinstance(item, str) for item in several):
            return several
    kinds: dict[str, type | tuple[type, ...]] = {
        "text": str, "path": str, "choice": str, "int": int, "float": (int, float), "flag": bool,
    }  # fmt: skip
    expected = kinds.get(option.kind, list)
    if not isinstance(value, expected) or (isinstance(value, bool) and option.kind != "flag"):
        raise UsageError(f"{name} is {value!r}, expected {'a list of texts' if option.kind == 'many' else option.kind}")
    if option.kind == "choice" and value not in option.choices:
        raise unknown(name, str(value), option.choices)
    return value
