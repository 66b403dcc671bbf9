"""The format contract: turn checkpoint files into a canonical SAE (hook `saebench_formats`)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from saebench.errors import SaebenchError, UsageError
from saebench.sae import SAE


class CheckpointError(SaebenchError):
    """A checkpoint that cannot be read exactly; always one line, whatever names a file put into it."""

    def __init__(self, message: str):
        text = "".join(c if c.isprintable() else " " for c in " ".join(message.split()))
        super().__init__(text if len(text) <= 600 else text[:599] + "…")


class MissingError(CheckpointError):
    """A checkpoint that lacks something a user can supply.

    Attributes:
        option: the name of what supplies it, "k" or "scale".
    """

    def __init__(self, option: str, message: str):
        super().__init__(f"{message}: supply it with --{option}")
        self.option = option


@dataclass(frozen=True)
class LoadOptions:
    """What the user supplies for what a checkpoint does not say.

    Attributes:
        k: active latents per token, for a TopK checkpoint that does not hold it.
        scale: what activations are multiplied by before the encoder, for a checkpoint that needs and does not hold it.
        ignore_keys: config keys or tensors the format does not know and the user vouches for.
    """

    k: int | None = None
    scale: float | None = None
    ignore_keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Layout:
    """File names of a checkpoint: they find it in a hub repository's listing, and only these files are downloaded.

    Attributes:
        weights: path of the weights below the checkpoint's folder, as a glob ("checkpoints/final.safetensors").
        needs: files that must exist; `{*}` stands for the part that the glob's star matches, "../" for the folder above.
        reads: files that the format reads where they exist.
        folder: whether the checkpoint is the folder; otherwise it is the file of weights.
    """

    weights: str
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    folder: bool = True


class Format(ABC):
    """A checkpoint format: recognises its files and turns them into a canonical SAE.

    Attributes:
        name: the value of `--format`.
        files: the names that a checkpoint's folder always has together, where there are such: what an error lists
            where one of them is missing.
        layouts: file names, for checkpoints on a hub.
    """

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ()
    layouts: ClassVar[tuple[Layout, ...]] = ()

    @abstractmethod
    def matches(self, path: Path) -> bool:
        """Whether the files at `path` (a file or a folder) are of this format; looks at names and shapes, never raises."""

    @abstractmethod
    def load(self, path: Path, options: LoadOptions) -> SAE:
        """The SAE at `path`, in CPU memory.

        Raises:
            CheckpointError: damaged, ambiguous or incomplete; says which file and key, and which option would help.
        """

    def save(self, sae: SAE, path: Path) -> None:
        """Write the SAE into the folder `path`; what the format cannot say exactly is an error.

        Raises:
            CheckpointError: the format cannot hold this SAE.
            UsageError: the format is read-only (the default).
        """
        raise UsageError(f"format '{self.name}' can only be read; write --format saelens")
