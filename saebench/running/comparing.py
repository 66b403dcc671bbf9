"""Compare several SAEs: load them, capture common activations, run a comparison plugin, write its record."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saebench.cache import cache_folder
from saebench.catalog import load_task
from saebench.comparison import Compared, Comparison, Shared
from saebench.corpus import task_contexts
from saebench.errors import UsageError
from saebench.forward.calibration import calibrate
from saebench.hookpoint import HookPoint
from saebench.loading.checkpoint import load_sae
from saebench.models import default_device, default_dtype, load_model
from saebench.presentation import Presentation
from saebench.registry import registry
from saebench.results import Record, add_to_record, fingerprint
from saebench.running.names import default_names
from saebench.running.provenance import provenance
from saebench.running.scoring import score_rows
from saebench.sae import SAE
from saebench.subject import Subject

# The text whose activations all SAEs read: the first contexts of this task.
_TASK = "fidelity"


@dataclass(frozen=True)
class ComparisonRequest:
    """Everything that `saebench stability` is given.

    Attributes:
        comparison: the plugin's name.
        saes: paths of two or more checkpoints.
        model, hook: override the checkpoints' own.
        contexts: how many contexts of text to read; 0 compares the weights alone.
        results: the records' folder.
        seed: of the comparison's own randomness.
    """

    comparison: str
    saes: Sequence[str]
    model: str | None = None
    hook: str | None = None
    contexts: int = 64
    results: Path = Path("results")
    seed: int = 0


def compare_saes(request: ComparisonRequest) -> Record:
    """Run the comparison and write its record, which names every SAE.

    Raises:
        UsageError: fewer than two SAEs, of different models or hook points, or a path given twice.
        SaebenchError: a checkpoint or the model cannot be read.
    """
    plugin: Comparison = registry().get("comparisons", request.comparison)
    if len(request.saes) < 2:
        raise UsageError(f"{plugin.name} compares two or more SAEs, not {len(request.saes)}: name another one")
    if request.contexts < 0:
        raise UsageError(f"--contexts must be 0 or more, not {request.contexts}")
    start = time.perf_counter()
    names = default_names(request.saes)
    saes = [load_sae(path, hook=request.hook, model=request.model) for path in request.saes]
    _refuse_twins(names, saes)
    model = _common("model", names, [sae.metadata.model for sae in saes])
    hook = _common("hook", names, [sae.metadata.hook for sae in saes])
    x, subject = _activations(request, model, hook)
    if x is not None and any(sae.d_in != x.shape[1] for sae in saes):
        wrong = next(sae for sae in saes if sae.d_in != x.shape[1])
        raise UsageError(
            f"an SAE reads {wrong.d_in} numbers per token, and {hook} of {model} has {x.shape[1]}: check --model and --hook"
        )
    compared = plugin.compare(saes, Shared(x, request.seed))
    record = _record(request, plugin, names, saes, model, hook, subject, x)
    run = {
        "metrics": [plugin.name],
        "provenance": provenance(torch.device("cpu")),
        "timings": {"wall": round(time.perf_counter() - start, 3)},
    }
    return _write(request, record, plugin, compared, run)


def _refuse_twins(names: Sequence[str], saes: Sequence[SAE]) -> None:
    seen: dict[str, str] = {}
    for name, sae in zip(names, saes, strict=True):
        if other := seen.get(sae.sha256()):
            raise UsageError(f"{name} is the same SAE as {other}: name each once")
        seen[sae.sha256()] = name


def _common(option: str, names: Sequence[str], values: Sequence[str | None]) -> str:
    """The model or hook point that all SAEs share.

    Raises:
        UsageError: they differ, or none names it.
    """
    known = {value: name for name, value in zip(names, values, strict=True) if value is not None}
    if len(known) > 1:
        (a, first), (b, second) = list(known.items())[:2]
        raise UsageError(
            f"{first} has {option} {a} and {second} has {b}: compare SAEs of one, or override with --{option}"
        )
    if not known:
        raise UsageError(f"no checkpoint names its {option}: pass --{option}")
    return next(iter(known))


def _activations(request: ComparisonRequest, model: str, hook: str) -> tuple[Tensor | None, Subject | None]:
    """[N, d_in] activations of scored tokens on the CPU, and the model they come from."""
    if request.contexts == 0:
        return None, None
    device = default_device()
    subject = Subject(load_model(model, device=device, dtype=default_dtype(device)))
    place = HookPoint.parse(hook)
    subject.require(place)
    task = load_task(_TASK)
    contexts = task_contexts(task, subject.loaded.tokenizer).head(request.contexts)
    calibration = calibrate(subject, contexts, place, place, task.contexts.max_norm, 8, cache_folder())
    kept = []
    for rows in torch.arange(len(contexts)).split(8):
        ids = torch.from_numpy(contexts.token_ids[rows.numpy()]).to(device)
        x, _ = subject.capture(ids, place, place)
        special = torch.from_numpy(contexts.special[rows.numpy()]).to(device)
        kept.append(x[calibration.scored(x, special)].float().cpu())
    return torch.cat(kept), subject


def _record(
    request: ComparisonRequest, plugin: Comparison, names: Sequence[str], saes: Sequence[SAE], model: str, hook: str,
    subject: Subject | None, x: Tensor | None,
) -> Record:  # fmt: skip
    """A record without scores; its SAE stands for all of them, in the order of their hashes."""
    members = sorted(
        ({"name": name, "sha256": sae.sha256(), "architecture": sae.metadata.architecture, "d_sae": sae.d_sae}
         for name, sae in zip(names, saes, strict=True)),
        key=lambda member: str(member["sha256"]),
    )  # fmt: skip
    together = hashlib.sha256("|".join(str(m["sha256"]) for m in members).encode()).hexdigest()
    loaded = subject.loaded if subject else None
    record = Record(
        fingerprint="",
        partial=False,
        sae={"name": " + ".join(names)[:200], "sha256": together, "architecture": "comparison", "d_in": saes[0].d_in,
             "d_sae": saes[0].d_sae, "warnings": [], "names": list(names), "saes": members},
        model={"id": loaded.id if loaded else model, "sha256": loaded.sha256 if loaded else "weights only",
               "revision": loaded.revision if loaded else None},
        hook=hook,
        hook_out=hook,
        task={"name": plugin.name, "version": plugin.version, "sha256": load_task(_TASK).sha256()},
        corpus={"fingerprint": "none" if x is None else hashlib.sha256(x.numpy().tobytes()).hexdigest(),
                "contexts": request.contexts, "documents": 0, "tokens": None},
        settings={"model_dtype": subject.dtype if subject else "none", "sae_dtype": "float32", "seed": request.seed,
                  "limit": None, "max_norm": None},
    )  # fmt: skip
    record.fingerprint = fingerprint(record.identity)
    return record


def _write(
    request: ComparisonRequest, record: Record, plugin: Comparison, compared: Compared, run: dict[str, Any]
) -> Record:
    rows, undefined = score_rows(plugin, compared.scores, compared.units)
    entry = {
        "version": plugin.version,
        "units": None,
        "paired": False,
        "details": compared.details,
        "presentation": Presentation(about=plugin.about).to_json(),
    }
    found = replace(record, metrics={plugin.name: entry}, scores=rows, errors=undefined, runs=[run])
    return add_to_record(request.results, found, [plugin.name], {plugin.name: compared.units})
