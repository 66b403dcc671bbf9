"""`saebench train`: the options of the command and the keys of a file are the fields of the request."""

import runpy
from pathlib import Path

from saebench.commands.train import train as train_command
from saebench.options import keys_of, options_of
from saebench.training.plan import _RunFile, read_requests
from saebench.training.request import TrainRequest
from tests.conftest import REPOSITORY

# Options of the command alone: where the run goes, and the one SAE that a recipe's name stands for.
_COMMAND_ONLY = {"what", "out", "width", "k", "sets", "toy", "dry_run", "as_json", "debug"}


def test_the_command_has_the_requests_options() -> None:
    assert {p.name for p in train_command.params} - _COMMAND_ONLY == {found.name for found in options_of(TrainRequest)}
    assert all(p.default is None for p in train_command.params if p.name not in _COMMAND_ONLY), "a file may set them"


def test_a_file_has_the_requests_keys() -> None:
    tables = {"prefix", "saes", "corpus"}
    assert set(_RunFile.model_fields) - tables == {found.name for found in keys_of(TrainRequest)}


def test_a_file_without_a_key_has_the_requests_default(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('model = "m"\nhook = "h"\n[[saes]]\nrecipe = "topk"\nwidth = 8\nk = 2\n')
    [request] = read_requests(path)
    assert request == TrainRequest(model="m", hook="h", saes=request.saes)


def test_the_page_shows_the_declared_options() -> None:
    """`make docs` would write nothing else."""
    made = runpy.run_path(str(REPOSITORY / "docs" / "make_options.py"))
    text = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")
    assert made["page"](text) == text
