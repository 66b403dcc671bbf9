"""Documents to contexts: nothing crosses a document, nothing is lost uncounted, everything is in the fingerprint."""

import gzip
import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saebench.catalog import load_task
from saebench.corpus import Contexts, _spread, pack, special_ids, task_contexts, token_contexts
from saebench.errors import SaebenchError, UsageError
from saebench.labels import read_table
from saebench.task import ContextSpec, CorpusSpec, Task, TextContent
from tests.raising import raises

BOS = 1


class Tokenizer:
    """One id a character; adds BOS by itself unless told not to, as Llama's does."""

    bos_token_id: int | None = BOS
    all_special_ids = (BOS, 2)

    class _Token:
        special = True

    added_tokens_decoder = {7: _Token()}  # noqa: RUF012

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True):
        ids = [ord(c) for c in text]
        return type("Encoding", (), {"input_ids": [BOS, *ids] if add_special_tokens else ids})


def task(
    folder: Path, texts: list[str], length: int, count: int, bos: bool | Literal["auto"] = True, where=None
) -> Task:
    path = folder / "texts.parquet"
    kinds = ["odd" if i % 2 else "even" for i in range(len(texts))]
    pd.DataFrame({"document": [f"d{i}" for i in range(len(texts))], "text": texts, "kind": kinds}).to_parquet(path)
    spec = CorpusSpec("texts.parquet", hashlib.sha256(path.read_bytes()).hexdigest(), where)
    return Task("mine", 1, ("fidelity",), TextContent(spec, ContextSpec(length, bos, count)), folder=folder)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(2, 9), st.booleans())
def test_contexts_are_whole_pieces_of_one_document(tmp_path_factory, sizes: list[int], length: int, bos: bool):
    texts = [chr(100 + d) * size for d, size in enumerate(sizes)]  # a letter of its own for each document
    body = length - bos
    available = sum(size // body for size in sizes)
    made = task(tmp_path_factory.mktemp("c"), texts, length, max(available, 1), bos)
    if not available:
        with raises(SaebenchError, "larger corpus"):
            task_contexts(made, Tokenizer())
        return
    got = task_contexts(made, Tokenizer())
    assert got.token_ids.shape == (available, length)
    assert got.available == available
    assert got.dropped_tokens == sum(size % body for size in sizes)
    if bos:
        assert (got.token_ids[:, 0] == BOS).all()
    text = got.token_ids[:, int(bos) :]
    assert (text == 100 + got.document_id[:, None]).all()
    assert (got.special == (got.token_ids == BOS)).all()
    assert got.documents == tuple(f"d{i}" for i in range(len(sizes)))


@given(st.integers(0, 60), st.integers(2, 9), st.booleans())
def test_packing_puts_nothing_in_another_order(n: int, length: int, bos: bool):
    ids = np.arange(10, 10 + n)
    cut, tail = pack(ids, length, BOS if bos else None)
    assert cut[:, int(bos) :].reshape(-1).tolist() == ids[: n - tail].tolist()
    assert 0 <= tail < length - bos


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(0, 120))
def test_spread_is_even_complete_and_repeats_nothing(sizes: list[int], count: int):
    chosen = _spread(sizes, count)
    assert len(chosen) == len(set(chosen)) == min(count, sum(sizes))
    assert all(0 <= i < sizes[d] for d, i in chosen)
    quota = [sum(d == e for e, _ in chosen) for d in range(len(sizes))]
    short = [q for q, size in zip(quota, sizes, strict=True) if q < size]
    if short:  # a document that has more to give has no less than one below any other's
        assert min(short) >= max(quota) - 1
    first = [d for d, _ in chosen[: sum(q > 0 for q in quota)]]
    assert len(set(first)) == len(first)  # the first round visits every document


def test_a_filter_and_the_files_hash(tmp_path: Path):
    texts = ["a" * 20, "b" * 20, "c" * 20]
    got = task_contexts(task(tmp_path, texts, 5, 5, where={"kind": "even"}), Tokenizer())
    assert set(got.documents) == {"d0", "d2"}
    made = task(tmp_path, texts, 5, 5)
    (tmp_path / "texts.parquet").write_bytes(b"other")
    with raises(SaebenchError, "is not the text it names"):
        task_contexts(made, Tokenizer())
    (tmp_path / "texts.parquet").unlink()
    with raises(SaebenchError, "cannot be read"):
        task_contexts(made, Tokenizer())


