"""Pydantic's validation errors as one line: place, key, value, and the nearest known key."""

import difflib
from dataclasses import is_dataclass
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from saebench.text import clean

# For every schema: an unknown key is an error.
CLOSED = ConfigDict(extra="forbid")
# Strict: text is no number, true is not 1, and 1.0 is no integer.
Whole = Annotated[int, Strict(), Field(ge=1, le=2**31)]
Count = Annotated[int, Strict(), Field(ge=0, le=2**31)]
Real = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Field(max_length=10_000)]

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")


def explain(error: ValidationError, schema: Any) -> str:
    """The first error of a validation, in words: `unknown key 'lenght' in [contexts]; did you mean 'length'?`.

    Args:
        schema: the model or dataclass that was validated against; its fields are the known keys.
    """
    # Unknown keys first: a misspelt key also makes the right one missing.
    first = min(error.errors(include_url=False), key=lambda e: e["type"] not in _UNKNOWN)
    path = [part for part in first["loc"] if not _is_tag(part)]
    *place, key = path or [""]
    where = _place(place)
    if first["type"] in _UNKNOWN:
        known = sorted(_keys(_inner(schema, place)))
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known) or 'none'}"
        return f"unknown key '{clean(key)}'{where}; {hint}"
    if first["type"] in _MISSING:
        return f"missing key '{clean(key)}'{where}"
    reason = str(first["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if first["type"] in ("value_error", "assertion_error"):
        return f"{reason}{where}" if not key else f"{_shown(key, place)}: {reason}"
    expected = reason.replace("Input should be ", "").replace("a valid ", "a ").replace("a integer", "a whole number")
    return f"{_shown(key, place)} is {clean(repr(first['input']), 60)}, expected {expected}"


def _is_tag(part: object) -> bool:
    """Whether a part of a location is no key but pydantic's name for a branch (`function-after[…]`, `dict[str,str]`)."""
    return isinstance(part, str) and (
        part.startswith("constrained-") or part.endswith(("]", ")")) or part in ("str", "int", "float", "bool", "[key]")
    )


def _place(path: list[Any]) -> str:
    return f" in [{'.'.join(clean(part) for part in path)}]" if path else ""


def _shown(key: object, place: list[Any]) -> str:
    if isinstance(key, int):
        return f"{'.'.join(clean(part) for part in place)}[{key}]"
    return ".".join(clean(part) for part in [*place, key])


def _fields(schema: Any) -> dict[str, Any]:
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return {field.alias or name: field.annotation for name, field in schema.model_fields.items()}
    if is_dataclass(schema):
        return {name: field.annotation for name, field in getattr(schema, "__pydantic_fields__", {}).items()}
    return {}


def _keys(schemas: list[Any]) -> set[str]:
    return {key for schema in schemas for key in _fields(schema)}


def _inner(schema: Any, path: list[Any]) -> list[Any]:
    """The schemas of the table at a path; several for a union."""
    found = _branches(schema)
    for part in path:
        if isinstance(part, str):
            found = [inner for one in found if part in _fields(one) for inner in _branches(_fields(one)[part])]
    return found


def _branches(annotation: Any) -> list[Any]:
    """The schemas among a type's arguments: `Text | None`, `list[Score]`, a union of models."""
    if _fields(annotation):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _branches(argument)]
