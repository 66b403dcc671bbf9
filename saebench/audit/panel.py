"""Panels: SAEs whose order is known, at least in part, on one source of activations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from saebench.audit.degrade import degraded_copies
from saebench.errors import UsageError
from saebench.loading.checkpoint import load_sae
from saebench.sae import SAE, Metadata, TopK
from saebench.streams import generator
from saebench.training.baselines import BASELINES
from saebench.training.loop import Reporter as TrainReporter
from saebench.training.request import SaeSpec, TrainRequest
from saebench.training.run import train

Role = Literal["recipe", "degraded", "snapshot", "control", "floor"]
# The snapshot that counts as under-trained: the first at or after this share of the steps.
_UNDERTRAINED = 0.05


@dataclass(frozen=True)
class Member:
    """One SAE of a panel.

    Attributes:
        name: in records.
        sae: the SAE.
        role: recipe (one seed of a trained recipe), degraded (a copy, see `base` and `how`), snapshot (of a run during its
            training), control (half frozen, principal components), floor (random directions).
        recipe: of its training.
        level: its L0 as the recipe was asked for it; members of one level are at matched L0.
        base: of a degraded copy, the name of the original.
        how: of a degraded copy, how it was made; share: of a snapshot, the share of the steps.
    """

    name: str
    sae: SAE
    role: Role
    recipe: str = ""
    level: float = 0.0
    base: str = ""
    how: str = ""
    share: float = 1.0


@dataclass(frozen=True)
class Panel:
    """SAEs on one source.

    Attributes:
        name: of the source: a planted model, or a language model and task.
        members: the SAEs.
        options: of `saebench.run`, that name the source.
        about: facts for the card.
    """

    name: str
    members: tuple[Member, ...]
    options: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def levels(self) -> list[float]:
        """The levels at which recipes were trained, ascending."""
        return sorted({m.level for m in self.members if m.role == "recipe"})

    @property
    def middle(self) -> float:
        """The level of degraded copies and floors."""
        return self.levels[len(self.levels) // 2]

    @property
    def base(self) -> Member:
        """The SAE on which a metric's own randomness is measured."""
        return next(m for m in self.members if m.role == "recipe" and m.level == self.middle)


def planted_panel(request: TrainRequest, folder: Path, seed: int, reporter: TrainReporter) -> Panel:
    """Train the SAEs of a request on a planted model, or find them trained, and add degraded copies.

    Args:
        request: of several recipes, levels (k or l0) and seeds.
        folder: of the run.
        seed: of the degraded copies.

    Raises:
        UsageError: the folder holds another run, or the request has no recipe.
    """
    train(request, folder, reporter)
    trained = [_trained(spec, load_sae(folder / spec.name)) for spec in request.saes]
    long = [spec for spec in request.saes if spec.snapshots]
    snapshots = [m for spec in long for m in _snapshots(spec, folder)]
    panel = Panel(str(request.model), (*trained, *snapshots), {"planted": request.planted})
    if not panel.levels:
        raise UsageError(f"the panel {folder} has no trained recipe: list some in [[saes]]")
    first: dict[str, Member] = {}
    for member in trained:
        if member.role == "recipe" and member.level == panel.middle:
            first.setdefault(member.recipe, member)
    copies = [copy for member in first.values() for copy in _copies(member, seed)]
    about = {"samples": request.tokens, "saes": len(panel.members) + len(copies)}
    return replace(panel, members=(*panel.members, *copies), about=about)


def model_panel(saes: Sequence[Path], task: str, seed: int) -> Panel:
    """SAEs of one language model, one seed each, with degraded copies and a random one.

    Raises:
        UsageError: none is given, or they are of different models, hook points or widths.
    """
    if not saes:
        raise UsageError("this metric needs a language model: name trained SAEs of one with --sae PATH")
    loaded = [(path.name, load_sae(path)) for path in saes]
    for option in ("model", "hook"):
        named = {str(getattr(sae.metadata, option)): name for name, sae in loaded}
        if len(named) > 1:
            (a, one), (b, other) = list(named.items())[:2]
            raise UsageError(f"--sae {one} has {option} {a} and --sae {other} has {b}: audit SAEs of one {option}")
    members = [
        Member(name, sae, "recipe", sae.metadata.architecture, float(sae.metadata.declared_l0 or 0))
        for name, sae in loaded
    ]
    copies = [copy for member in members for copy in _copies(member, seed)]
    floor = Member("random", _random_like(members[0].sae, seed), "floor", "random", members[0].level)
    about = {"saes": len(members) + len(copies) + 1}
    name = f"{members[0].sae.metadata.model} {task}"
    return Panel(name, (*members, *copies, floor), {"task": task}, about)


def _trained(spec: SaeSpec, sae: SAE) -> Member:
    level = float(spec.settings.get("k", spec.settings.get("l0", 0)))
    frozen = spec.settings.get("frozen")
    role: Role = "floor" if spec.recipe == "random" else "control" if frozen or spec.recipe in BASELINES else "recipe"
    if spec.snapshots:
        role = "snapshot"
    return Member(spec.name, sae, role, spec.recipe, level)


def _snapshots(spec: SaeSpec, folder: Path) -> list[Member]:
    """A run's snapshots; the first at 5 % or later is also the under-trained copy of the run's end."""
    level = float(spec.settings.get("k", spec.settings.get("l0", 0)))
    early = min((s for s in spec.snapshots if s >= _UNDERTRAINED), default=None)
    return [
        Member(
            name := spec.snapshot_name(share), load_sae(folder / name), "snapshot", spec.recipe, level,
            spec.name if share == early else "", "under-trained" if share == early else "", share,
        )
        for share in sorted(spec.snapshots)
    ]  # fmt: skip


def _copies(member: Member, seed: int) -> list[Member]:
    return [
        Member(f"{member.name}-{how}", sae, "degraded", member.recipe, member.level, member.name, how)
        for how, sae in degraded_copies(member.sae, seed).items()
    ]


def _random_like(sae: SAE, seed: int) -> SAE:
    """Random unit directions, tied, of the SAE's shape, L0 and decoder bias."""
    rows = torch.randn(sae.d_sae, sae.d_out, generator=generator("audit/random", seed))
    rows = torch.nn.functional.normalize(rows, dim=1)
    k = max(1, round(sae.metadata.declared_l0 or 32))
    about = Metadata("random", model=sae.metadata.model, hook=sae.metadata.hook, declared_l0=float(k))
    return SAE(rows.T.contiguous(), rows, torch.zeros(sae.d_sae), sae.b_dec, TopK(k), True, metadata=about)
