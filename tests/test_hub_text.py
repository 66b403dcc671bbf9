"""Text from a hub: streamed once, cached as token ids, read again without the hub."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saebench.cache import cache_folder
from saebench.catalog import load_task
from saebench.corpus import Contexts, task_contexts
from saebench.errors import SaebenchError, UsageError
from saebench.loading.hf import hub_error
from saebench.task import ContextSpec, CorpusSpec, LabelContent, LabelSpec, Task, TextContent
from saebench.training.text import training_text
from tests.hub import Hub
from tests.raising import check_message, raises

WORDS = ["<s>", "<unk>", *(f"w{i}" for i in range(40))]


def tokenizer(words: list[str] = WORDS) -> Any:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


def documents(n: int = 30) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(f"w{i}" for i in rng.integers(0, 40, 25)) for _ in range(n)]


def parquet(hub: Hub, name: str = "owner/text") -> tuple[Path, CorpusSpec]:
    folder = hub.dataset(name)
    (folder / "data").mkdir(parents=True)
    pd.DataFrame({"text": documents(), "kind": [f"k{i % 2}" for i in range(30)]}).to_parquet(
        folder / "data/train-00000.parquet"
    )
    return folder, CorpusSpec(hub=name, revision=hub.commit(folder), documents=20)


def task(corpus: CorpusSpec, **labels: Any) -> Task:
    contexts = ContextSpec(length=8, bos=True, count=12, max_norm=None)
    content = LabelContent(corpus, contexts, LabelSpec(**labels)) if labels else TextContent(corpus, contexts)
    return Task("t", 1, ("sparsity",), content)


def test_streamed_once_and_equal_to_the_text_on_the_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, spec = parquet(hub)
    made = task(spec)
    first = task_contexts(made, tokenizer())
    local = task_contexts(made.with_content(corpus=replace(spec, hub=str(folder), revision=None)), tokenizer())
    assert first.fingerprint() == local.fingerprint()
    before = len(hub.requests)
    again = task_contexts(made, tokenizer())
    assert len(hub.requests) == before
    assert same(first, again)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(first, task_contexts(made, tokenizer()))


def test_training_text_is_streamed_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, spec = parquet(hub)
    first = training_text(task(spec), tokenizer(), 200)
    assert 200 <= first.tokens < 20 * 25
    local = training_text(task(replace(spec, hub=str(folder), revision=None)), tokenizer(), 200)
    before = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    again = training_text(task(spec), tokenizer(), 200)
    assert len(hub.requests) == before
    for text in (local, again):
        assert (text.fingerprint(), text.facts()) == (first.fingerprint(), first.facts())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert training_text(task(spec), tokenizer(), 300).tokens > first.tokens


@pytest.mark.parametrize("change", ["length", "count", "tokenizer", "documents"])
def test_another_question_is_not_answered_from_the_cache(hub: Hub, change: str) -> None:
    _, spec = parquet(hub)
    made = task(spec)
    first = task_contexts(made, tokenizer())
    other = {
        "length": made.with_content(contexts=replace(made.contexts, length=9)),
        "count": made.with_content(contexts=replace(made.contexts, count=11)),
        "documents": made.with_content(corpus=replace(spec, documents=19)),
        "tokenizer": made,
    }[change]
    words = WORDS[:2] + WORDS[:1:-1] if change == "tokenizer" else WORDS
    assert not same(task_contexts(other, tokenizer(words)), first)


def test_labelled_text_comes_back_whole(hub: Hub) -> None:
    _, spec = parquet(hub)
    made = task(spec, label="kind")
    made = made.with_content(contexts=replace(made.contexts, length=30, count=99))
    first = task_contexts(made, tokenizer())
    before = len(hub.requests)
    again = task_contexts(made, tokenizer())
    assert len(hub.requests) == before
    assert same(first, again)
    assert again.labels is not None
    assert again.labels.classes == ("k0", "k1")
    assert again.left_out == first.left_out


def test_a_damaged_cache_is_absent(hub: Hub) -> None:
    _, spec = parquet(hub)
    first = task_contexts(task(spec), tokenizer())
    (file,) = (cache_folder() / "text").iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert same(task_contexts(task(spec), tokenizer()), first)


def same(a: Contexts, b: Contexts) -> bool:
    return (a.fingerprint(), a.documents, a.dropped_tokens, a.available, len(a), a.tokens) == (
        b.fingerprint(), b.documents, b.dropped_tokens, b.available, len(b), b.tokens
    )  # fmt: skip


@pytest.mark.parametrize("where", ["/api/datasets/owner/text", "/resolve/"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again(hub: Hub, where: str, status: int) -> None:
    _, spec = parquet(hub)
    hub.fail(where, status, times=2, Retry_After="3")
    assert len(task_contexts(task(spec), tokenizer())) == 12
    assert hub.waits


def test_a_corpus_that_is_not_there_is_one_line(hub: Hub) -> None:
    _, spec = parquet(hub)
    with raises(UsageError, "owner/none", "HF_TOKEN") as caught:
        task_contexts(task(replace(spec, hub="owner/none")), tokenizer())
    assert "network" not in str(caught.value)
    with raises(SaebenchError, "owner/text", "dev"):
        task_contexts(task(replace(spec, split="dev")), tokenizer())
    with raises(SaebenchError, "owner/text", "0 commits", "fffffff"):
        task_contexts(task(replace(spec, revision="fffffff")), tokenizer())
    with raises(SaebenchError, "owner/text", "txt", "text"):
        task_contexts(task(replace(spec, text_column="txt")), tokenizer())


def test_the_piles_test_split_is_its_file(hub: Hub) -> None:
    """The card names no splits, and beside a folder `train` the clients find no other."""
    folder = hub.dataset("monology/pile-uncopyrighted")
    (folder / "train").mkdir(parents=True)
    texts = {"test": "w1 w2 w3 w4 w5 w6 w7", "val": "w8 " * 7, "train/00": "w9 " * 7}
    for name, text in texts.items():
        rows = "\n".join(json.dumps({"text": text, "meta": {"pile_set_name": "x"}}) for _ in range(3))
        (folder / f"{name}.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(rows.encode()))
    pile = load_task("fidelity-pile")
    corpus = replace(pile.corpus, revision=hub.commit(folder))
    got = task_contexts(pile.with_content(corpus=corpus, contexts=ContextSpec(8, True, 3, None)), tokenizer())
    assert got.token_ids[0].tolist() == [0, 3, 4, 5, 6, 7, 8, 9]


def test_a_missing_decompressor_is_not_the_network() -> None:
    error = hub_error("corpus 'owner/text'", ValueError("Compression type zstd not supported"))  # fsspec's words
    check_message(str(error), "owner/text", "pip install zstandard")
    error = hub_error("corpus 'owner/text'", ModuleNotFoundError("No module named 'zstandard'", name="zstandard"))
    check_message(str(error), "owner/text", "pip install zstandard")
