"""The training request: its options and the keys of its TOML file, each declared once, and the SAEs that it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saebench.errors import UsageError
from saebench.options import option

if TYPE_CHECKING:
    from saebench.task import CorpusSpec, Task

# Raised when a seed stands for other draws (1: bare seeds; 2: `saebench.streams`): run.json holds it.
STREAMS = 2
# The files beside the SAEs in a run's folder.
RUN_FILES = ("run.json", "log.jsonl", "checkpoint.safetensors", "curves.png")


def vendored() -> CorpusSpec:
    """The vendored text that no task measures on."""
    from saebench.task import CorpusSpec

    return CorpusSpec(
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


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """A training run: several SAEs, one text, one forward pass of one model.

    The fields made by `option` are options of `saebench train`, keys of its TOML file, or both.

    Attributes:
        saes: the SAEs; in a file, one or more for each [[saes]] table.
        corpus: the text, as a task's [corpus] names it.
        folder: where the relative path in `corpus` begins.
    """

    model: str = option(key=True, help="Alias, hub id, folder or .gguf.")
    hook: str = option(key=True, help="Hook point to train at, e.g. blocks.15.hook_resid_post; in a file also a list.")
    saes: tuple[SaeSpec, ...]
    corpus: CorpusSpec = field(default_factory=vendored)
    folder: Path | None = None
    planted: str | None = option(
        None,
        key=True,
        metavar="NAME",
        help="Train on a planted model (planted-1k), whose features are known, in place of model, hook point and text.",
    )
    activations: Path | None = option(
        None,
        metavar="FILE",
        help="Train on these activations, [N, d] or [items, positions, d] (.npy, .safetensors, .parquet).",
    )
    tokens: int | None = option(
        None, key=True, help="Activations that each SAE sees. Default: all of the text, --epochs times."
    )
    epochs: int = option(1, key=True, help="How often the text may be read.")
    batch_size: int = option(2048, key=True, help="Activations a step, over all processes.")
    data: Path | None = option(
        None,
        key=True,
        metavar="FILE",
        help="Your own text: .parquet, .csv or .jsonl (column text), .txt or a folder of .txt, or token ids .npy. "
        "Default: saebench's training text.",
    )
    revision: str | None = option(None, key=True, flag="", help="Commit or branch of a hub model.")
    context_length: int = option(128, key=True, help="Tokens a context.")
    bos: bool | str = option(
        "auto", key=True, flag="--no-bos", help="Contexts without BOS. Default: BOS if the tokenizer has one."
    )
    max_norm: float | None = option(
        10.0, key=True, flag="", help="Leave out tokens whose activation is longer than so many median norms."
    )
    seed: int = option(
        0, key=True, help="Of the order of text, and of weights for which a file's [[saes]] sets no seed."
    )
    cache: Path | None = option(
        None, metavar="DIR", help="Keep activations there for other runs over the same text with the same --seed."
    )
    chunk_contexts: int | None = option(
        None, key=True, flag="", help="Contexts whose activations are shuffled together. Default: fitted to memory."
    )
    context_batch: int | None = option(
        None, key=True, flag="", help="Contexts a forward pass. Default: fitted to the device."
    )
    checkpoint_every: int = option(
        500, key=True, flag="", help="Steps between checkpoints, which wait for the buffer's next refill."
    )
    log_every: int = option(50, key=True, flag="", help="Steps that a line of the log averages.")
    device: str | None = option(None, help="cpu, cuda, cuda:1 … Default: a GPU if there is one.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, key=True, help="Of the model. Default: the fastest on the device."
    )

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
            raise UsageError(f"two SAEs are named '{min(twins)}': give each a name, or settings that differ")
        for sae in self.saes:
            _require_name(sae.name)
            if not isinstance(sae.recipe, str):
                raise UsageError(f"recipe of {sae.name} is {sae.recipe!r}, expected a name (saebench list recipes)")
            require_whole(f"width of {sae.name}", sae.width, 1)
            require_whole(f"seed of {sae.name}", sae.seed, 0)

    def task(self) -> Task:
        """The text as a task."""
        from importlib.resources import files

        from saebench.task import ContextSpec, Task, TextContent

        contexts = ContextSpec(self.context_length, self.bos is True, 1, self.max_norm)
        folder = self.folder or Path(str(files("saebench.tasks")))
        return Task("train", 1, (), TextContent(self.corpus, contexts), folder=folder)

    def identity(self) -> dict[str, Any]:
        """All values that could change an SAE, as plain values; the device and the files that a run keeps cannot.

        The run adds the hash of the text.
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
            del sae["snapshots"]  # files beside the SAE do not change it
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
