"""Remote SAEs: `hf:OWNER/REPO/PATH` on the Hugging Face hub, `saelens:RELEASE/ID` in sae-lens's registry.

Both are downloaded and then read like local files.
"""

import hashlib
import shutil
import tempfile
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from posixpath import basename, dirname, join, normpath

from saebench.cache import user_cache
from saebench.errors import SaebenchError, UsageError, one_line, unknown
from saebench.format import Format, Layout
from saebench.loading.hf import Address, Listing, fetch_files, is_url, listing, pinned
from saebench.registry import registry

_SCHEMES = ("hf:", "saelens:")
_WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")
# As for a local folder.
_DEPTH = 2
# Families that sae-lens converts inexactly (without decoder norms in the gate, …) or that span several hook points.
_MISREAD = {"llama_scope", "llama_scope_r1_distill", "sparsify", "mntss_clt_layer_transcoder"}


@dataclass
class HubSAE:
    """A checkpoint in a repository's listing.

    Attributes:
        path: folder or file of the SAE; "" for the whole repository.
        files: paths of the files that its format reads.
        nbytes: their total size.
    """

    path: str
    files: set[str] = field(default_factory=set)
    nbytes: int = 0


def is_remote(spec: str) -> bool:
    """Whether `spec` names a remote SAE, not a local path."""
    return (spec.startswith(_SCHEMES) or is_url(spec)) and not Path(spec).exists()


def is_on_hub(spec: str) -> bool:
    """Whether `spec` names a place on the Hugging Face hub."""
    return is_remote(spec) and not spec.startswith("saelens:")


def fetch(spec: str) -> tuple[Path, str]:
    """Download a remote SAE if it is not cached; return its local path, and the spec with its commit.

    Raises:
        UsageError: the spec is malformed or names no single SAE, or a required package is not installed.
        SaebenchError: offline, no such repository, or no access to it.
    """
    if is_on_hub(spec):
        address = Address.parse(spec)
        found = listing(address, spec)
        sae = _single(spec, address, found)
        root = fetch_files(found, sorted(sae.files), spec)
        return root / sae.path, f"hf:{pinned(address, found)}"
    first, _, tail = spec.partition(":")[2].partition("/")
    if not first or not tail:
        raise UsageError(f"'{spec}': write hf:OWNER/REPO/PATH or saelens:RELEASE/ID")
    return _from_saelens(first, tail), spec


def hub_saes(spec: str) -> list[tuple[str, int]]:
    """(pinned spec, bytes) of each SAE at an address on the hub, sorted by path; only the listing is downloaded.

    Raises:
        UsageError: malformed, no such address, or no SAE there that file names identify.
        SaebenchError: see `fetch`.
    """
    address = Address.parse(spec)
    found = listing(address, spec)
    saes = _in_reach(address, found)
    if [sae.path for sae in saes] == [address.path]:
        return [(spec, saes[0].nbytes)]
    if not saes:
        raise _nothing(spec, address, found)
    return [(f"hf:{Address(address.repo, found.commit, sae.path)}", sae.nbytes) for sae in saes]


def _single(spec: str, address: Address, found: Listing) -> HubSAE:
    saes = _in_reach(address, found)
    if [sae.path for sae in saes] == [address.path]:
        return saes[0]
    raise _nothing(spec, address, found)


def _in_reach(address: Address, found: Listing) -> list[HubSAE]:
    """The SAE at the address, or those at most two folders below it."""
    if address.path in found.sizes:
        return [_named_file(address.path, found)]
    saes = find_saes(found, address.path)
    start = address.path.count("/") + 1 if address.path else 0
    return [sae for sae in saes if sae.path == address.path or sae.path.count("/") + 1 - start <= _DEPTH]


def _nothing(spec: str, address: Address, found: Listing) -> UsageError:
    """The error for an address without a single SAE; names the SAEs below it, its files, or the nearest path."""
    inside = f"{address.path}/" if address.path else ""
    files = [name for name in found.sizes if name.startswith(inside)]
    if not files:
        folders = {
            "/".join(parts[:i]) for name in found.sizes for parts in [name.split("/")] for i in range(1, len(parts))
        }
        return unknown(f"path in {address.repo}", address.path, {*folders, *found.sizes})
    saes = find_saes(found, address.path)
    if saes:
        listed = ", ".join(f"{sae.path} ({size_text(sae.nbytes)})" for sae in saes[:8])
        return UsageError(
            f"{spec} is a folder of {len(saes)} SAEs ({size_text(sum(s.nbytes for s in saes))}): name one of them or a folder "
            f"nearer to them: {listed}{' …' if len(saes) > 8 else ''}"
        )
    weights = [f"{name} ({size_text(found.sizes[name])})" for name in sorted(files) if name.endswith(_WEIGHTS)]
    listed = ", ".join(weights[:8]) + (" …" if len(weights) > 8 else "")
    holds = f"{len(files)} files, of weights: {listed}" if weights else f"{len(files)} files and no weights"
    return UsageError(f"{spec}: no format identifies an SAE by its file names ({holds}): name the weights file itself")


