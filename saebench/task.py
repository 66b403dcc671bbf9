"""A task file -> a Task: which text, cut how, and which metrics. A changed task is a new version, or a new name."""

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from saebench.errors import UsageError, one_line, unknown


@dataclass(frozen=True)
class CorpusSpec:
    """Where documents come from: exactly one of a parquet file and a hub data set.

    Attributes:
        file: parquet with columns document and text; relative to the task file.
        sha256: the file's hash.
        where: column = value filters.
        hub, revision, subset, split, text_column: a data set on the Hugging Face hub at a pinned commit.
        documents: how many documents of a hub data set are read, from its beginning.
    """

    file: str | None = None
    sha256: str | None = None
    where: Mapping[str, str] | None = None
    hub: str | None = None
    revision: str | None = None
    subset: str | None = None
    split: str = "train"
    text_column: str = "text"
    documents: int = 500


@dataclass(frozen=True)
class ContextSpec:
    """How documents become contexts.

    Attributes:
        length: T, tokens a context, the BOS included.
        bos: whether each context begins with BOS.
        count: how many, spread evenly over the documents.
        max_norm: tokens whose activation is longer than this many median norms are not scored; None scores them all.
    """

    length: int
    bos: bool
    count: int
    max_norm: float | None = None


@dataclass(frozen=True)
class LabelSpec:
    """Columns of a labelled corpus: each row is one context.

    Attributes:
        text, label: the columns.
        group: rows with the same value are on the same side of the split, and vary together: they are one cluster of every
            interval, as the contexts of a document are. None makes each row its own.
        test: the share of documents that is held out, by whole groups.
    """

    text: str = "text"
    label: str = "label"
    group: str | None = None
    test: float = 0.3


@dataclass(frozen=True)
class Task:
    """One measurement that anybody can repeat.

    Attributes:
        name, version: how it is asked for; `name@version` is what numbers are compared within.
        corpus, contexts: empty for a run on token ids as they are.
        metrics: computed unless others are asked for.
        labels: for a task of labelled documents: each is one context, cut at contexts.length and padded, at most
            contexts.count of them.
        folder: where its relative paths begin.
    """

    name: str
    version: int
    metrics: tuple[str, ...]
    corpus: CorpusSpec
    contexts: ContextSpec
    title: str = ""
    description: str = ""
    folder: Path = Path()
    labels: LabelSpec | None = None

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"

    def sha256(self) -> str:
        """Hash of everything that changes what is measured; titles do not."""
        body = {
            "name": self.name,
            "version": self.version,
            "corpus": asdict(self.corpus),
            "contexts": asdict(self.contexts),
        }
        if self.labels:
            body["labels"] = asdict(self.labels)
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def builtin_tasks() -> dict[str, Path]:
    """Task files that come with saebench, by name: `fidelity`, `probing/wordnet`."""
    folder = Path(str(files("saebench.tasks")))
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.toml"))}
    return {name: path for name, path in found.items() if not name.startswith("train/")}  # training runs are no tasks


def load_tasks(spec: str) -> list[Task]:
    """A task, or every task of a suite: `probing` is all of probing/.

    Raises:
        UsageError: see `load_task`.
    """
    suite = [name for name in builtin_tasks() if name.startswith(f"{spec}/")]
    return [load_task(name) for name in suite or [spec]]


def load_task(spec: str) -> Task:
    """A task by name (`fidelity`), name and version (`fidelity@1`), or path to a TOML file.

    Raises:
        UsageError: no such task or version, or a file that is not a valid task.
    """
    if spec.endswith(".toml"):
        return _read(Path(spec))
    name, _, version = spec.partition("@")
    known = builtin_tasks()
    if name not in known:
        raise unknown("task", name, {*known, *(other.partition("/")[0] for other in known)})
    task = _read(known[name])
    if version and version != str(task.version):
        raise UsageError(
            f"task '{name}' is at version {task.version} here, not {version}: install the saebench that has it"
        )
    return task


def data_task(path: Path, labels: LabelSpec) -> Task:
    """Probing on somebody's own table of labelled texts, .csv or .parquet; its name holds the table's.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: not readable: {one_line(error)}") from error
    stem = "".join(c if c.isascii() and c.isalnum() else "-" for c in path.stem)
    return Task(
        f"data/{stem}",
        1,
        ("probing",),
        CorpusSpec(file=path.name, sha256=digest),
        ContextSpec(length=128, bos=True, count=1_000_000, max_norm=10.0),
        folder=path.parent,
        labels=labels,
    )


def _read(path: Path) -> Task:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not readable as a task: {one_line(error)}") from error
    try:
        corpus = CorpusSpec(**raw.pop("corpus"))
        contexts = ContextSpec(**raw.pop("contexts"))
        labels = LabelSpec(**raw.pop("labels")) if "labels" in raw else None
        metrics = raw.pop("metrics")
        if not isinstance(metrics, list):
            raise TypeError("metrics must be a list of names")
        task = Task(corpus=corpus, contexts=contexts, metrics=tuple(metrics), folder=path.parent, labels=labels, **raw)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a valid task: {one_line(error)}; tasks/fidelity.toml shows every key") from error
    _check(task, path)
    return task


def _check(task: Task, path: Path) -> None:
    corpus, contexts = task.corpus, task.contexts
    problems = {
        "name and version must be a string and a whole number from 1": not (
            isinstance(task.name, str) and _whole(task.version, 1)
        ),
        "name may hold letters, digits, '-' and '_' only, after its suite and '/' if it has one": not _is_name(
            task.name
        ),
        "metrics must be a list of names": not task.metrics or not all(isinstance(m, str) for m in task.metrics),
        "title and description must be text": not (isinstance(task.title, str) and isinstance(task.description, str)),
        "corpus names must be text": not all(
            isinstance(v, str | None) for k, v in vars(corpus).items() if k not in ("where", "documents")
        ),
        "corpus.where must be a table of column = value": not isinstance(corpus.where, dict | None),
        "corpus.documents must be 1 or more": not _whole(corpus.documents, 1),
        "corpus needs exactly one of file and hub": (corpus.file is None) == (corpus.hub is None),
        "a corpus file needs its sha256": corpus.file is not None and corpus.sha256 is None,
        "a hub corpus needs a pinned revision (a commit)": corpus.hub is not None and not _is_commit(corpus.revision),
        "contexts.length must be 2 or more": not _whole(contexts.length, 2),
        "contexts.count must be 1 or more": not _whole(contexts.count, 1),
        "a labelled corpus must be a file": task.labels is not None and corpus.file is None,
        "labels.test must lie between 0 and 1": task.labels is not None and not 0 < task.labels.test < 1,
        "contexts.bos must be true or false": not isinstance(contexts.bos, bool),
        "contexts.max_norm must be a positive number": not _positive(contexts.max_norm),
    }
    for problem, holds in problems.items():
        if holds:
            raise UsageError(f"{path}: {problem}")


def _is_name(name: Any) -> bool:
    return re.fullmatch("[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)?", str(name)) is not None


def _is_commit(revision: Any) -> bool:
    return isinstance(revision, str) and len(revision) == 40 and all(c in "0123456789abcdef" for c in revision)


def _positive(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