@pytest.mark.parametrize("where", [{"colour": "red"}, {"kind": "none"}])
def test_a_filter_that_fits_nothing_is_an_error(tmp_path: Path, where: dict[str, str]):
    with pytest.raises(SaebenchError):
        task_contexts(task(tmp_path, ["a" * 20], 5, 1, where=where), Tokenizer())


def test_bos_without_a_bos_and_text_without_a_tokenizer(tmp_path: Path):
    tokenizer = Tokenizer()
    with_bos = task_contexts(task(tmp_path, ["a" * 20], 5, 1), tokenizer)
    assert with_bos.bos
    assert with_bos.token_ids[0].tolist() == [BOS, 97, 97, 97, 97]
    tokenizer.bos_token_id = None
    for made, asked in ((True, True), (True, False), (False, True), ("auto", True)):
        without = task_contexts(task(tmp_path, ["a" * 20], 5, 1, bos=made), tokenizer, asked)
        assert without.token_ids[0].tolist() == [97] * 5
        assert not without.bos
    tokenizer.bos_token_id = BOS
    assert (
        task_contexts(task(tmp_path, ["a" * 20], 5, 1, bos="auto"), tokenizer).fingerprint() == with_bos.fingerprint()
    )
    assert not task_contexts(task(tmp_path, ["a" * 20], 5, 1), tokenizer, bos=False).bos
    with raises(UsageError, "--tokens"):
        task_contexts(task(tmp_path, ["a" * 20], 5, 1), None)
    assert special_ids(Tokenizer()).tolist() == [1, 2, 7]


def test_the_fingerprint_changes_with_every_ingredient():
    base = Contexts(np.arange(12).reshape(3, 4), np.array([0, 0, 1]), np.zeros((3, 4), bool), ("a", "b"))
    special = base.special.copy()
    special[2, 3] = True
    others = [
        replace(base, token_ids=base.token_ids + 1), replace(base, document_id=np.array([0, 1, 1])),
        replace(base, special=special), base.head(2), replace(base, token_ids=base.token_ids[::-1].copy()),
        replace(base, token_ids=base.token_ids.reshape(4, 3)),
    ]  # fmt: skip
    assert len({c.fingerprint() for c in [base, *others]}) == 7
    assert base.head(None) is base.head(3) is base
    assert replace(base, token_ids=np.asfortranarray(base.token_ids)).fingerprint() == base.fingerprint()


def test_a_data_set_of_the_hub_is_read_from_its_beginning(tmp_path: Path):
    frame = pd.DataFrame({"body": [chr(97 + i) * 9 for i in range(9)]})
    frame.to_json(tmp_path / "train.jsonl", orient="records", lines=True)
    spec = CorpusSpec(hub=str(tmp_path), text_column="body", documents=4)
    made = Task("mine", 1, (), TextContent(spec, ContextSpec(5, True, 8)))
    got = task_contexts(made, Tokenizer())
    assert len(got.documents) == 4
    assert sorted(set(got.token_ids[:, 1].tolist())) == [97, 98, 99, 100]
    with raises(SaebenchError, "could not be read") as caught:
        task_contexts(made.with_content(corpus=replace(spec, text_column="text")), Tokenizer())
    assert "\n" not in str(caught.value)


def save(path: Path, array: np.ndarray, **more) -> Path:
    np.save(path, array, **more)
    return path


def test_token_files(tmp_path: Path):
    for dtype in (np.int64, np.uint16, np.int32, ">i4"):
        ids = np.array([[1, 5, 9], [3, 2, 0]], dtype=dtype)
        got = token_contexts(save(tmp_path / "a.npy", ids), 10, [1, 2])
        assert got.token_ids.tolist() == ids.tolist()
        assert got.token_ids.dtype == np.int64
        assert got.special.tolist() == [[True, False, False], [False, True, False]]
        assert got.document_id.tolist() == [0, 1]


