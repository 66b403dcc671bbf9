"""Documents -> contexts of token ids to train on, and the order in which they are read.

Everything is in memory as int32 (2 GB for 500M tokens), so that the order can be any order: each epoch reads all contexts of all
documents in a new random one.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saebench.corpus import documents, pack, special_ids
from saebench.errors import SaebenchError, UsageError, one_line
from saebench.labels import read_table
from saebench.loading.text_cache import cached
from saebench.streams import numpy_generator
from saebench.task import Task

# Files of one's own: tables with a column `text`, or token ids.
TABLES = (".parquet", ".csv", ".jsonl")
KINDS = f"{', '.join(TABLES)} with a column text, a .txt file or a folder of them, or token ids as .npy"


@dataclass(frozen=True)
class Text:
    """N contexts of T tokens.

    Attributes:
        token_ids: [N, T] int32
        specials: ids of BOS and other special tokens, which no SAE is trained on.
        documents: how many documents were read.
        lengths: [documents] tokens of each, before contexts were cut; empty where contexts came as they are.
        bos: whether each context begins with a BOS token that no document holds.
    """

    token_ids: np.ndarray
    specials: np.ndarray
    documents: int
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    bos: bool = False

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def length(self) -> int:
        return int(self.token_ids.shape[1])

    @property
    def tokens(self) -> int:
        """How many tokens an SAE can be trained on in one epoch: all but the special ones (outliers not taken off)."""
        return int(self.token_ids.size - np.isin(self.token_ids, self.specials).sum())

    @property
    def short(self) -> int:
        """How many documents fill no context."""
        return int((self.lengths < self.length - self.bos).sum())

    @property
    def dropped(self) -> float:
        """The share of all documents' tokens that no context holds: short documents, and tails of the others."""
        return 1 - self._kept(self.length) if len(self.lengths) else 0.0

    def _kept(self, length: int) -> float:
        """The share of tokens that contexts of another length would hold."""
        body = length - self.bos
        return float((self.lengths // body * body).sum() / max(1, self.lengths.sum()))

    def shorter(self) -> tuple[int, float]:
        """A context length that drops less, and the share it keeps: the longest power of two that keeps 90 %, or the best one."""
        lengths = [2**p for p in range(3, 20) if 2**p < self.length] or [self.length]
        enough = [length for length in lengths if self._kept(length) >= 0.9]
        best = max(enough) if enough else max(lengths, key=self._kept)
        return best, self._kept(best)

    def facts(self) -> dict[str, Any]:
        """Plain values for run.json."""
        return {
            "documents": self.documents, "documents_too_short": self.short, "contexts": len(self),
            "context_length": self.length, "tokens": self.tokens, "share_dropped": round(self.dropped, 4),
        }  # fmt: skip

    def describe(self) -> list[str]:
        """The text in words, and a shorter context length where more than a tenth of it is dropped."""
        if not len(self.lengths):
            return [f"text: {len(self):,} contexts of {self.length} tokens"]
        out = [f"text: {self.documents:,} documents, {len(self):,} contexts of {self.length} tokens"]
        if self.dropped > 0.1:
            length, kept = self.shorter()
            out.append(
                f"{self.dropped:.0%} of the tokens are dropped: {self.short:,} of {self.documents:,} documents are shorter than "
                f"a context, and tails fill none; --context-length {length} keeps {kept:.0%}"
            )
        return out

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

    Hub text is cached: a later run with the same tokenizer, lengths and number of tokens streams nothing.

    Args:
        own: a table whose texts are read in place of the corpus, all of them; see `own_texts`.

    Raises:
        UsageError: `own` is not such a table.
        SaebenchError: the corpus is missing or changed, the tokenizer has no BOS, or no document fills a context.
    """
    spec = task.contexts
    bos = tokenizer.bos_token_id if spec.bos else None
    if spec.bos and bos is None:
        raise SaebenchError(
            "contexts begin with BOS (bos = true) and this model's tokenizer has none: pass --no-bos, or set bos = false"
        )
    if own is not None or task.corpus.hub is None or Path(task.corpus.hub).is_dir():
        return _made(task, tokenizer, bos, wanted, own)
    return cached(Text, task, tokenizer, bos, lambda: _made(task, tokenizer, bos, wanted, None), "train", str(wanted))


def _made(task: Task, tokenizer: Any, bos: int | None, wanted: int, own: Path | None) -> Text:
    """The contexts, read and tokenized; arguments and errors as of `training_text`."""
    spec = task.contexts
    pieces: list[np.ndarray] = []
    lengths: list[int] = []
    found = 0
    texts = own_texts(own) if own is not None else (text for _, text in documents(task))
    for ids in _token_ids(texts, tokenizer):
        cut, _ = pack(ids, spec.length, bos)
        pieces.append(cut.astype(np.int32))
        lengths.append(len(ids))
        found += len(cut) * (spec.length - (bos is not None))
        if own is None and task.corpus.hub is not None and found >= wanted:
            break
    if not found:
        longest = max(lengths, default=0)
        raise SaebenchError(
            f"no document of the training text fills a context of {spec.length} tokens (the longest of {len(lengths):,} has "
            f"{longest:,}): set a smaller --context-length"
        )
    return Text(np.concatenate(pieces), special_ids(tokenizer), len(lengths), np.array(lengths), bos is not None)


def own_texts(path: Path) -> list[str]:
    """The column `text` of a .parquet, .csv or .jsonl file, in the file's order; or one document for each .txt file.

    Rows and files without text are left out. A folder's .txt files, those of its subfolders too, come by path.

    Raises:
        UsageError: another kind of file, one that cannot be read, or one without such a column.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.txt") if file.is_file())
        if not files:
            raise UsageError(f"--data {path}: the folder holds no .txt file; expected {KINDS}")
        return [text for text in map(_text_file, files) if text.strip()]
    if path.suffix not in (*TABLES, ".txt"):
        raise UsageError(f"--data {path}: expected {KINDS}")
    if not path.is_file():
        raise UsageError(f"--data {path}: there is no such file")
    if path.suffix == ".txt":
        return [text for text in [_text_file(path)] if text.strip()]
    table = read_table(path)
    if "text" not in table:
        raise UsageError(f"--data {path}: has no column text: it has {', '.join(map(str, table.columns))}")
    texts = table["text"].dropna().astype(str)
    return [text for text in texts if text]


def _text_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"--data {path}: not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"--data {path}: not readable: {one_line(error)}") from error


def _token_ids(texts: Iterable[str], tokenizer: Any) -> Iterator[np.ndarray]:
    for text in texts:
        # Some tokenizers add BOS by themselves: never twice.
        yield np.array(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, dtype=np.int64)


def context_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """[count] the order in which an epoch reads contexts; another one each epoch."""
    return numpy_generator(f"train/order/{epoch}", seed).permutation(count)
