"""Contexts of token ids from documents, with a fingerprint.

A context never crosses a document, and nothing is padded: a document's tail shorter than T is dropped and counted. Labelled
documents and prompts are exceptions: each is one context, padded on the right, where a causal model does not see padding.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from saebench import ranks
from saebench.errors import SaebenchError, UsageError, one_line
from saebench.labels import LabelledTexts, Labels, labelled_texts, read_table, require_sides
from saebench.loading.hub import hub_documents, hub_table
from saebench.loading.text_cache import cached
from saebench.models import fetched_folder
from saebench.prompts import Prompts, make_prompts, prompt_rows
from saebench.reading import TABLE_BYTES, read_bytes, require_regular
from saebench.task import MODEL_FREE, LabelSpec, PromptContent, Task

# Largest number of token ids in a file: 4 GiB as int64.
_TOKENS = 2**29


@dataclass(frozen=True)
class Contexts:
    """N contexts of T token ids.

    Attributes:
        token_ids: [N, T] int64
        document_id: [N] int64, indices into `documents`: the clusters of every interval; groups of labelled documents
        special: [N, T] bool, BOS and other special tokens, and padding
        documents: names
        dropped_tokens: tokens of tails shorter than a context
        available: number of contexts that the documents could give
        lengths: [N] int64, tokens of each context without padding; None if nothing is padded
        labels: of labelled documents, row for row
        left_out: rows of a labelled corpus that gave no context, by reason, and the number of truncated documents
        prompts: of a task of prompts, row for row
        bos: whether the contexts begin with BOS
    """

    token_ids: np.ndarray
    document_id: np.ndarray
    special: np.ndarray
    documents: tuple[str, ...]
    dropped_tokens: int = 0
    available: int = 0
    lengths: np.ndarray | None = None
    labels: Labels | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    prompts: Prompts | None = None
    bos: bool = False

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def length(self) -> int:
        return int(self.token_ids.shape[1])

    @property
    def tokens(self) -> int:
        """The number of tokens, without padding."""
        return int(self.token_ids.size if self.lengths is None else self.lengths.sum())

    def head(self, n: int | None) -> "Contexts":
        """The first n contexts; all if n is None."""
        return self if n is None or n >= len(self) else self.take(np.arange(n))

    def take(self, rows: np.ndarray) -> "Contexts":
        """The contexts with these row numbers."""
        return replace(
            self,
            token_ids=self.token_ids[rows],
            document_id=self.document_id[rows],
            special=self.special[rows],
            lengths=None if self.lengths is None else self.lengths[rows],
            labels=None if self.labels is None else self.labels.take(rows),
            prompts=None if self.prompts is None else self.prompts.take(rows),
        )

    def by_length(self, rows: np.ndarray) -> np.ndarray:
        """Row numbers sorted by length, so that batches have little padding."""
        return rows if self.lengths is None else rows[np.argsort(self.lengths[rows], kind="stable")]

    def width(self, rows: np.ndarray) -> int:
        """The longest length of these contexts: the columns of `token_ids` to read."""
        return self.length if self.lengths is None else int(self.lengths[rows].max())

    def fingerprint(self) -> str:
        """Hash of everything that a model and a metric read: token ids, special tokens, documents."""
        digest = hashlib.sha256(repr(self.token_ids.shape).encode())
        for array in (self.token_ids, self.document_id, self.special):
            digest.update(np.ascontiguousarray(array).tobytes())
        if self.labels is not None:
            digest.update(self.labels.digest())
        if self.prompts is not None:
            digest.update(self.prompts.digest())
        return digest.hexdigest()


def special_ids(tokenizer: Any, config: Any = None) -> np.ndarray:
    """Ids that are neither scored nor trained on: every special token of the tokenizer, reserved ones included.

    Without a tokenizer: BOS, EOS and padding of the model's config.
    """
    if tokenizer is None:
        named = [getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
        ids = {i for value in named for i in (value if isinstance(value, list) else [value]) if i is not None}
        return np.array(sorted(ids), dtype=np.int64)
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return np.array(sorted(added | set(tokenizer.all_special_ids)), dtype=np.int64)


def bos_id(asked: bool | Literal["auto"], tokenizer: Any) -> int | None:
    """The id that contexts begin with; None if the task wants none, or the tokenizer has none (Qwen2, Qwen3)."""
    found: int | None = tokenizer.bos_token_id if asked else None
    return found


def task_contexts(task: Task, tokenizer: Any, bos: bool = True) -> Contexts:
    """The contexts of a task under a tokenizer.

    If the tokenizer has no BOS, the contexts have none even if the task asks for it; `Contexts.bos`, which the record's
    settings contain, then differs from `task.contexts.bos`.

    Args:
        bos: False omits BOS (--no-bos).

    Raises:
        SaebenchError: the corpus is missing, changed, or too small.
    """
    if tokenizer is None:
        raise UsageError(f"task {task.label} is text, but the model folder has no tokenizer: pass --tokens FILE.npy")
    if task.kind in MODEL_FREE:
        raise SaebenchError(
            f"task {task.label} brings its own activations and has no text: leave out the language model"
        )
    task = task.build(tokenizer)
    start = bos_id(task.contexts.bos and bos, tokenizer)

    def make() -> Contexts:
        return _made_contexts(task, tokenizer, start)

    if task.corpus.hub is None or Path(task.corpus.hub).is_dir():
        return make()
    return ranks.decide(lambda: cached(Contexts, task, tokenizer, start, make))


def _made_contexts(task: Task, tokenizer: Any, start: int | None) -> Contexts:
    spec = task.contexts
    if task.labels:
        return _labelled_contexts(task, tokenizer, start)
    if isinstance(task.content, PromptContent):
        return _prompt_contexts(task, task.content, tokenizer, start)
    names, pieces, dropped = [], [], 0
    for name, text in documents(task):
        # Some tokenizers add BOS by themselves; it must not appear twice.
        ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, dtype=np.int64)
        cut, tail = pack(ids, spec.length, start)
        names.append(name)
        pieces.append(cut)
        dropped += tail
    chosen = _spread([len(p) for p in pieces], spec.count)
    if len(chosen) < spec.count:
        raise SaebenchError(
            f"task {task.label} needs {spec.count} contexts, but its documents give {len(chosen)}: use a larger corpus"
        )
    token_ids = np.stack([pieces[d][i] for d, i in chosen])
    return Contexts(
        token_ids,
        np.array([d for d, _ in chosen], dtype=np.int64),
        np.isin(token_ids, special_ids(tokenizer)),
        tuple(names),
        dropped,
        sum(map(len, pieces)),
        bos=start is not None,
    )


def _labelled_contexts(task: Task, tokenizer: Any, bos: int | None) -> Contexts:
    """One context per document: its first T tokens, padded on the right to the longest."""
    assert task.labels is not None
    table = _labelled_table(task, task.labels)
    start = [] if bos is None else [bos]
    pieces: list[list[int]] = []
    kept: list[int] = []
    cut = cut_tokens = 0
    for i, text in enumerate(table.texts):
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        room = task.contexts.length - len(start)
        if not ids:
            continue
        cut += len(ids) > room
        cut_tokens += max(0, len(ids) - room)
        pieces.append([*start, *ids[:room]])
        kept.append(i)
        if len(kept) == task.contexts.count:
            break
    if not kept:
        raise SaebenchError(f"task {task.label}: no document has a token: check the text column")
    empty = kept[-1] + 1 - len(kept)
    unused = len(table.texts) - kept[-1] - 1
    lengths = np.array([len(p) for p in pieces], dtype=np.int64)
    token_ids = np.zeros((len(pieces), int(lengths.max())), dtype=np.int64)
    for row, piece in zip(token_ids, pieces, strict=True):
        row[: len(piece)] = piece
    padding = np.arange(token_ids.shape[1]) >= lengths[:, None]
    labels = table.labels.take(np.array(kept))
    require_sides(labels)
    names, document_id = np.unique([table.groups[i] for i in kept], return_inverse=True)
    return Contexts(
        token_ids,
        document_id.astype(np.int64),
        np.isin(token_ids, special_ids(tokenizer)) | padding,
        tuple(names.tolist()),
        cut_tokens,
        len(table.texts) - empty,
        lengths,
        labels,
        table.dropped | {"without tokens": empty, "beyond the task's count": unused, "cut": cut},
        bos=bos is not None,
    )


def _prompt_contexts(task: Task, content: PromptContent, tokenizer: Any, bos: int | None) -> Contexts:
    """One context per prompt, padded on the right to the longest; entities are the documents."""
    rows, where = list(content.rows), f"task {task.label}"
    if not rows:
        path = (fetched_folder() if task.corpus.fetched else task.folder) / str(task.corpus.file)
        _verify(task, path)
        rows = prompt_rows(_filtered(read_table(path), task, path), content.prompts, where)
    spec = task.contexts
    prompts = make_prompts(rows, tokenizer, content.prompts, bos=bos, length=spec.length, count=spec.count, where=where)
    padding = np.arange(prompts.token_ids.shape[1]) >= prompts.lengths[:, None]
    return Contexts(
        prompts.token_ids,
        prompts.entity,
        np.isin(prompts.token_ids, special_ids(tokenizer)) | padding,
        prompts.entities,
        available=len(rows),
        lengths=prompts.lengths,
        prompts=prompts,
        left_out=dict(prompts.dropped),
        bos=bos is not None,
    )


def _labelled_table(task: Task, labels: LabelSpec) -> LabelledTexts:
    """The labelled texts of a task, from its file or from the hub."""
    if task.corpus.hub:
        frame, columns = hub_table(task.corpus, labels)
        return labelled_texts(frame, columns, task.corpus.hub)
    path = (fetched_folder() if task.corpus.fetched else task.folder) / str(task.corpus.file)
    _verify(task, path)
    return labelled_texts(_filtered(read_table(path), task, path), labels, str(path))


def open_tokens(path: Path) -> np.ndarray:
    """The integers [N, T] of a .npy file, memory-mapped.

    Raises:
        UsageError: no such file, or other content.
    """
    try:
        require_regular(path)  # opening a pipe would block
        ids = np.load(path, allow_pickle=False, mmap_mode="r")
    except (
        OSError,
        ValueError,
        EOFError,
        BadZipFile,
        OverflowError,
        RecursionError,
        MemoryError,
        SyntaxError,
    ) as error:
        raise UsageError(f"{path}: not readable as .npy: {one_line(error)}") from error
    if (
        not isinstance(ids, np.ndarray)
        or ids.ndim != 2
        or ids.dtype.kind not in "iu"
        or min(ids.shape) < 1
        or ids.shape[1] < 2
    ):
        raise UsageError(f"{path}: expected whole numbers [contexts, tokens], at least 1 × 2")
    return ids


def token_contexts(path: Path, vocabulary: int, specials: Iterable[int]) -> Contexts:
    """Contexts from a .npy file of token ids [N, T], unchanged; each row is its own document.

    Raises:
        UsageError: no such file, other content, or ids outside the vocabulary.
    """
    ids = open_tokens(path)
    if ids.size > _TOKENS:
        raise UsageError(f"{path}: {ids.size:,} token ids; at most {_TOKENS:,} are read: take fewer rows")
    ids = ids.astype(np.int64)
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise UsageError(
            f"{path}: token ids run from {ids.min()} to {ids.max()}, the model knows 0 to {vocabulary - 1}"
        )
    rows = np.arange(len(ids), dtype=np.int64)
    special = np.isin(ids, np.array(sorted(specials), dtype=np.int64))
    return Contexts(ids, rows, special, tuple(f"row {i}" for i in rows), 0, len(ids))


def pack(ids: np.ndarray, length: int, bos: int | None) -> tuple[np.ndarray, int]:
    """Whole contexts [n, length] of one document, and the length of its tail."""
    body = length - (bos is not None)
    n = len(ids) // body
    cut = ids[: n * body].reshape(n, body)
    if bos is not None:
        cut = np.concatenate([np.full((n, 1), bos, dtype=np.int64), cut], axis=1)
    return cut, len(ids) - n * body


def _spread(sizes: list[int], count: int) -> list[tuple[int, int]]:
    """(document, context) pairs: shares of `count` as equal as the documents allow, evenly spaced within each document.

    The order goes round the documents, so that the first n pairs (`--limit n`) are spread too.
    """
    quota = [0] * len(sizes)
    left = min(count, sum(sizes))
    while left:
        open_documents = [d for d, size in enumerate(sizes) if quota[d] < size]
        share = max(1, left // len(open_documents))
        for d in open_documents:
            take = min(share, sizes[d] - quota[d], left)
            quota[d] += take
            left -= take
    chosen = [[int((i + 0.5) * size / q) for i in range(q)] for size, q in zip(sizes, quota, strict=True)]
    rounds = range(max(quota, default=0))
    return [(d, picks[r]) for r in rounds for d, picks in enumerate(chosen) if r < len(picks)]


def documents(task: Task) -> Iterator[tuple[str, str]]:
    """(name, text) of each document of a task's corpus, in a fixed order."""
    spec = task.corpus
    if spec.hub:
        yield from hub_documents(spec)
        return
    path = task.folder / str(spec.file)
    _verify(task, path)
    for row in _filtered(read_table(path), task, path, ("document", "text")).itertuples():
        yield str(row.document), str(row.text)