REFUSED = {
    "floats": np.ones((2, 3)), "1-D": np.ones(4, int), "3-D": np.ones((1, 2, 3), int), "empty": np.ones((0, 3), int),
    "one token": np.ones((3, 1), int), "negative": np.array([[0, -1]]), "too large": np.array([[0, 10]]),
    "booleans": np.ones((2, 2), bool), "beyond int64": np.array([[0, 2**64 - 1]], dtype=np.uint64),
    "text": np.array([["a", "b"]]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_token_files_that_are_refused(tmp_path: Path, case: str):
    with pytest.raises(UsageError) as caught:
        token_contexts(save(tmp_path / "a.npy", REFUSED[case]), 10, [])
    assert "a.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


class Bomb:
    def __reduce__(self):
        return (pytest.exit, ("a pickle was executed",))


def test_damaged_and_hostile_token_files(tmp_path: Path):
    good = save(tmp_path / "good.npy", np.ones((4, 4), int)).read_bytes()
    np.savez(tmp_path / "zip.npz", a=np.ones((2, 2), int))
    (tmp_path / "objects.npy").write_bytes(b"")
    np.save(tmp_path / "objects.npy", np.array([[Bomb(), 1]], dtype=object), allow_pickle=True)
    files = {"truncated": good[:-5], "header": good[:20], "empty": b"", "pickle": pickle.dumps(Bomb()),
             "zip": (tmp_path / "zip.npz").read_bytes(), "broken zip": b"PK\x03\x04nothing",
             "objects": (tmp_path / "objects.npy").read_bytes()}  # fmt: skip
    for name, data in files.items():
        path = tmp_path / f"{name}.npy"
        path.write_bytes(data)
        with raises(UsageError, ".npy:"):
            token_contexts(path, 10, [])
    with pytest.raises(UsageError):
        token_contexts(tmp_path / "missing.npy", 10, [])
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    with (tmp_path / "sparse.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (2**32, 8)})
        file.truncate(2**38 + 2**12)
    for name in ("pipe.npy", "zero.npy", "sparse.npy"):
        with raises(UsageError, name):
            token_contexts(tmp_path / name, 10, [])


def test_hostile_tables_are_refused_in_one_line(tmp_path: Path):
    codes = pa.array(np.zeros(2**12, dtype=np.int32))
    texts = pa.table({"text": pa.DictionaryArray.from_arrays(codes, ["x" * 2**20])})
    pq.write_table(texts, tmp_path / "texts.parquet", store_schema=False)
    pq.write_table(pa.table({str(i): pa.nulls(2**21, pa.int8()) for i in range(65)}), tmp_path / "nulls.parquet")
    pq.write_table(pa.table({"text": [[1]]}), tmp_path / "nested.parquet")
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"text,label\n" + b"a,b\n" * 10**6))
    (tmp_path / "wide.csv").write_text("a," * 50_000)
    (tmp_path / "deep.jsonl").write_text("[" * 10**5)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1" + bytes(90) + b"PAR1")
    with (tmp_path / "large.csv").open("wb") as file:
        file.truncate(2**36)
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    files = list(tmp_path.iterdir())
    assert all(p.lstat().st_size < 2**22 or p.name == "large.csv" for p in files)
    for path in files:
        with raises(UsageError, path.name):
            read_table(path)


@pytest.mark.parametrize(
    "text",
    ["x = " + "[" * 10**5, "a" + ".a" * 10**5 + " = 1", "[" + "a." * 10**5 + "a]", "x = " + "{a=" * 10**5, "x = 1e400",
     "x = " + "9" * 5000, "x = nan", '"a"' + '."a"' * 10**4 + " = 1", "x = " + "[" * 50 + "]" * 50, "# " + "x" * 2**21],
    ids=range(10),
)  # fmt: skip
def test_hostile_toml_is_refused_in_one_line(text: str, tmp_path: Path):
    (tmp_path / "task.toml").write_text(text)
    with raises(UsageError, "task.toml"):
        load_task(str(tmp_path / "task.toml"))


def test_a_task_file_is_a_regular_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    (tmp_path / "folder.toml").mkdir()
    for name in ("pipe.toml", "zero.toml", "folder.toml", "missing.toml"):
        with raises(UsageError, name):
            load_task(str(tmp_path / name))
