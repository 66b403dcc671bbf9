"""The format contract: turn checkpoint files into a canonical SAE (hook `saebench_formats`)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from saebench.errors import SaebenchError, UsageError
from saebench.sae import SAE


class CheckpointError(SaebenchError):
    """A checkpoint that cannot be read exactly. The message is one line, whatever the file's names contain."""

    def __init__(self, message: str):
        text = "".join(c if c.isprintable() else " " for c in " ".join(message.split()))
        super().__init__(text if len(text) <= 600 else text[:599] + "…")


class MissingError(CheckpointError):
    """A checkpoint without a value that an option can supply.

    Attributes:
        option: the name of that option, "k" or "scale".
    """

    def __init__(self, option: str, message: str):
        super().__init__(f"{message}: supply it with --{option}")
        self.option = option


@dataclass(frozen=True)
class LoadOptions:
    """The user's values for information that a checkpoint lacks.

    Attributes:
        k: active latents per token, for a TopK checkpoint without it.
        scale: factor on activations before the encoder, for a checkpoint that needs a factor and lacks it.
        ignore_keys: unknown config keys or tensors that the user declares harmless.
    """

    k: int | None = None
    scale: float | None = None
    ignore_keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Layout:
    """File names of a checkpoint in a hub repository: they identify it in the listing, and only they are downloaded.

    Attributes:
        weights: path of the weights relative to the checkpoint's folder, as a glob ("checkpoints/final.safetensors").
        needs: files that must exist; `{*}` stands for the part that the glob's star matches, "../" for the folder above.
        reads: optional files that the format reads.
        folder: whether the checkpoint is the folder; otherwise it is the weights file.
    """

    weights: str
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    folder: bool = True


class Format(ABC):
    """A checkpoint format: recognises its files and turns them into a canonical SAE.

    Attributes:
        name: the value of `--format`.
        files: names of the files that every checkpoint's folder has; an error lists the missing ones.
        layouts: file layouts of checkpoints on a hub.
    """

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ()
    layouts: ClassVar[tuple[Layout, ...]] = ()

    @abstractmethod
    def matches(self, path: Path) -> bool:
        """Whether `path`, a file or a folder, is of this format, by names and shapes; never raises."""

    @abstractmethod
    def load(self, path: Path, options: LoadOptions) -> SAE:
        """Load the SAE at `path` into CPU memory.

        Raises:
            CheckpointError: damaged, ambiguous or incomplete; names the file, the key, and the option that helps.
        """

    def save(self, sae: SAE, path: Path) -> None:
        """Write the SAE into the folder `path`, exactly or not at all.

        Raises:
            CheckpointError: the format cannot hold this SAE.
            UsageError: the format is read-only (the default).
        """
        raise UsageError(f"format '{self.name}' can only be read: use format saelens")