def _verify(task: Task, path: Path) -> None:
    """Raise SaebenchError unless the file has the hash that the task states."""
    try:
        digest = hashlib.sha256(read_bytes(path, TABLE_BYTES)).hexdigest()
    except (OSError, ValueError) as error:
        remedy = f": make it with `{_remake(task)}`" if task.corpus.fetched else ""
        raise SaebenchError(f"task {task.label}: its text {path} cannot be read: {one_line(error)}{remedy}") from error
    if digest != task.corpus.sha256:
        raise SaebenchError(
            f"task {task.label}: {path} is not the text it names (sha256 {digest[:12]}…, expected "
            f"{str(task.corpus.sha256)[:12]}…): rebuild it with `{_remake(task)}`"
        )


def _remake(task: Task) -> str:
    """The command that rebuilds a task's text."""
    return f"python -m saebench.tasks.fetch {Path(str(task.corpus.file)).stem}" if task.corpus.fetched else "make data"


def _filtered(frame: pd.DataFrame, task: Task, path: Path, needed: tuple[str, ...] = ()) -> pd.DataFrame:
    """The rows that pass `where`; raises SaebenchError if a column is missing."""
    where = task.corpus.where or {}
    missing = [name for name in (*needed, *where) if name not in frame]
    if missing:
        raise SaebenchError(
            f"task {task.label}: {path} has no column {', '.join(missing)}: it has {', '.join(map(str, frame.columns))}"
        )
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame
