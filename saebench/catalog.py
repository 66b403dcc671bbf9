"""Find tasks by name or file: built-in tasks, tasks of plugins, TOML files, and tasks on the user's data."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field, ValidationError

from saebench.errors import UsageError, one_line, unknown
from saebench.planting import PlantedSpec, SampleSpec
from saebench.reading import TABLE_BYTES, read_bytes, read_toml
from saebench.registry import registry
from saebench.schema import CLOSED, Text, Whole, explain
from saebench.task import (
    NAME,
    ActivationContent,
    ActivationSpec,
    Content,
    ContextSpec,
    CorpusSpec,
    Kind,
    LabelContent,
    LabelSpec,
    PlantedContent,
    PromptContent,
    PromptSpec,
    Task,
    TextContent,
    WeightsContent,
    announced,
    builtin_tasks,
)
from saebench.text import clean

# A commit hash of at least seven digits; an abbreviated one is resolved in loading/hub.py.
_COMMIT = re.compile("[0-9a-f]{7,40}")


class _File(BaseModel):
    model_config = CLOSED
    kind: ClassVar[Kind] = "contexts"
    name: Annotated[str, Field(pattern=f"^{NAME}$", max_length=200)]
    version: Whole
    metrics: Annotated[list[Text], Field(min_length=1)]
    title: Text = ""
    description: Text = ""
    licence: Text = ""
    settings: dict[Text, dict[Text, Any]] = {}

    def content(self) -> Content:
        raise NotImplementedError


class _TextFile(_File):
    corpus: CorpusSpec
    contexts: ContextSpec

    def content(self) -> Content:
        return TextContent(self.corpus, self.contexts)


class _LabelFile(_TextFile):
    kind: ClassVar[Kind] = "labels"
    labels: LabelSpec

    def content(self) -> Content:
        return LabelContent(self.corpus, self.contexts, self.labels)


class _PromptFile(_TextFile):
    kind: ClassVar[Kind] = "prompts"
    prompts: PromptSpec

    def content(self) -> Content:
        return PromptContent(self.corpus, self.contexts, self.prompts)


class _ActivationFile(_File):
    kind: ClassVar[Kind] = "activations"
    activations: ActivationSpec

    def content(self) -> Content:
        return ActivationContent(self.activations)


class _PlantedFile(_File):
    kind: ClassVar[Kind] = "planted"
    planted: PlantedSpec
    samples: SampleSpec = Field(default_factory=SampleSpec)

    def content(self) -> Content:
        return PlantedContent(self.planted, self.samples)


class _WeightsFile(_File):
    kind: ClassVar[Kind] = "weights"
    weights: Annotated[dict[str, Any], Field(max_length=0)]

    def content(self) -> Content:
        return WeightsContent()


_FILES: tuple[type[_File], ...] = (_LabelFile, _PromptFile, _ActivationFile, _PlantedFile, _WeightsFile)


def known_tasks() -> dict[str, Task]:
    """Every task by name, plugins' last; a task that needs a tokenizer is only announced."""
    return {name: _read(path) for name, path in builtin_tasks().items()} | {
        name: announced(task) for name, task in sorted(registry().tasks.items())
    }


def load_tasks(spec: str) -> list[Task]:
    """A task, or every task of a suite: `probing` is all of probing/.

    Raises:
        UsageError: see `load_task`.
    """
    if spec.endswith(".toml"):
        return [load_task(spec)]
    suite = [name for name in [*builtin_tasks(), *sorted(registry().tasks)] if name.startswith(f"{spec}/")]
    return [load_task(name) for name in suite or [spec]]


def load_task(spec: str) -> Task:
    """A task by name (`fidelity`) or name and version (`fidelity@1`), or a path to a TOML file.

    A plugin's task may still need `Task.build`.

    Raises:
        UsageError: no such task or version, or a file that is not a valid task.
    """
    if spec.endswith(".toml"):
        return _read(Path(spec))
    name, _, version = spec.partition("@")
    builtin, brought = builtin_tasks(), {}
    if name in builtin:
        task = _read(builtin[name])
    else:
        brought = registry().tasks
        if name not in brought:
            known = {*builtin, *brought}
            raise unknown("task", name, known | {other.partition("/")[0] for other in known})
        task = announced(brought[name])
    if version and version != str(task.version):
        raise UsageError(
            f"task '{name}' is at version {task.version} here, not {version}: install the saebench that has it"
        )
    return task


