"""The task contract: one reproducible measurement. A changed task gets a new version or a new name.

A task is a TOML file, or an object of a plugin (hook `saebench_tasks`). Its content is of one kind: text cut into contexts,
labelled documents, prompts with answers, a file of activations, or a planted model.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import Field
from pydantic.dataclasses import dataclass

from saebench.errors import SaebenchError, one_line, unknown
from saebench.planting import PlantedSpec, SampleSpec
from saebench.schema import CLOSED, Count, Flag, Real, Text, Whole
from saebench.text import clean

Kind = Literal["contexts", "labels", "prompts", "activations", "planted", "weights"]
# Kinds with activations of their own, or none, for which no language model runs.
MODEL_FREE: tuple[Kind, ...] = ("activations", "planted", "weights")
Table = Annotated[Mapping[Text, Text], Field(min_length=1)]
# After its suite and '/' if the task has one.
NAME = "[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)?"


@dataclass(frozen=True, config=CLOSED)
class CorpusSpec:
    """The source of documents: exactly one of a file and a hub data set.

    Attributes:
        file: parquet with columns document and text; relative to the task file. Labelled texts and prompts may be .csv too.
        sha256: the file's hash.
        where: column = value filters.
        hub, revision, subset, split, text_column: a data set on the Hugging Face hub at a pinned commit.
        documents: number of documents read from the beginning of a hub data set.
        fetched: the file is made by `python -m saebench.tasks.fetch`.
        subsets: label = subset: a subset of the hub data set for each label; {label} in labels.text is replaced by the label.
        files: parquet or JSON-lines files of the hub data set (a path or pattern), read in place of the card's splits.
    """

    HASHED: ClassVar = ("file", "sha256", "where", "hub", "revision", "subset", "split", "text_column", "documents")

    file: Text | None = None
    sha256: Text | None = None
    where: Annotated[Mapping[Text, Text | Flag | Count | Real], Field(min_length=1)] | None = None
    hub: Text | None = None
    revision: Text | None = None
    subset: Text | None = None
    split: Text = "train"
    text_column: Text = "text"
    documents: Whole = 500
    fetched: Literal[True] | None = None
    subsets: Table | None = None
    files: Text | None = None


@dataclass(frozen=True, config=CLOSED)
class ContextSpec:
    """The cutting of documents into contexts.

    Attributes:
        length: T, tokens per context, BOS included.
        bos: whether each context begins with BOS; "auto": if the tokenizer has one.
        count: number of contexts, spread evenly over the documents.
        max_norm: tokens with an activation norm above this many median norms are not scored; None scores all.
    """

    HASHED: ClassVar = ("length", "bos", "count", "max_norm")

    length: Count
    bos: Flag | Literal["auto"]
    count: Count
    max_norm: Annotated[Real, Field(gt=0)] | None = None


@dataclass(frozen=True, config=CLOSED)
class LabelSpec:
    """Columns of a labelled corpus: each row is one context.

    Attributes:
        text, label: the columns.
        group: column whose equal values put rows on one side of the split and into one cluster of every interval, as the
            contexts of a document are; None: each row is its own group.
        test: held-out share of documents, in whole groups.
        classes: value = name; rows with other labels are left out and counted. A value that begins with a dot is the suffix of
            a file name.
        per_class: largest number of documents of a class, chosen by a hash of their text.
        balance: column whose values have equal numbers among those documents.
        skip: characters removed from the beginning of a text (the licence at the head of a source file).
    """

    HASHED: ClassVar = ("text", "label", "group", "test")

    text: Text = "text"
    label: Text = "label"
    group: Text | None = None
    test: Annotated[Real, Field(gt=0, lt=1)] = 0.3
    classes: Table | None = None
    per_class: Whole | None = None
    balance: Text | None = None
    skip: Count | None = None


@dataclass(frozen=True, config=CLOSED)
class PromptSpec:
    """Columns of a table of prompts, and their split; see `saebench.prompts.Prompts`.

    Attributes:
        text, answer, entity, attribute, template: the columns; the last two may be missing from the table.
        focus: the column of the words whose last token is the position of interest; by default the entity.
        held_out: share of entities on the held-out side, at least one; the others are for choosing.
        seed: of the hash that splits the entities.
        known: whether to use only prompts that the model answers correctly.
    """

    HASHED: ClassVar = ("text", "answer", "entity", "attribute", "template", "focus", "held_out", "seed", "known")

    text: Text = "text"
    answer: Text = "answer"
    entity: Text = "entity"
    attribute: Text = "attribute"
    template: Text = "template"
    focus: Text | None = None
    held_out: Annotated[Real, Field(gt=0, lt=1)] = 0.5
    seed: Count = 0
    known: Flag = False


@dataclass(frozen=True, config=CLOSED)
class Prompt:
    """One prompt with its answer.

    Attributes:
        text: the text before the answer.
        answer: the correct continuation, with a leading space if the prompt does not end with one.
        entity: the subject; prompts of one entity are on one side of the split and one cluster of every interval.
        attribute: the property asked for (country, continent); empty where there is only one.
        template: the wording around the entity.
        focus: words whose last token, in their last occurrence, is the position of interest; by default the entity if the text
            contains it, else the last token of the prompt.
    """

    text: str
    answer: str
    entity: str
    attribute: str = ""
    template: str = ""
    focus: str | None = None


@dataclass(frozen=True, config=CLOSED)
class ActivationSpec:
    """A file of activations.

    Attributes:
        file: .npy, .safetensors or .parquet, relative to the task file.
        sha256: the file's hash.
        max_norm: as in `ContextSpec`.
        labels: a table with one row per item, in the items' order; .csv or .parquet, relative to the task file.
        labels_sha256: its hash.
        label, group: its columns; items that share a group are on one side of the split and form one cluster.
        grid: height and width of the positions, for images.
    """

    HASHED: ClassVar = ("file", "sha256", "max_norm")

    file: Text
    sha256: Text
    max_norm: Annotated[Real, Field(gt=0)] | None = None
    labels: Text | None = None
    labels_sha256: Text | None = None
    label: Text = "label"
    group: Text | None = None
    grid: tuple[Whole, Whole] | None = None


# --- the kinds --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TextContent:
    """Documents cut into contexts."""

    kind: ClassVar[Kind] = "contexts"
    corpus: CorpusSpec
    contexts: ContextSpec

    def hashed(self) -> dict[str, Any]:
        """Everything that changes the content."""
        return {f.name: _hashed(getattr(self, f.name)) for f in fields(self)}


@dataclasses.dataclass(frozen=True)
class LabelContent(TextContent):
    """Labelled documents: each is one context, cut at contexts.length and padded, at most contexts.count of them."""

    kind: ClassVar[Kind] = "labels"
    labels: LabelSpec


@dataclasses.dataclass(frozen=True)
class PromptContent(TextContent):
    """Prompts of a table, or `rows` in its place: each is one context, padded, at most contexts.count of them.

    A prompt longer than contexts.length is left out and counted: truncated, it would be another prompt.
    """

    kind: ClassVar[Kind] = "prompts"
    prompts: PromptSpec = dataclasses.field(default_factory=PromptSpec)
    rows: tuple[Prompt, ...] = ()


@dataclasses.dataclass(frozen=True)
class ActivationContent:
    """A file of activations; no text and no language model."""

    kind: ClassVar[Kind] = "activations"
    activations: ActivationSpec

    def hashed(self) -> dict[str, Any]:
        """Everything that changes the content; file names without folders."""
        hashed = _hashed(self.activations)
        return {"activations": {k: Path(v).name if k in ("file", "labels") else v for k, v in hashed.items()}}


@dataclasses.dataclass(frozen=True)
class PlantedContent:
    """Samples of a planted model; no text and no language model."""

    kind: ClassVar[Kind] = "planted"
    planted: PlantedSpec
    samples: SampleSpec

    def hashed(self) -> dict[str, Any]:
        """Everything that changes the content."""
        return {"planted": asdict(self.planted), "samples": asdict(self.samples)}


@dataclasses.dataclass(frozen=True)
class WeightsContent:
    """Nothing but the SAE: for metrics of the weights alone."""

    kind: ClassVar[Kind] = "weights"

    def hashed(self) -> dict[str, Any]:
        """Nothing changes it."""
        return {"weights": {}}


Content = TextContent | LabelContent | PromptContent | ActivationContent | PlantedContent | WeightsContent
Spec = CorpusSpec | ContextSpec | LabelSpec | PromptSpec | ActivationSpec


def _hashed(spec: Spec | tuple[Prompt, ...]) -> Any:
    """The fields of a spec: those of its first version always, later ones only if they differ from their defaults.

    A new key therefore changes no hash of a task that does not use it.
    """
    if isinstance(spec, tuple):
        return [asdict(prompt) for prompt in spec]
    defaults = {f.name: f.default for f in fields(spec)}
    return {k: v for k, v in asdict(spec).items() if k in type(spec).HASHED or v != defaults[k]}


@dataclasses.dataclass(frozen=True)
class Task:
    """One reproducible measurement.

    Attributes:
        name, version: `name@version` selects the task; only numbers of one task and version are comparable.
        metrics: names of the default metrics.
        content: one of the kinds.
        title, description: for people.
        folder: base of its relative paths.
        licence: licence and origin of the text.
        settings: of metrics, by metric and name, that differ from the metric's defaults.
        builder: builder of a plugin's task that needs a tokenizer; `build` returns the built task.
    """

    name: str
    version: int
    metrics: tuple[str, ...]
    content: Content
    title: str = ""
    description: str = ""
    folder: Path = Path()
    licence: str = ""
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    builder: "TaskBuilder | None" = None

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def kind(self) -> Kind:
        return self.content.kind

    @property
    def corpus(self) -> CorpusSpec:
        """The source of the text; an empty spec for a task without text."""
        return self.content.corpus if isinstance(self.content, TextContent) else CorpusSpec()

    @property
    def contexts(self) -> ContextSpec:
        """The cutting into contexts; for activations only the norm limit, for a planted model the numbers of samples."""
        if isinstance(self.content, ActivationContent):
            return ContextSpec(0, False, 0, self.content.activations.max_norm)
        if isinstance(self.content, PlantedContent):
            return ContextSpec(self.content.samples.length, False, self.content.samples.contexts)
        if isinstance(self.content, WeightsContent):
            return ContextSpec(0, False, 0, None)
        return self.content.contexts

    @property
    def labels(self) -> LabelSpec | None:
        """The columns of labelled documents; None for the other kinds."""
        return self.content.labels if isinstance(self.content, LabelContent) else None

    def with_content(self, **parts: Any) -> "Task":
        """The task with these parts of its content (corpus, contexts, labels, prompts) replaced."""
        return dataclasses.replace(self, content=dataclasses.replace(self.content, **parts))

    def sha256(self) -> str:
        """Hash of everything that changes the numbers; excludes titles and default metrics."""
        body = {"name": self.name, "version": self.version} | self.content.hashed()
        if self.settings:
            body["settings"] = {name: dict(values) for name, values in self.settings.items()}
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def build(self, tokenizer: Any) -> "Task":
        """The task under a tokenizer: itself, unless a plugin builds it.

        Raises:
            SaebenchError: the plugin raised, or returned another task than announced.
        """
        if self.builder is None:
            return self
        try:
            built = self.builder.build(tokenizer)
        except Exception as error:  # a plugin's code
            reason = "" if isinstance(error, SaebenchError) else f"{type(error).__name__}: "
            raise SaebenchError(f"task {self.label} could not be built: {reason}{one_line(error)}") from error
        if not isinstance(built, Task) or (built.name, built.version) != (self.name, self.version):
            found = built.label if isinstance(built, Task) else type(built).__name__
            raise SaebenchError(f"task {self.label}: build() returned {clean(found)}, expected the Task {self.label}")
        return built


@runtime_checkable
class TaskBuilder(Protocol):
    """A plugin's task, found through the hook `saebench_tasks`; a `Task` is one too.

    Optional: `metrics` (a tuple of names; without it a run needs --metric), `kind` (default "prompts"), `title`, `description`.
    """

    name: str
    version: int

    def build(self, tokenizer: Any) -> Task:
        """The task under a tokenizer of transformers. Called once per run on every rank; must be deterministic."""


def announced(builder: TaskBuilder) -> Task:
    """A builder's task without its content, which needs a tokenizer."""
    if isinstance(builder, Task):
        return builder
    kind = getattr(builder, "kind", "prompts")
    contexts = ContextSpec(0, False, 0)
    contents: dict[str, Content] = {
        "contexts": TextContent(CorpusSpec(), contexts),
        "labels": LabelContent(CorpusSpec(), contexts, LabelSpec()),
        "prompts": PromptContent(CorpusSpec(), contexts),
        "activations": ActivationContent(ActivationSpec("", "")),
    }
    if kind not in contents:
        raise unknown("kind of task", str(kind), contents)
    return Task(
        builder.name, builder.version, tuple(getattr(builder, "metrics", ())), contents[kind],
        title=str(getattr(builder, "title", "")), description=str(getattr(builder, "description", "")), builder=builder,
    )  # fmt: skip


def builtin_tasks() -> dict[str, Path]:
    """The built-in task files, by name: `fidelity`, `probing/wordnet`."""
    folder = Path(str(files("saebench.tasks")))
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.toml"))}
    return {name: path for name, path in found.items() if not name.startswith("train/")}  # training runs are no tasks
