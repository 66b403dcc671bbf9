"""A task file -> a Task: which text, cut how, and which metrics. A changed task is a new version, or a new name."""

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from saebench.errors import UsageError, one_line, unknown


@dataclass(frozen=True)
class CorpusSpec:
    """Where documents come from: exactly one of a file and a hub data set.

    Attributes:
        file: parquet with columns document and text; relative to the task file. Labelled texts may be .csv too.
        sha256: the file's hash.
        where: column = value filters.
        hub, revision, subset, split, text_column: a data set on the Hugging Face hub at a pinned commit.
        documents: how many documents of a hub data set are read, from its beginning.
        fetched: the file is one that `python -m saebench.tasks.fetch` makes.
        subsets: label = subset: a subset of the hub data set for each label; {label} in labels.text stands for the label.
        files: parquet or JSON-lines files of the hub data set (a path or pattern), read in place of the card's splits.
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
    fetched: bool | None = None
    subsets: Mapping[str, str] | None = None
    files: str | None = None


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
        classes: value = name: other labels are left out, counted. A value that begins with a dot is the end of a file's name.
        per_class: at most so many documents of each class, chosen by a hash of their text.
        balance: of those, as many with each value of this column (as near as there are).
        skip: characters left away at a text's beginning (the licence at a source file's head).
    """

    text: str = "text"
    label: str = "label"
    group: str | None = None
    test: float = 0.3
    classes: Mapping[str, str] | None = None
    per_class: int | None = None
    balance: str | None = None
    skip: int | None = None


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
        licence: of the text, and where it comes from.
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
    licence: str = ""

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"

    def sha256(self) -> str:
        """Hash of everything that changes what is measured; titles do not."""
        body = {
            "name": self.name,
            "version": self.version,
            "corpus": _said(self.corpus),
            "contexts": asdict(self.contexts),
        }
        if self.labels:
            body["labels"] = _said(self.labels)
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


# Keys that came later: a task that does not say them keeps the hash it had.
_LATER = ("fetched", "subsets", "files", "classes", "per_class", "balance", "skip")


def _said(spec: CorpusSpec | LabelSpec) -> dict[str, Any]:
    return {key: value for key, value in asdict(spec).items() if value is not None or key not in _LATER}


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


def data_task(path: Path, labels: LabelSpec, metrics: Sequence[str]) -> Task:
    """A task on the user's table of labelled texts, .csv or .parquet; its name holds the table's.

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
        tuple(metrics),
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
        labels = LabelSpec(**raw.pop("labels")) if "labels" in raw else None
        corpus = read_corpus(raw.pop("corpus"), labels)
        contexts = ContextSpec(**raw.pop("contexts"))
        metrics = raw.pop("metrics")
        if not isinstance(metrics, list):
            raise TypeError("metrics must be a list of names")
        task = Task(corpus=corpus, contexts=contexts, metrics=tuple(metrics), folder=path.parent, labels=labels, **raw)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a valid task: {one_line(error)}; tasks/fidelity.toml shows every key") from error
    _check(task, path)
    return task


def read_corpus(raw: Any, labels: LabelSpec | None = None) -> CorpusSpec:
    """A [corpus] table, of a task or of a training run.

    Args:
        labels: what a task says of its labels, if it has some.

    Raises:
        UsageError: a key or a value of it means nothing, or it names no text, or two.
    """
    if not isinstance(raw, dict):
        raise UsageError(f"corpus is {raw!r}, expected a table: [corpus]")
    known = {f.name for f in fields(CorpusSpec)}
    for key in raw:
        if key not in known:
            raise unknown("key of [corpus]", key, known)
    corpus = CorpusSpec(**raw)
    for problem, holds in _corpus_problems(corpus, labels).items():
        if holds:
            raise UsageError(problem)
    return corpus


def _check(task: Task, path: Path) -> None:
    contexts = task.contexts
    problems = {
        "name and version must be a string and a whole number from 1": not (
            isinstance(task.name, str) and _whole(task.version, 1)
        ),
        "name may hold letters, digits, '-' and '_' only, after its suite and '/' if it has one": not _is_name(
            task.name
        ),
        "metrics must be a list of names": not task.metrics or not all(isinstance(m, str) for m in task.metrics),
        "title, description and licence must be text": not all(
            isinstance(text, str) for text in (task.title, task.description, task.licence)
        ),
        "contexts.length must be 2 or more": not _whole(contexts.length, 2),
        "contexts.count must be 1 or more": not _whole(contexts.count, 1),
        **_label_problems(task.labels),
        "contexts.bos must be true or false": not isinstance(contexts.bos, bool),
        "contexts.max_norm must be a positive number": not _positive(contexts.max_norm),
    }
    for problem, holds in problems.items():
        if holds:
            raise UsageError(f"{path}: {problem}")


def _corpus_problems(corpus: CorpusSpec, labels: LabelSpec | None) -> dict[str, bool]:
    return {
        "corpus names must be text": not all(
            isinstance(v, str | None)
            for k, v in vars(corpus).items()
            if k not in ("where", "documents", "fetched", "subsets")
        ),
        "corpus.where must be a table of column = value": not isinstance(corpus.where, dict | None),
        "corpus.fetched is true or left away, and goes with a file": corpus.fetched is not None
        and not (corpus.fetched is True and corpus.file),
        "corpus.subsets must be a table of label = subset of a labelled hub data set": corpus.subsets is not None
        and not (_is_text_table(corpus.subsets) and corpus.hub and labels),
        "corpus.documents must be 1 or more": not _whole(corpus.documents, 1),
        "corpus needs exactly one of file and hub": (corpus.file is None) == (corpus.hub is None),
        "a corpus file needs its sha256": corpus.file is not None and corpus.sha256 is None,
        "a hub corpus needs a pinned revision (a commit)": corpus.hub is not None and not _is_commit(corpus.revision),
    }


def _label_problems(labels: LabelSpec | None) -> dict[str, bool]:
    if labels is None:
        return {}
    return {
        "labels.text, label, group and balance must be text": not all(
            isinstance(v, str | None) for v in (labels.text, labels.label, labels.group, labels.balance)
        ),
        "labels.test must lie between 0 and 1": not (_positive(labels.test) and labels.test < 1),
        "labels.classes must be a table of value = name": labels.classes is not None
        and not _is_text_table(labels.classes),
        "labels.per_class must be 1 or more": labels.per_class is not None and not _whole(labels.per_class, 1),
        "labels.balance needs labels.per_class": labels.balance is not None and labels.per_class is None,
        "labels.skip must be 0 or more": labels.skip is not None and not _whole(labels.skip, 0),
    }


def _is_text_table(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(v, str) for v in value.values())


def _is_name(name: Any) -> bool:
    return re.fullmatch("[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)?", str(name)) is not None


def _is_commit(revision: Any) -> bool:
    """A commit; its first seven digits or more will do, and are looked up (loading/hub.py)."""
    return isinstance(revision, str) and re.fullmatch("[0-9a-f]{7,40}", revision) is not None


def _positive(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
