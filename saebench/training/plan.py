"""Training requests from a TOML file, with options of the command line on top."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, create_model, field_validator

from saebench.catalog import read_corpus
from saebench.errors import UsageError, one_line
from saebench.hookpoint import ACTIVATIONS
from saebench.options import Option, keys_of
from saebench.reading import read_toml
from saebench.schema import CLOSED, Real, Text, explain
from saebench.training.request import SaeSpec, TrainRequest

# Options of training on a language model, which activations without one do not have.
OF_A_MODEL = frozenset({"model", "hook", "revision", "data", "corpus", "context_length", "bos", "max_norm"})


def read_requests(path: Path, seed: int = 0) -> list[TrainRequest]:
    """The runs of a TOML file: one for each hook point that it lists.

    Args:
        seed: of the weights of SAEs for which the file gives none.

    Raises:
        UsageError: the file is not readable, or has an unknown key or an invalid value.
    """
    try:
        raw = read_toml(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not readable: {one_line(error)}") from error
    try:
        file = _RunFile.model_validate(raw)
        given = {name: getattr(file, name) for name in file.model_fields_set - {"prefix", "hook", "saes"}}
        hook = file.hook
        if "corpus" in given and "data" in given:
            raise UsageError("data and [corpus] are both set: keep one")
        if "planted" in given:
            given |= planted_source(given["planted"], file.model_fields_set)
            hook = given.pop("hook")
        elif "model" not in given or hook is None:
            raise UsageError(f"{'hook' if 'model' in given else 'model'} is missing (or name a planted model)")
        if "corpus" in given:
            given |= {"corpus": read_corpus(given["corpus"]), "folder": path.parent}
        if "data" in given:
            given["data"] = path.parent / given["data"]
        hooks = hook if isinstance(hook, list) else [hook]
        if not hooks or len(set(hooks)) < len(hooks):
            raise UsageError(f"hook is {hooks!r}, expected hook points that differ")
        entries = [{"seed": seed} | entry.model_dump(exclude_unset=True) for entry in file.saes]
        saes = tuple(sae for entry in entries for sae in expand(entry, file.prefix))
        return [TrainRequest(saes=saes, hook=hook, **given) for hook in hooks]
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error, _RunFile)}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def planted_source(name: str, given: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a request that a planted model, a task's name or file, sets in place of a language model.

    Args:
        given: names of the options or keys that were set beside it.

    Raises:
        UsageError: one of them belongs to a language model.
    """
    if clash := sorted(OF_A_MODEL.intersection(given)):
        raise UsageError(f"planted and {clash[0]} are both set: leave one out")
    model = name.rpartition("/")[2].removesuffix(".toml")
    return {"planted": name, "model": model, "hook": str(ACTIVATIONS), "max_norm": None}


class _Entry(BaseModel):
    """A [[saes]] table: a list stands for several SAEs; every other key is a setting of the recipe."""

    model_config = ConfigDict(extra="allow")

    recipe: Text | list[Text]
    width: Any  # here and below: one value or a list of them, which SaeSpec checks
    seed: Any = 0
    name: Any = None
    snapshots: Any = ()


class _File(BaseModel):
    """The tables and keys of a training run's TOML file that are more than one of a request's values."""

    model_config = CLOSED

    hook: Text | list[Text] | None = None
    prefix: Text = ""
    saes: list[_Entry] = Field(default_factory=list)
    corpus: Any = None

    @field_validator("saes", mode="before")
    @classmethod
    def _tables(cls, value: Any) -> Any:
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise ValueError("expected tables that begin with [[saes]], in double brackets")
        return value


def _type(key: Option) -> Any:
    """The type of a key's value in a file; ranges are TrainRequest's to check."""
    types = {"text": Text, "path": Text, "int": Annotated[int, Strict()], "float": Annotated[Real, Field(gt=0)]}
    return Literal[key.choices] if key.kind == "choice" else types.get(key.kind, Any)


# The whole schema of a file: each key of a request is declared there.
_RunFile: type[_File] = create_model(
    "_RunFile",
    __base__=_File,
    **{key.name: (_type(key), None) for key in keys_of(TrainRequest) if key.name not in _File.model_fields},
)  # type: ignore[call-overload]


def expand(entry: Mapping[str, Any], prefix: str = "") -> list[SaeSpec]:
    """The SAEs of one [[saes]] table: one for each combination of the values that it lists.

    They are called by recipe and k, and by whatever else is listed: `topk-k32-seed1`.

    Raises:
        UsageError: a list is empty.
    """
    entry = dict(entry)
    if empty := [key for key, value in entry.items() if value == []]:
        raise UsageError(f"{empty[0]} is an empty list: give it a value")
    snapshots = entry.pop("snapshots", [])
    snapshots = tuple(snapshots) if isinstance(snapshots, list) else snapshots
    # A Matryoshka SAE's group sizes are one value; a list of such lists varies.
    varied = [k for k, v in entry.items() if isinstance(v, list) and (k != "groups" or isinstance(v[0], list))]
    choices: Sequence[Sequence[Any]] = [entry[k] for k in varied]
    out = []
    for values in itertools.product(*choices):
        one = entry | dict(zip(varied, values, strict=True))
        recipe, width, seed = one.pop("recipe"), one.pop("width"), one.pop("seed", 0)
        name = one.pop("name", None)
        shown = [f"{key}{dash}{one[key]}" for key, dash in (("k", ""), ("l0", "-")) if key in one]
        shown += [
            f"{key}{value}"
            for key, value in zip(varied, values, strict=True)
            if key not in ("k", "l0", "recipe", "name")
        ]
        name = name or "-".join([*filter(None, [prefix]), str(recipe), *shown])
        out.append(SaeSpec(name, recipe, width, seed, one, snapshots))
    return out


def with_options(request: TrainRequest, options: Mapping[str, Any]) -> TrainRequest:
    """A request with those options that were given (are not None) in place of its own values."""
    return replace(request, **{name: value for name, value in options.items() if value is not None})
