"""Text of one's own: what a file says is what is trained on."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from saebench.errors import UsageError
from saebench.training.budget import read_text
from saebench.training.plan import TrainRequest

Make = Callable[..., TrainRequest]
TEXTS = ["a b c d e f g h", "i j k l", "m n o p q r s t u"]


class Letters:
    """One id a letter: a is 10."""

    def __init__(self) -> None:
        self.bos_token_id = 1
        self.all_special_ids = [1, 2]
        self.added_tokens_decoder: dict[int, Any] = {}

    def __call__(self, text: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[ord(c) - ord("a") + 10 for c in text.split()])


def _write(path: Path, texts: list[str | None]) -> Path:
    frame = pd.DataFrame({"title": range(len(texts)), "text": texts})
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_table_is_the_text(suffix: str, request_for: Make, tmp_path: Path) -> None:
    """Contexts of BOS and four letters, packed by hand; a row without text is none."""
    request = request_for(data=_write(tmp_path / f"mine{suffix}", [*TEXTS[:2], None, TEXTS[2]]), context_length=5)
    text = read_text(request, Letters(), 97, [])
    letters = ["abcd", "efgh", "ijkl", "mnop", "qrst"]
    np.testing.assert_array_equal(text.token_ids, [[1, *(ord(c) - 87 for c in part)] for part in letters])
    assert text.documents == 3
    assert text.tokens == 20
    other = request_for(data=_write(tmp_path / f"other{suffix}", TEXTS[1:]), context_length=5)
    assert read_text(other, Letters(), 97, []).fingerprint() != text.fingerprint()


def test_a_table_stands_in_place_of_the_corpus_in_what_a_run_is(request_for: Make, tmp_path: Path) -> None:
    assert request_for(data=tmp_path / "mine.csv").identity()["corpus"] is None
    assert request_for(data=None).identity()["corpus"]["file"] == "data/texts.parquet"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.txt", r"expected \.parquet, \.csv, \.jsonl with a column text, or token ids as \.npy"),
        ("missing.parquet", "missing.parquet: there is no such file"),
        ("missing.csv", "missing.csv: there is no such file"),
        ("missing.jsonl", "missing.jsonl: there is no such file"),
        ("titles.csv", "no column text: it has title, body"),
        ("broken.jsonl", "broken.jsonl: not readable"),
        ("broken.parquet", "broken.parquet: not readable"),
    ],
)
def test_what_is_no_text_is_one_line(name: str, message: str, request_for: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("dear")
    (tmp_path / "titles.csv").write_text("title,body\n1,2\n")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"\n')
    (tmp_path / "broken.parquet").write_text("PAR")
    with pytest.raises(UsageError, match=message) as caught:
        read_text(request_for(data=tmp_path / name), Letters(), 97, [])
    assert "\n" not in str(caught.value)
