"""Every checkpoint under reference/ was written by the library that names its folder, with what that library computes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from saebench import SAE, load_sae

REFERENCE = Path(__file__).parent / "reference"
CASES = sorted(p.parent for p in REFERENCE.glob("*/*/expected.safetensors"))


def open_case(case: Path) -> SAE:
    said = json.loads((case / "options.json").read_text()) if (case / "options.json").is_file() else {}
    return load_sae(case / said.pop("path", "."), **said)


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal to 1e-5 of each number, or of the largest where a number is a small difference of large ones."""
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("case", CASES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_equals_its_library(case: Path) -> None:
    expected = load_file(case / "expected.safetensors")
    sae = open_case(case)
    latents = sae.encode(expected["x"])
    assert 0 < float((expected["latents"] != 0).float().mean()) < 1 or case.name == "identity", (
        "the reference itself shows nothing"
    )
    close(latents.dense(), expected["latents"])
    assert torch.equal(latents.dense() != 0, expected["latents"] != 0)
    close(sae(expected["x"]), expected["out"])
    close(sae.decode(latents, expected["x"]), expected["out"])


def test_there_are_references() -> None:
    assert len(CASES) > 100


@pytest.mark.parametrize("case", CASES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_conventions_are_said_with_their_source(case: Path) -> None:
    facts = open_case(case).metadata.facts
    assert facts
    assert all(fact.source and fact.value for fact in facts)
