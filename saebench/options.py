"""Options declared once: the fields of a request are the options of a command and the parameters of a Python function.

A field made by `option` carries its help text; annotation and default of the field are those of the option.
`saebench.commands.shell.options` turns fields into command-line options; `takes` gives a function the request's signature.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Kind = Literal["text", "int", "float", "flag", "path", "choice", "many"]


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: name of the field and of the Python parameter.
        flag: the command-line flag; "" for an option of files and Python only.
        help: one or two sentences.
        kind: type of the value; "many" is text that may be repeated.
        choices: allowed values of a choice.
        default: the default; None also for an option without one, which `required` marks.
        metavar: placeholder of the value in the command's help.
        key: whether a TOML file may set it, under its name.
    """

    name: str
    flag: str
    help: str
    kind: Kind
    choices: tuple[str, ...]
    default: Any
    required: bool
    metavar: str | None
    key: bool = False


def option(
    default: Any = MISSING,
    *,
    help: str,
    flag: str | None = None,
    metavar: str | None = None,
    key: bool = False,
    **more: Any,
) -> Any:
    """A dataclass field that is an option.

    Args:
        help: help text; flags in it become parameter names in Python's documentation.
        flag: the command-line flag, if it differs from the field's name; "" for none. `--no-NAME` sets the field NAME to false.
        key: whether a TOML file may set it.
        more: arguments of `dataclasses.field`.
    """
    return field(default=default, metadata={"help": help, "flag": flag, "metavar": metavar, "key": key}, **more)


def options_of(request: type) -> list[Option]:
    """The options of a request, in order; fields not made by `option` exist in Python only.

    The request's module must postpone the evaluation of annotations (`from __future__ import annotations`).
    """
    return [found for found in _declared(request) if found.flag]


def keys_of(request: type) -> list[Option]:
    """The options that a TOML file may set, in order."""
    return [found for found in _declared(request) if found.key]


def _declared(request: type) -> list[Option]:
    return [_option(declared) for declared in fields(request) if "help" in declared.metadata]


def _option(declared: Field[Any]) -> Option:
    kind, choices = _kind(declared)
    flag = declared.metadata["flag"]
    flag = "--" + declared.name.replace("_", "-") if flag is None else flag
    required = declared.default is MISSING
    default = None if required else declared.default
    about = declared.metadata
    return Option(declared.name, flag, about["help"], kind, choices, default, required, about["metavar"], about["key"])


def _kind(declared: Field[Any]) -> tuple[Kind, tuple[str, ...]]:
    """Type of an option's value, from the field's annotation."""
    text = str(declared.type)
    if match := re.search(r"Literal\[(.*?)\]", text):
        return "choice", tuple(re.findall(r"[\"'](.*?)[\"']", match[1]))
    if re.search(r"\b(Sequence|Collection)\[", text):
        return "many", ()
    kinds: dict[str, Kind] = {"bool": "flag", "int": "int", "float": "float", "Path": "path", "str": "text"}
    parts = text.split(" | ")
    for name, kind in kinds.items():
        if name in parts:
            return kind, ()
    raise TypeError(f"option '{declared.name}': no command-line type for {text}")


def takes(request: Callable[P, R]) -> Callable[[Callable[[R], T]], Callable[P, T]]:
    """Give a function of a request the signature, types and documentation of the request's fields."""

    def decorate(function: Callable[[R], T]) -> Callable[P, T]:
        own = inspect.signature(request)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            own.bind(*args, **kwargs)  # name the function, not the request, in the error of a wrong parameter
            return function(request(*args, **kwargs))

        call.__doc__ = _documented(inspect.getdoc(function) or "", cast(type, request))
        call.__signature__ = own.replace(return_annotation=inspect.signature(function).return_annotation)  # type: ignore[attr-defined]
        return call

    return decorate


def _documented(text: str, request: type) -> str:
    """The docstring with a line for each option under "Args:", before "Returns:"."""
    options = options_of(request)
    names = {found.flag: f"`{found.name}`" for found in options}
    lines = [f"    {found.name}: {_for_python(found, names)}" for found in options]
    before, returns, after = text.partition("Returns:")
    return f"{before}Args:\n" + "\n".join(lines) + f"\n\n{returns}{after}"


def _for_python(found: Option, names: dict[str, str]) -> str:
    return re.sub(r"--[a-z][a-z-]*", lambda match: names.get(match[0], match[0]), found.help)