def data_task(path: Path, labels: LabelSpec, metrics: Sequence[str]) -> Task:
    """A task on the user's table of labelled texts, .csv or .parquet, named after the table.

    Raises:
        UsageError: the table cannot be read.
    """
    try:
        digest = hashlib.sha256(read_bytes(path, TABLE_BYTES)).hexdigest()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not readable: {one_line(error)}") from error
    corpus, contexts = CorpusSpec(file=path.name, sha256=digest), ContextSpec(128, True, 1_000_000, 10.0)
    return Task(f"data/{_stem(path)}", 1, tuple(metrics), LabelContent(corpus, contexts, labels), folder=path.parent)


def activation_task(
    path: Path, metrics: Sequence[str], labels: Path | None, columns: LabelSpec, grid: tuple[int, int] | None
) -> Task:
    """A task on the user's file of activations, named after the file.

    Args:
        labels: a table with one row per item.
        columns: its label and group columns.
        grid: height and width of the positions, for images.

    Raises:
        UsageError: a file cannot be read.
    """
    spec = ActivationSpec(path.name, file_sha256(path), grid=grid)
    if labels is not None:
        spec = ActivationSpec(
            path.name, spec.sha256, None, str(labels.resolve()), file_sha256(labels), columns.label, columns.group, grid
        )
    return Task(f"activations/{_stem(path)}", 1, tuple(metrics), ActivationContent(spec), folder=path.parent)


def file_sha256(path: Path) -> str:
    """The hash of a file of any size.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        if not path.is_file():
            raise OSError("no such file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: not readable: {one_line(error)}") from error


def _stem(path: Path) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in path.stem)


def _read(path: Path) -> Task:
    try:
        raw = read_toml(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not readable as a task: {one_line(error)}") from error
    schema = next((file for file in _FILES if file.kind in raw), _TextFile)
    where = f"{path}: "
    if isinstance(raw.get("name"), str) and isinstance(raw.get("version"), int):
        where += f"task {clean(raw['name'])}@{raw['version']}: "
    try:
        found = schema.model_validate(raw)
        content = found.content()
        _require_sound(content)
    except ValidationError as error:
        raise UsageError(where + explain(error, schema)) from error
    except UsageError as error:
        raise UsageError(f"{where}{error}") from error
    return Task(
        found.name, found.version, tuple(found.metrics), content, found.title, found.description, path.parent,
        found.licence,
        found.settings,
    )  # fmt: skip


def read_corpus(raw: Any) -> CorpusSpec:
    """The corpus of a training file's [corpus] table.

    Raises:
        UsageError: an unknown key, an invalid value, or not exactly one text.
    """

    class File(BaseModel):
        corpus: CorpusSpec

    try:
        corpus = File.model_validate({"corpus": raw}).corpus
    except ValidationError as error:
        raise UsageError(explain(error, File)) from error
    _require_corpus(corpus, None)
    return corpus


def _require_sound(content: Content) -> None:
    """Raise UsageError for contradicting values."""
    if not isinstance(content, TextContent):
        return
    labels = content.labels if isinstance(content, LabelContent) else None
    _require_corpus(content.corpus, labels)
    problems = {
        "contexts.length must be 2 or more": content.contexts.length < 2,
        "contexts.count must be 1 or more": content.contexts.count < 1,
        "labels.balance needs labels.per_class": labels is not None
        and labels.balance is not None
        and labels.per_class is None,
        "prompts are read from a file: give corpus.file": isinstance(content, PromptContent)
        and content.corpus.file is None,
    }
    _refuse(problems)


def _require_corpus(corpus: CorpusSpec, labels: LabelSpec | None) -> None:
    """Raise UsageError unless a corpus names exactly one text, pinned."""
    problems = {
        "corpus needs exactly one of file and hub": (corpus.file is None) == (corpus.hub is None),
        "corpus.fetched goes with a file": corpus.fetched is not None and corpus.file is None,
        "corpus.subsets goes with a labelled hub data set": corpus.subsets is not None and not (corpus.hub and labels),
        "corpus.sha256 is missing: a file needs its hash": corpus.file is not None and corpus.sha256 is None,
        f"corpus.revision is {corpus.revision!r}, expected a commit: a hub data set is pinned": corpus.hub is not None
        and not (corpus.revision and _COMMIT.fullmatch(corpus.revision)),
    }
    _refuse(problems)


def _refuse(problems: Mapping[str, bool]) -> None:
    for problem, holds in problems.items():
        if holds:
            raise UsageError(problem)
