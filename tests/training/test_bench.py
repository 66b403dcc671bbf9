"""The committed benchmark page says what its numbers say."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_made_of_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "bench"))
    import train

    found = json.loads((ROOT / "results" / "bench" / "train.json").read_text())
    said = (ROOT / "results" / "bench" / "train.md").read_text()
    monkeypatch.delitem(sys.modules, "train")
    assert train.page(found) == said
    assert f"silent for {train.DEAD_AFTER:,} tokens is dead" in said
    at_our_lower_rate = [line for line in found["lines"] if line["lr"] < 3.8e-4 and line["trainer"] != "sae_lens_bf16"]
    counts = {line["trainer"]: round(4608 * line["dead_fraction"]) for line in at_our_lower_rate}
    assert ", ".join(f"{name} {count}" for name, count in counts.items()) in said
    assert (counts["saebench"] > counts["sparsify"]) == ("ours more than sparsify" in said)
