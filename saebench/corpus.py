"""Documents -> packed contexts of token ids, with a fingerprint.

A context never crosses a document, and nothing is padded: a document's tail that is shorter than T is dropped and counted.
Labelled documents are the exception: each is one context, cut at T, padded on the right, where a causal model cannot see it.
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

# Token ids of one file: 4 GiB as int64.
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
        available: how many contexts the documents would have given
        lengths: [N] int64, tokens of each context that are not padding; None where nothing is padded
        labels: of labelled documents
        left_out: rows of a labelled corpus that are no context, by reason, and how many were cut
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
        """How many tokens there are, padding not counted."""
        return int(self.token_ids.size if self.lengths is None else self.lengths.sum())

    def head(self, n: int | None) -> "Contexts":
        """The first n contexts (all of them for None)."""
        return self if n is None or n >= len(self) else self.take(np.arange(n))

    def take(self, rows: np.ndarray) -> "Contexts":
        """The contexts of these numbers."""
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
        """These contexts' numbers, the short ones first, so that a batch holds little padding."""
        return rows if self.lengths is None else rows[np.argsort(self.lengths[rows], kind="stable")]

    def width(self, rows: np.ndarray) -> int:
        """How many columns of `token_ids` these contexts need."""
        return self.length if self.lengths is None else int(self.lengths[rows].max())

    def fingerprint(self) -> str:
        """Hash of what a model and a metric see: ids, which are special, and which document each came from."""
        digest = hashlib.sha256(repr(self.token_ids.shape).encode())
        for array in (self.token_ids, self.document_id, self.special):
            digest.update(np.ascontiguousarray(array).tobytes())
        if self.labels is not None:
            digest.update(self.labels.digest())
        if self.prompts is not None:
            digest.update(self.prompts.digest())
        return digest.hexdigest()


def special_ids(tokenizer: Any, config: Any = None) -> np.ndarray:
    """Ids that are neither scored nor trained on: every special token of the tokenizer (Llama 3's reserved ones are in its added
    tokens only); of a model without a tokenizer, BOS, EOS and padding of its config.
    """
    if tokenizer is None:
        named = [getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
        ids = {i for value in named for i in (value if isinstance(value, list) else [value]) if i is not None}
        return np.array(sorted(ids), dtype=np.int64)
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return np.array(sorted(added | set(tokenizer.all_special_ids)), dtype=np.int64)


def bos_id(asked: bool | Literal["auto"], tokenizer: Any) -> int | None:
    """The id that contexts begin with; None where none is asked for, or the tokenizer has none (Qwen2, Qwen3)."""
    found: int | None = tokenizer.bos_token_id if asked else None
    return found


def task_contexts(task: Task, tokenizer: Any, bos: bool = True) -> Contexts:
    """The contexts of a task under a tokenizer.

    Where the tokenizer has no BOS, a task that asks for it goes without: `Contexts.bos` differs from `task.contexts.bos`, which
    the record's settings hold.

    Args:
        bos: False leaves BOS away (--no-bos).

    Raises:
        SaebenchError: the corpus is missing, changed, or too small.
    """
    if tokenizer is None:
        raise UsageError(f"task {task.label} is text, and the model folder has no tokenizer: pass --tokens FILE.npy")
    if task.kind in MODEL_FREE:
        raise SaebenchError(f"task {task.label} brings its own activations, and has no text for a language model")
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
        # Some tokenizers add BOS by themselves: never twice.
        ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, dtype=np.int64)
        cut, tail = pack(ids, spec.length, start)
        names.append(name)
        pieces.append(cut)
        dropped += tail
    chosen = _spread([len(p) for p in pieces], spec.count)
    if len(chosen) < spec.count:
        raise SaebenchError(
            f"task {task.label} needs {spec.count} contexts and its documents give {len(chosen)}: use a larger corpus"
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
    """One context a document: its first T tokens, padded on the right to the longest."""
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
        raise SaebenchError(f"task {task.label}: no document gives a token")
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
    """One context a prompt, padded on the right to the longest; entities are the documents."""
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
    """The whole numbers [N, T] of a .npy file, left on the disk.

    Raises:
        UsageError: not such a file.
    """
    try:
        require_regular(path)  # a pipe would be waited for
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
    """Contexts from a .npy file of token ids [N, T], as they are; each row counts as a document of its own.

    Raises:
        UsageError: not such a file, or ids outside the vocabulary.
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
    """Whole contexts [n, length] of one document, and how many tokens its tail has."""
    body = length - (bos is not None)
    n = len(ids) // body
    cut = ids[: n * body].reshape(n, body)
    if bos is not None:
        cut = np.concatenate([np.full((n, 1), bos, dtype=np.int64), cut], axis=1)
    return cut, len(ids) - n * body


def _spread(sizes: list[int], count: int) -> list[tuple[int, int]]:
    """(document, context) pairs: as even a share of `count` for each document as it can fill, evenly spaced within it.

    They come in rounds over the documents, so that the first n of them (`--limit n`) are spread as well.
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
    """Raise SaebenchError unless the file is the one that the task names."""
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
    """The command that makes a task's text again."""
    return f"python -m saebench.tasks.fetch {Path(str(task.corpus.file)).stem}" if task.corpus.fetched else "make data"


def _filtered(frame: pd.DataFrame, task: Task, path: Path, needed: tuple[str, ...] = ()) -> pd.DataFrame:
    """The rows that the task asks for; raises SaebenchError where a column is missing."""
    where = task.corpus.where or {}
    missing = [name for name in (*needed, *where) if name not in frame]
    if missing:
        raise SaebenchError(
            f"task {task.label}: {path} has no column {', '.join(missing)}: it has {', '.join(map(str, frame.columns))}"
        )
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame
