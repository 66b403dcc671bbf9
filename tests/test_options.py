"""Options declared once: the request's fields, the command's options and the function's parameters are the same."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner

import saebench
from saebench.commands.run import run as run_command
from saebench.commands.shell import options
from saebench.options import option, options_of, takes
from saebench.running.reporting import Outcome
from saebench.running.request import Request
from tests.raising import raises


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Every kind of option."""

    name: str = option(flag="--its-name", help="A name.", kw_only=False)
    count: int | None = option(None, help="How many, beside --its-name.")
    share: float = option(0.5, help="A share.")
    fast: bool = option(False, help="Fast.")
    where: str | Path | None = option(None, help="A file.")
    how: Literal["one", "two"] = option("one", help="A way.")
    several: Sequence[str] = option((), help="Several.")
    inner: Any = None


def parsed(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    command = click.command()(options(Asked)(lambda **given: found.update(given)))
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    return found


def test_the_command_line_gives_the_fields_values_of_their_types():
    assert Asked(**parsed("--its-name", "a")) == Asked("a")
    given = [
        "--count",
        "3",
        "--share",
        "0.25",
        "--fast",
        "--where",
        "x",
        "--how",
        "two",
        "--several",
        "a",
        "--several",
        "b",
    ]
    assert parsed("--its-name", "n", *given) == {
        "name": "n", "count": 3, "share": 0.25, "fast": True, "where": Path("x"), "how": "two", "several": ("a", "b"),
    }  # fmt: skip


def test_a_function_has_the_fields_signature_and_documentation():
    @takes(Asked)
    def ask(asked: Asked) -> tuple[Any, ...]:
        """Ask.

        Returns:
            The fields.
        """
        return tuple(getattr(asked, f.name) for f in fields(asked))

    assert ask("a", count=2) == ("a", 2, 0.5, False, None, "one", (), None)
    assert list(inspect.signature(ask).parameters) == [f.name for f in fields(Asked)]
    assert "    count: How many, beside `name`.\n" in (ask.__doc__ or "")
    assert (ask.__doc__ or "").index("Args:") < (ask.__doc__ or "").index("Returns:")
    with raises(TypeError, "counts"):
        ask("a", counts=2)  # type: ignore[call-arg]
    with raises(TypeError, "name"):
        ask()  # type: ignore[call-arg]


def test_an_option_without_a_known_type_is_refused():
    @dataclass(frozen=True)
    class Odd:
        odd: complex = option(0j, help="Odd.")

    with raises(TypeError, "odd", "complex"):
        options_of(Odd)


def test_run_takes_the_same_from_python_and_from_the_command_line(monkeypatch: pytest.MonkeyPatch):
    asked: list[Request] = []
    monkeypatch.setattr("saebench.runner.execute", lambda request, reporter: (asked.append(request), Outcome())[1])
    in_python = {name for name in inspect.signature(saebench.run).parameters if name != "reporter"}
    on_the_command_line = {p.name for p in run_command.params} - {"dry_run", "as_json", "debug"}
    assert in_python == on_the_command_line == {found.name for found in options_of(Request)}
    given: dict[str, Any] = {name: f"the {name}" for name in in_python - {"saes"}}
    saebench.run("one", **given)
    assert {name: getattr(asked[0], name) for name in given} == given
    assert (asked[0].sources, asked[0].folder) == (["one"], Path("the results"))
    assert CliRunner().invoke(run_command, ["--sae", "a", "--sae", "b", "--seed", "3", "--k", "4"]).exit_code == 0
    assert asked[1] == Request(("a", "b"), seed=3, k=4)
