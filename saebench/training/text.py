"""Documents -> contexts of token ids to train on, and the order in which they are read.

Everything is in memory as int32 (2 GB for 500M tokens), so that the order can be any order: each epoch reads all contexts of all
documents in a new random one.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saebench.corpus import documents, pack, special_ids
from saebench.errors import SaebenchError, UsageError
from saebench.labels import read_table
from saebench.streams import numpy_generator
from saebench.task import Task

# Files of one's own: tables with a column `text`, or token ids.
TABLES = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class Text:
    """N contexts of T tokens.

    Attributes:
        token_ids: [N, T] int32
        specials: ids of BOS and other special tokens, which no SAE is trained on.
        documents: how many documents gave them.
    """

    token_ids: np.ndarray
    specials: np.ndarray
    documents: int

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def length(self) -> int:
        return int(self.token_ids.shape[1])

    @property
    def tokens(self) -> int:
        """How many tokens an SAE can be trained on in one epoch: all but the special ones (outliers not taken off)."""
        return int(self.token_ids.size - np.isin(self.token_ids, self.specials).sum())

    def special(self, rows: np.ndarray) -> np.ndarray:
        """[len(rows), T] whether each token is special."""
        return np.isin(self.token_ids[rows], self.specials)

    def fingerprint(self) -> str:
        """Hash of the ids and of which are special."""
        digest = hashlib.sha256(repr(self.token_ids.shape).encode())
        digest.update(np.ascontiguousarray(self.token_ids).data)
        digest.update(np.asarray(self.specials, dtype=np.int64).tobytes())
        return digest.hexdigest()


def training_text(task: Task, tokenizer: Any, wanted: int, own: Path | None = None) -> Text:
    """The contexts of a task's corpus, all of them or (from a hub, where text has no end) enough for `wanted` tokens.

    Args:
        own: a table whose texts are read in place of the corpus, all of them; see `own_texts`.

    Raises:
        UsageError: `own` is not such a table.
        SaebenchError: the corpus is missing or changed, the tokenizer has no BOS, or no document fills a context.
    """
    spec = task.contexts
    bos = tokenizer.bos_token_id if spec.bos else None
    if spec.bos and bos is None:
        raise SaebenchError("contexts begin with BOS and this model's tokenizer has none: set bos = false")
    pieces: list[np.ndarray] = []
    count = found = 0
    texts = own_texts(own) if own is not None else (text for _, text in documents(task))
    for ids in _token_ids(texts, tokenizer):
        cut, _ = pack(ids, spec.length, bos)
        pieces.append(cut.astype(np.int32))
        count += 1
        found += len(cut) * (spec.length - (bos is not None))
        if own is None and task.corpus.hub is not None and found >= wanted:
            break
    if not found:
        raise SaebenchError(f"no document of the training text fills a context of {spec.length} tokens")
    return Text(np.concatenate(pieces), special_ids(tokenizer), count)


def own_texts(path: Path) -> list[str]:
    """The column `text` of a .parquet, .csv or .jsonl file, in the file's order; rows without a text are left out.

    Raises:
        UsageError: another kind of file, one that cannot be read, or one without such a column.
    """
    if path.suffix not in TABLES:
        raise UsageError(f"--data {path}: expected {', '.join(TABLES)} with a column text, or token ids as .npy")
    if not path.is_file():
        raise UsageError(f"--data {path}: there is no such file")
    table = read_table(path)
    if "text" not in table:
        raise UsageError(f"--data {path}: has no column text: it has {', '.join(map(str, table.columns))}")
    texts = table["text"].dropna().astype(str)
    return [text for text in texts if text]


def _token_ids(texts: Iterable[str], tokenizer: Any) -> Iterator[np.ndarray]:
    for text in texts:
        # Some tokenizers add BOS by themselves: never twice.
        yield np.array(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, dtype=np.int64)


def context_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """[count] the order in which an epoch reads contexts; another one each epoch."""
    return numpy_generator(f"train/order/{epoch}", seed).permutation(count)
