"""A request: what the user asks `saebench run` for, and whether it makes sense."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from saebench.corpus import open_tokens
from saebench.errors import UsageError
from saebench.judging.ledger import Mode
from saebench.sae import SAE


@dataclass(frozen=True)
class Request:
    """What the user asked for; the fields are the options of `saebench run`."""

    saes: Sequence[str | Path | SAE]
    names: Sequence[str] = ()
    model: str | None = None
    revision: str | None = None
    hook: str | None = None
    task: str = "fidelity"
    tokens: str | Path | None = None
    metrics: Sequence[str] = ()
    results: Path = Path("results")
    batch_size: int | None = None
    device: str | None = None
    dtype: str | None = None
    limit: int | None = None
    seed: int = 0
    force: bool = False
    strict: bool = False
    format: str | None = None
    k: int | None = None
    scale: float | None = None
    ignore_keys: Collection[str] = ()
    data: str | Path | None = None
    text_column: str = "text"
    label_column: str = "label"
    group_column: str | None = None
    judge: str | None = None
    judge_url: str | None = None
    judge_cache: str | Path | None = None
    judge_batch: bool = False
    judge_thinking: int = 0
    replay: Mode = "record"
    max_cost: float | None = None


def check_request(request: Request) -> None:
    """Raise UsageError for what makes no sense, before anything is loaded."""
    if request.results.exists() and not request.results.is_dir():
        raise UsageError(f"--results {request.results} is a file: name a folder")
    if request.device is not None:
        try:
            known = torch.device(request.device).type != "cuda" or torch.cuda.is_available()
        except RuntimeError:
            known = False
        if not known:
            raise UsageError(f"--device {request.device} is not on this machine: cpu is, or leave it out")
    if request.max_cost is not None and not 0 <= request.max_cost < math.inf:
        raise UsageError(f"--max-cost must be an amount of US dollars, not {request.max_cost}")
    for name, value in (("--limit", request.limit), ("--batch-size", request.batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be 1 or more, not {value}")
    if request.tokens is not None:
        open_tokens(Path(request.tokens))
