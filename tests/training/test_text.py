"""Text of one's own: what a file says is what is trained on."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from saebench.errors import SaebenchError, UsageError
from saebench.running import setting
from saebench.subject import Subject
from saebench.training.budget import read_text
from saebench.training.request import TrainRequest
from tests.raising import raises

Make = Callable[..., TrainRequest]
TEXTS = ["a b c d e f g h", "i j k l", "m n o p q r s t u"]


class Letters:
    """One id a letter: a is 10."""

    def __init__(self, pad: int | None = None) -> None:
        self.bos_token_id: int | None = 1
        self.all_special_ids = [1, 2] if pad is None else [1, 2, pad]
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


class Config:
    """The config of a model whose padding only its tokenizer knows."""

    vocab_size, bos_token_id, eos_token_id, pad_token_id = 97, 1, [2], None

    def get_text_config(self) -> "Config":
        return self


def contexts_of(*texts: str) -> list[list[int]]:
    """BOS and letters, by hand."""
    return [[1, *(ord(c) - 87 for c in part)] for part in texts]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_table_is_the_text(suffix: str, request_for: Make, tmp_path: Path) -> None:
    """Contexts of BOS and four letters, packed by hand; a row without text is none."""
    request = request_for(data=_write(tmp_path / f"mine{suffix}", [*TEXTS[:2], None, TEXTS[2]]), context_length=5)
    text = read_text(request, Letters(), Config())
    np.testing.assert_array_equal(text.token_ids, contexts_of("abcd", "efgh", "ijkl", "mnop", "qrst"))
    assert text.documents == 3
    assert text.tokens == 20
    other = request_for(data=_write(tmp_path / f"other{suffix}", TEXTS[1:]), context_length=5)
    assert read_text(other, Letters(), Config()).fingerprint() != text.fingerprint()


def test_text_files_and_folders_of_them_are_documents(request_for: Make, tmp_path: Path) -> None:
    """One document a file, by path; empty files and other kinds are none."""
    folder = tmp_path / "mine"
    (folder / "b").mkdir(parents=True)
    for name, text in (
        ("c.txt", TEXTS[2]),
        ("a.txt", TEXTS[0]),
        ("b/x.txt", TEXTS[1]),
        ("d.txt", " "),
        ("e.md", "z z z z"),
    ):
        (folder / name).write_text(text)
    whole = read_text(request_for(data=folder, context_length=5), Letters(), Config())
    np.testing.assert_array_equal(whole.token_ids, contexts_of("abcd", "efgh", "ijkl", "mnop", "qrst"))
    assert whole.documents == 3
    one = read_text(request_for(data=folder / "a.txt", context_length=5), Letters(), Config())
    np.testing.assert_array_equal(one.token_ids, contexts_of("abcd", "efgh"))


def test_special_tokens_are_the_same_for_training_and_measuring(request_for: Make, tmp_path: Path) -> None:
    """Half of the ids are a padding token that only the tokenizer knows: `run` does not score them, `train` leaves them out."""
    ids = np.random.default_rng(0).integers(3, 97, (12, 8))
    ids[:, 0], ids[:, 4:] = 1, 0
    np.save(tmp_path / "ids.npy", ids)
    for tokenizer, left in ((Letters(pad=0), 12 * 3), (None, 12 * 7)):
        trained = read_text(request_for(data=tmp_path / "ids.npy"), tokenizer, Config())
        model = SimpleNamespace(config=Config(), get_input_embeddings=lambda: SimpleNamespace(weight=np.empty((97, 2))))
        subject: Any = Subject.__new__(Subject)  # no model is loaded
        subject.loaded, subject.model = SimpleNamespace(tokenizer=tokenizer), model
        asked: Any = SimpleNamespace(tokens=tmp_path / "ids.npy", limit=None)
        measured = setting._contexts(asked, None, subject)  # type: ignore[arg-type]
        np.testing.assert_array_equal(trained.special(np.arange(12)), measured.special)
        assert trained.tokens == left == int((~measured.special).sum())


def test_short_documents_are_counted_and_a_length_that_keeps_them_is_named(request_for: Make, tmp_path: Path) -> None:
    """90 documents of 8 letters and 10 of 64, in contexts of 64: 90 % of documents and 640 tokens of 1,360."""
    texts = [" ".join("abcdefgh")] * 90 + [" ".join("abcdefgh" * 8)] * 10
    request = request_for(data=_write(tmp_path / "mine.csv", texts), context_length=64, bos=False)
    text = read_text(request, Letters(), Config())
    assert (text.documents, text.short, len(text)) == (100, 90, 10)
    assert text.dropped == pytest.approx(720 / 1360)
    assert text.shorter() == (8, 1.0)
    assert text.facts()["documents_too_short"] == 90
    [first, second] = text.describe()
    assert "100 documents, 10 contexts" in first
    assert "53%" in second
    assert "90 of 100" in second
    assert "--context-length 8" in second
    kept = read_text(request_for(data=tmp_path / "mine.csv", context_length=8, bos=False), Letters(), Config())
    assert (kept.dropped, len(kept.describe())) == (0, 1)
    with raises(SaebenchError, "128", "100", "64", "--context-length"):
        read_text(request_for(data=tmp_path / "mine.csv", context_length=128), Letters(), Config())


def test_bos_follows_the_tokenizer_unless_set(request_for: Make, tmp_path: Path) -> None:
    data = _write(tmp_path / "mine.csv", TEXTS[:1])
    without = Letters()
    without.bos_token_id = None
    request = request_for(data=data, context_length=4)
    np.testing.assert_array_equal(read_text(request, Letters(), Config()).token_ids, contexts_of("abc", "def"))
    np.testing.assert_array_equal(read_text(request, without, Config()).token_ids[:, :1], [[10], [14]])
    asked = request_for(data=data, context_length=4, bos=False)
    np.testing.assert_array_equal(read_text(asked, Letters(), Config()).token_ids[:, :1], [[10], [14]])
    with raises(SaebenchError, "bos = true", "--no-bos"):
        read_text(request_for(data=data, context_length=4, bos=True), without, Config())


def test_a_table_stands_in_place_of_the_corpus_in_what_a_run_is(request_for: Make, tmp_path: Path) -> None:
    assert request_for(data=tmp_path / "mine.csv").identity()["corpus"] is None
    assert request_for(data=None).identity()["corpus"]["file"] == "data/texts.parquet"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("mine.doc", ("mine.doc", ".parquet", ".txt", ".npy")),
        ("empty", ("empty", ".txt")),
        ("missing.parquet", ("missing.parquet",)),
        ("missing.csv", ("missing.csv",)),
        ("missing.jsonl", ("missing.jsonl",)),
        ("missing.txt", ("missing.txt",)),
        ("latin.txt", ("latin.txt", "UTF-8", "byte 2")),
        ("titles.csv", ("titles.csv", "column text", "title, body")),
        ("broken.jsonl", ("broken.jsonl",)),
        ("broken.parquet", ("broken.parquet",)),
    ],
)
def test_other_files_are_refused_in_one_line(
    name: str, parts: tuple[str, ...], request_for: Make, tmp_path: Path
) -> None:
    (tmp_path / "mine.doc").write_text("dear")
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.txt").write_bytes(b"ol\xe9")
    (tmp_path / "titles.csv").write_text("title,body\n1,2\n")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"\n')
    (tmp_path / "broken.parquet").write_text("PAR")
    with raises(UsageError, *parts):
        read_text(request_for(data=tmp_path / name), Letters(), Config())