def find_saes(found: Listing, inside: str = "") -> list[HubSAE]:
    """The SAEs in a folder of a repository, by the names of its files, sorted by path.

    SAEs below another SAE's folder, like checkpoints of its training, do not count.
    """
    saes: dict[str, HubSAE] = {}
    folders: set[str] = set()
    taken: set[tuple[str, str]] = set()
    for format in registry().formats.values():
        for layout in layouts_of(format):
            for name in found.sizes:
                path = _matched(layout, name, found)
                if path is None or not _is_below(path, inside) or (format.name, path) in taken:
                    continue
                taken.add((format.name, path))
                saes.setdefault(path, HubSAE(path)).files |= _files(layout, name, found)
                if layout.folder:
                    folders.add(path)
    own = [sae for sae in saes.values() if not any(_is_below(sae.path, f) and sae.path != f for f in folders)]
    for sae in own:
        sae.nbytes = sum(found.sizes[name] for name in sae.files)
    return sorted(own, key=lambda sae: sae.path)


def layouts_of(format: Format) -> tuple[Layout, ...]:
    """A format's file layouts; derived from its `files` if it declares none."""
    weights = [name for name in format.files if name.endswith(_WEIGHTS)]
    given = tuple(Layout(name, tuple(n for n in format.files if n != name)) for name in weights[:1])
    return format.layouts or given


def _named_file(path: str, found: Listing) -> HubSAE:
    """The SAE of a weights file that the user names, with the files that a format reads beside it."""
    files = {path}
    for format in registry().formats.values():
        for layout in layouts_of(format):
            if _matched(layout, path, found) is not None:
                files |= _files(layout, path, found)
    return HubSAE(path, files, sum(found.sizes[name] for name in files))


def _matched(layout: Layout, name: str, found: Listing) -> str | None:
    """The path of the SAE whose weights file is `name` in this layout; None if the layout does not match."""
    depth = layout.weights.count("/") + 1
    parts = name.split("/")
    if len(parts) < depth or not fnmatchcase("/".join(parts[-depth:]), layout.weights):
        return None
    if any(beside not in found.sizes for beside in _beside(layout, layout.needs, name)):
        return None
    return "/".join(parts[:-depth]) if layout.folder else name


def _files(layout: Layout, name: str, found: Listing) -> set[str]:
    beside = _beside(layout, layout.needs + layout.reads, name)
    return {name, *(path for path in beside if path in found.sizes)}


def _beside(layout: Layout, names: tuple[str, ...], weights: str) -> list[str]:
    """Paths of the layout's other files, for this weights file."""
    folder = weights
    for _ in range(layout.weights.count("/") + 1):
        folder = dirname(folder)
    before, _, after = basename(layout.weights).partition("*")
    matched = basename(weights)[len(before) :].removesuffix(after)
    return [normpath(join(folder, name.replace("{*}", matched))) for name in names]


def _is_below(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")


def size_text(nbytes: int) -> str:
    """A size for display: 512 kB, 1.3 GB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{max(1, round(nbytes / 1000))} kB"


def _cache() -> Path:
    return user_cache() / "saebench" / "saelens"


def _refuse_misread(release: str, identity: str) -> None:
    """Refuse a family that sae-lens converts inexactly, and name the original files."""
    try:
        loaders = import_module("sae_lens.loading.pretrained_sae_loaders")
        family = loaders.get_conversion_loader_name(release)
        place = "/".join(loaders.get_repo_id_and_folder_name(release, sae_id=identity))
    except (
        Exception
    ):  # another version of sae-lens, or an unknown release, for which from_pretrained raises a clear error
        return
    if family in _MISREAD:
        raise UsageError(
            f"saelens:{release}/{identity}: sae-lens does not convert {family} checkpoints exactly; use hf:{place}"
        )


def _from_saelens(release: str, identity: str) -> Path:
    """Load with sae-lens's own loader and cache the SAE in its current format; nothing is re-implemented here."""
    target = _cache() / hashlib.sha256(f"{release}/{identity}".encode()).hexdigest()[:24]
    if (target / "cfg.json").is_file():
        return target
    try:
        theirs_module = import_module("sae_lens")
    except ImportError as error:
        raise UsageError("saelens: needs the package sae-lens: pip install sae-lens") from error
    _refuse_misread(release, identity)
    try:
        theirs = theirs_module.SAE.from_pretrained(release, identity, device="cpu")
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=target.parent))
        theirs.save_model(fresh)
    except Exception as error:  # of sae-lens, the hub or the network
        raise SaebenchError(
            f"saelens:{release}/{identity} could not be loaded: {one_line(error, 160)}; check the names and the network"
        ) from error
    try:
        fresh.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(fresh, ignore_errors=True)
    return target
