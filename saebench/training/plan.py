"""What to train: a TOML file, or options of the command line -> a TrainRequest."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator

from saebench.catalog import read_corpus
from saebench.errors import UsageError, one_line
from saebench.hookpoint import ACTIVATIONS
from saebench.reading import read_toml
from saebench.schema import CLOSED, Real, Text, explain
from saebench.task import ContextSpec, CorpusSpec, Task, TextContent

_Whole = Annotated[int, Strict()]
# Raised when a seed stands for other draws (1: bare seeds; 2: `saebench.streams`): run.json holds it.
STREAMS = 2
# Options of training on a language model, which activations without one do not have.
OF_A_MODEL = frozenset({"model", "hook", "revision", "data", "corpus", "context_length", "bos", "max_norm"})
# What lies beside the SAEs in a run's folder.
RUN_FILES = ("run.json", "log.jsonl", "checkpoint.safetensors", "curves.png")
# The vendored text that no task measures on.
VENDORED = CorpusSpec(
    file="data/texts.parquet",
    sha256="5a63177d411d6729bc6422afba57ef5195032cc330fd3bcf4c11a1e2e0a42df1",
    where={"split": "train"},
)


@dataclass(frozen=True)
class SaeSpec:
    """One SAE of a run.

    Attributes:
        name: of its folder below the run's.
        recipe: the name of a recipe, or of a baseline: `pca`, `random`.
        width: latents.
        seed: of its first weights.
        settings: the recipe's settings that are not its defaults.
        snapshots: shares of the steps after which the SAE as it is then is written too, to `NAME-at5` after 5 %.
    """

    name: str
    recipe: str
    width: int
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    snapshots: tuple[float, ...] = ()

    def snapshot_name(self, share: float) -> str:
        """The folder of a snapshot below the run's."""
        return f"{self.name}-at{100 * share:g}"


@dataclass(frozen=True)
class TrainRequest:
    """A training run: several SAEs, one text, one forward pass of one model.

    Attributes:
        model, revision: see `load_model`; hook: where SAEs read.
        saes: what is trained.
        corpus, folder: the text, and where its relative path begins; data: a file of one's own in its place (.parquet,
            .csv or .jsonl with a column text, or .npy of token ids [contexts, tokens]).
        tokens: activations that each SAE sees; None is all of the text, `epochs` times.
        epochs: how often the text may be read.
        batch_size: activations a step, over all processes.
        context_length, max_norm: as in a task's contexts. bos: whether contexts begin with BOS; "auto" follows the tokenizer.
        chunk_contexts: contexts whose activations are shuffled together; None fits them to memory.
        context_batch: contexts a forward pass; None is fitted to the device.
        seed: of the order of text and activations; that of weights is each SAE's own.
        checkpoint_every: steps; checkpoints lie at the next refill of the buffer.
        log_every: steps a line of the log is the mean of.
        planted, activations: a planted model, or a file of activations, in place of model, hook and text.
        dtype: of the model, device: of everything; None is the fastest, see `saebench.training.budget`.
    """

    model: str
    hook: str
    saes: tuple[SaeSpec, ...]
    corpus: CorpusSpec = VENDORED
    folder: Path | None = None
    data: Path | None = None
    revision: str | None = None
    tokens: int | None = None
    epochs: int = 1
    batch_size: int = 2048
    context_length: int = 128
    bos: bool | str = "auto"
    max_norm: float | None = 10.0
    chunk_contexts: int | None = None
    context_batch: int | None = None
    seed: int = 0
    checkpoint_every: int = 500
    log_every: int = 50
    dtype: str | None = None
    device: str | None = None
    cache: Path | None = None
    planted: str | None = None
    activations: Path | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "checkpoint_every", "log_every"):
            require_whole(name, getattr(self, name), 1)
        for name in ("tokens", "chunk_contexts", "context_batch"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), 1)
        require_whole("context_length", self.context_length, 2)
        require_whole("seed", self.seed, 0)
        if not isinstance(self.bos, bool) and self.bos != "auto":
            raise UsageError(f'bos is {self.bos!r}, expected true, false or "auto"')
        if not self.saes:
            raise UsageError("nothing to train: name a recipe, or a TOML file with [[saes]]")
        for sae in self.saes:
            _require_snapshots(sae)
        names = [name for sae in self.saes for name in (sae.name, *map(sae.snapshot_name, sae.snapshots))]
        if twins := {n for n in names if names.count(n) > 1}:
            raise UsageError(f"two SAEs are named '{min(twins)}': give name, or a setting that tells them apart")
        for sae in self.saes:
            _require_name(sae.name)
            if not isinstance(sae.recipe, str):
                raise UsageError(f"recipe of {sae.name} is {sae.recipe!r}, expected a name (saebench list recipes)")
            require_whole(f"width of {sae.name}", sae.width, 1)
            require_whole(f"seed of {sae.name}", sae.seed, 0)

    def task(self) -> Task:
        """The text as a task has it."""
        from importlib.resources import files

        contexts = ContextSpec(self.context_length, self.bos is True, 1, self.max_norm)
        folder = self.folder or Path(str(files("saebench.tasks")))
        return Task("train", 1, (), TextContent(self.corpus, contexts), folder=folder)

    def identity(self) -> dict[str, Any]:
        """Everything asked for that could change an SAE, as plain values; where it runs and what it keeps could not.

        The text itself is told apart by its hash, which the run adds.
        """
        plain = asdict(self)
        for name in ("device", "cache", "folder", "checkpoint_every", "log_every", "data", "activations"):
            del plain[name]
        if self.data is not None:
            plain["corpus"] = None
        if self.planted is None:
            del plain["planted"]  # identities of earlier runs have none
        plain["streams"] = STREAMS
        plain["saes"] = {sae.name: asdict(sae) | {"settings": dict(sae.settings)} for sae in self.saes}
        for sae in plain["saes"].values():
            del sae["snapshots"]  # what is written beside the SAE does not change it
        return plain


def require_whole(name: str, value: Any, least: int) -> None:
    """Raise UsageError unless a value is a whole number, and one that torch takes."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} is {value!r}, expected a whole number from {least}")
    if value >= 2**63:
        raise UsageError(f"{name} is {value}, expected a whole number below 2^63")


def _require_snapshots(sae: SaeSpec) -> None:
    """Raise UsageError unless snapshots are shares of a run between its first and its last step."""
    shares = sae.snapshots
    if not isinstance(shares, tuple) or not all(type(share) is float and 0 < share < 1 for share in shares):
        raise UsageError(f"snapshots of {sae.name} is {shares!r}, expected shares of the steps like [0.05, 0.4]")


def _require_name(name: Any) -> None:
    """Raise UsageError unless an SAE of this name has a folder of its own below the run's."""
    if (
        not isinstance(name, str)
        or not name
        or name.startswith(".")
        or not name.isprintable()
        or set(name) & set("/\\")
    ):
        raise UsageError(
            f"an SAE is named {name!r}, and it names a folder: expected text without / that begins with no dot"
        )
    if name in RUN_FILES:
        raise UsageError(f"an SAE is named '{name}', as a file of the run is: give it another name")


def read_requests(path: Path, seed: int = 0) -> list[TrainRequest]:
    """The runs of a TOML file: one for each hook point that it lists.

    Args:
        seed: of the weights of SAEs for which the file gives none.

    Raises:
        UsageError: it is not readable, or has a key or value that means nothing.
    """
    try:
        raw = read_toml(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not readable: {one_line(error)}") from error
    try:
        file = _File.model_validate(raw)
        given = {name: getattr(file, name) for name in file.model_fields_set - {"prefix", "hook", "saes"}}
        if "corpus" in given and "data" in given:
            raise UsageError("data and [corpus] are both set: keep one")
        if file.planted is not None:
            given |= planted_source(file.planted, file.model_fields_set)
        if "corpus" in given:
            given |= {"corpus": read_corpus(given["corpus"]), "folder": path.parent}
        if "data" in given:
            given["data"] = path.parent / given["data"]
        hook = given.pop("hook", file.hook)
        if file.planted is None and (file.model is None or hook is None):
            raise UsageError(f"{'model' if file.model is None else 'hook'} is missing (or name a planted model)")
        hooks = hook if isinstance(hook, list) else [hook]
        if not hooks or len(set(hooks)) < len(hooks):
            raise UsageError(f"hook is {hooks!r}, expected hook points that differ")
        entries = [{"seed": seed} | entry.model_dump(exclude_unset=True) for entry in file.saes]
        saes = tuple(sae for entry in entries for sae in expand(entry, file.prefix))
        return [TrainRequest(saes=saes, hook=hook, **given) for hook in hooks]
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error, _File)}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def planted_source(name: str, given: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a request that a planted model, a task's name or file, sets in place of a language model.

    Args:
        given: names of the options or keys that were set beside it.

    Raises:
        UsageError: one of them belongs to a language model.
    """
    if clash := sorted(OF_A_MODEL.intersection(given)):
        raise UsageError(f"planted and {clash[0]} are both set: leave one out")
    model = name.rpartition("/")[2].removesuffix(".toml")
    return {"planted": name, "model": model, "hook": str(ACTIVATIONS), "max_norm": None}


class _Entry(BaseModel):
    """A [[saes]] table: a list stands for several SAEs; every other key is a setting of the recipe."""

    model_config = ConfigDict(extra="allow")

    recipe: Text | list[Text]
    width: Any  # here and below: one value or a list of them, which SaeSpec checks
    seed: Any = 0
    name: Any = None
    snapshots: Any = ()


class _File(BaseModel):
    """A training run's TOML file; ranges are TrainRequest's to check."""

    model_config = CLOSED

    model: Text | None = None
    hook: Text | list[Text] | None = None
    planted: Text | None = None
    prefix: Text = ""
    saes: list[_Entry] = Field(default_factory=list)
    corpus: Any = None
    data: Text | None = None
    revision: Text | None = None
    tokens: _Whole | None = None
    epochs: _Whole = 1
    batch_size: _Whole = 1
    context_length: _Whole = 2
    bos: Any = "auto"
    max_norm: Annotated[Real, Field(gt=0)] | None = None
    chunk_contexts: _Whole | None = None
    context_batch: _Whole | None = None
    seed: _Whole = 0
    checkpoint_every: _Whole = 1
    log_every: _Whole = 1
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

    @field_validator("saes", mode="before")
    @classmethod
    def _tables(cls, value: Any) -> Any:
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise ValueError("expected tables that begin with [[saes]], in double brackets")
        return value


def expand(entry: Mapping[str, Any], prefix: str = "") -> list[SaeSpec]:
    """The SAEs of one [[saes]] table: one for each combination of the values that it lists.

    They are called by recipe and k, and by whatever else is listed: `topk-k32-seed1`.

    Raises:
        UsageError: a list is empty.
    """
    entry = dict(entry)
    if empty := [key for key, value in entry.items() if value == []]:
        raise UsageError(f"{empty[0]} is an empty list: give it a value")
    snapshots = entry.pop("snapshots", [])
    snapshots = tuple(snapshots) if isinstance(snapshots, list) else snapshots
    # A Matryoshka SAE's group sizes are one value; a list of such lists varies.
    varied = [k for k, v in entry.items() if isinstance(v, list) and (k != "groups" or isinstance(v[0], list))]
    choices: Sequence[Sequence[Any]] = [entry[k] for k in varied]
    out = []
    for values in itertools.product(*choices):
        one = entry | dict(zip(varied, values, strict=True))
        recipe, width, seed = one.pop("recipe"), one.pop("width"), one.pop("seed", 0)
        name = one.pop("name", None)
        shown = [f"{key}{dash}{one[key]}" for key, dash in (("k", ""), ("l0", "-")) if key in one]
        shown += [
            f"{key}{value}"
            for key, value in zip(varied, values, strict=True)
            if key not in ("k", "l0", "recipe", "name")
        ]
        name = name or "-".join([*filter(None, [prefix]), str(recipe), *shown])
        out.append(SaeSpec(name, recipe, width, seed, one, snapshots))
    return out


def with_options(request: TrainRequest, options: Mapping[str, Any]) -> TrainRequest:
    """A request with those options that were given (are not None) in place of its own values."""
    return replace(request, **{name: value for name, value in options.items() if value is not None})
