"""Default names of SAEs, from their paths."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from saebench.errors import UsageError
from saebench.loading.hf import Address
from saebench.loading.remote import is_on_hub, is_remote
from saebench.sae import SAE

# Words of folder names that do not identify an SAE: the parent's name goes in front.
_VAGUE = frozenset(
    {
        "trainer",
        "layer",
        "layers",
        "resid",
        "pre",
        "post",
        "mid",
        "block",
        "blocks",
        "ae",
        "sae",
        "final",
        "checkpoint",
        "step",
    }
    | {"hook", "mlp", "attn", "out", "model", "weights"}
)


def default_names(sources: Sequence[str | Path | SAE]) -> list[str]:
    """A name for each, with the folder above in front where several would have the same (`s0/topk`, `s1/topk`)."""
    names = [default_name(source) for source in sources]
    longer = [_longer(name, source) for name, source in zip(names, sources, strict=True)]
    told_apart = Counter(name for name, _ in set(zip(names, longer, strict=True)))
    return [long if told_apart[name] > 1 else name for name, long in zip(names, longer, strict=True)]


def _longer(name: str, source: str | Path | SAE) -> str:
    if isinstance(source, SAE):
        return name
    above = [folder.name for folder in _named_path(source).parents if folder.name]
    return next((f"{folder}-{name}" for folder in above if not name.startswith(f"{folder}-")), name)


def default_name(source: str | Path | SAE) -> str:
    """A name from the path's last folder, with its parent's in front where it alone says nothing (`trainer_0`)."""
    if isinstance(source, SAE):
        return source.metadata.architecture
    path = _named_path(source)
    is_file = path.is_file() or (is_remote(str(source)) and path.suffix in (".pt", ".pth", ".safetensors", ".npz"))
    name = path.stem if is_file else path.name
    vague = set(re.findall("[a-z]+", name.lower())) <= _VAGUE
    parent = path.parent.name
    return f"{parent}-{name}" if vague and parent else name


def _named_path(source: str | Path) -> Path:
    """The path whose parts name an SAE: of one on the hub OWNER/REPO/PATH, without the revision."""
    spec = str(source)
    if not is_remote(spec):
        path = Path(spec)
        return path.parent.resolve() / path.name if path.is_file() else path.resolve()
    try:
        address = Address.parse(spec) if is_on_hub(spec) else Address(spec.partition(":")[2])
    except UsageError:
        return Path("/", spec)
    return Path("/", address.repo, address.path)
