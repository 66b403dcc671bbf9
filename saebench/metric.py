"""The metric contract: what a metric is given, what it gives back, and nothing about how intervals are made.

A metric sees the scored contexts batch by batch, keeps sums, and hands back one row per unit (`units`) and the scores that
are declared over their columns (`scores`). From those the harness makes intervals, paired differences and ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saebench.errors import SaebenchError
from saebench.judge import Calls, Session
from saebench.labels import Labels
from saebench.lens import Lens
from saebench.sae import SAE, Latents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


T = TypeVar("T")
Direction = Literal["higher", "lower"]

# What a metric may need of a batch. Without `token_losses` in any metric's needs, the model stops at the hook point.
# `labels` exist in tasks of labelled documents only, `token_losses` in the others only.
NEEDS = frozenset({"x", "x_read", "latents", "reconstruction", "token_losses", "labels"})


@dataclass(frozen=True)
class TokenLosses:
    """Next-token losses in nats, float32, [B, T], with x left alone, replaced by x̂, by 0 and by the calibration mean.

    Attributes:
        predicted: [B, T] scored positions that have a next token; the four cross-entropies mean something there only.
        kl: KL(clean ‖ spliced) of the whole next-token distribution, at every scored position.
    """

    clean: Tensor
    spliced: Tensor
    zero: Tensor
    mean: Tensor
    kl: Tensor
    predicted: Tensor


@dataclass(frozen=True)
class Batch:
    """B contexts of T tokens. Every tensor lies on the model's device.

    Attributes:
        token_ids: [B, T] int64
        special: [B, T] bool, BOS and other special tokens: never scored, never spliced
        scored: [B, T] bool, the tokens that count. Values elsewhere exist and must not enter a score
        context_id: [B] int64 (numpy), the context's number in the task
        document_id: [B] int64 (numpy), the document it was cut from: the cluster of every interval
        position: [T] int64, the place in the context
        calibration_mean: [d_out] float32, the mean activation of the calibration contexts
        x: [B, T, d_out] float32, activations at the place that the SAE reconstructs (a transcoder's output)
        latents: B·T rows, shape (B, T, d_sae)
        reconstruction: [B, T, d_out] float32, x̂
        token_losses: see TokenLosses
        x_read: [B, T, d_in] float32, activations that the SAE reads: the same as x but for a transcoder
        read_mean: [d_in] float32, their mean over the calibration sample
        labels: of the B documents, in a task of labelled documents
        seed: of the run, for what is sampled
    """

    token_ids: Tensor
    special: Tensor
    scored: Tensor
    context_id: np.ndarray
    document_id: np.ndarray
    position: Tensor
    calibration_mean: Tensor | None = None
    _x: Tensor | None = None
    _latents: Latents | None = None
    _reconstruction: Tensor | None = None
    _token_losses: TokenLosses | None = None
    _x_read: Tensor | None = None
    read_mean: Tensor | None = None
    _labels: Labels | None = None
    seed: int = 0

    @property
    def x(self) -> Tensor:
        return _given(self._x, "x")

    @property
    def latents(self) -> Latents:
        return _given(self._latents, "latents")

    @property
    def reconstruction(self) -> Tensor:
        return _given(self._reconstruction, "reconstruction")

    @property
    def token_losses(self) -> TokenLosses:
        return _given(self._token_losses, "token_losses")

    @property
    def x_read(self) -> Tensor:
        return _given(self._x_read, "x_read")

    @property
    def labels(self) -> Labels:
        return _given(self._labels, "labels")

    def per_context(self, values: Tensor, mask: Tensor | None = None) -> np.ndarray:
        """Sum a per-token quantity [B, T] over the scored tokens (or over `mask`) of each context: float64 [B]."""
        mask = self.scored if mask is None else mask
        return torch.where(mask, values, 0).sum(-1, dtype=torch.float64).cpu().numpy()


def _given(value: T | None, name: str) -> T:
    if value is None:
        raise AttributeError(f"this batch carries no {name}: add '{name}' to the metric's `needs`")
    return value


@dataclass(frozen=True)
class Score:
    """One number of a metric, declared rather than computed where that is possible.

    Make it with `Score.ratio` (the harness computes value and interval from the units) or `Score.plain`.

    Attributes:
        key: its name within the metric.
        unit: what it is measured in ("nats/token", "fraction", …).
        direction: whether higher or lower is better, or None.
        at: the place on a curve (tokens seen, k, bin edge) for scores that are points of one.
        num, den: columns of the units: value = offset + scale · Σnum / Σden.
        count: the column of the units whose sum is n; None counts the rows.
        within: the least and the most that a score with columns can be, if there are: an accuracy lies in [0, 1], the gap between
            two in [-1, 1], and so does the truth. An interval is cut there.
        value, n: for a plain score.
        no_interval: why a plain score has no interval.
        low, high: the interval of a plain score that brings its own.
    """

    key: str
    unit: str = ""
    direction: Direction | None = None
    at: float | None = None
    num: str | None = None
    den: str | None = None
    offset: float = 0.0
    scale: float = 1.0
    count: str | None = None
    within: tuple[float, float] | None = None
    value: float | None = None
    n: int | None = None
    no_interval: str | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def ratio(
        cls,
        key: str,
        num: str,
        den: str,
        *,
        offset: float = 0.0,
        scale: float = 1.0,
        unit: str = "",
        direction: Direction | None = None,
        count: str | None = None,
        within: tuple[float, float] | None = None,
        at: float | None = None,
    ) -> "Score":
        """offset + scale · Σnum/Σden over the rows of `units()`: interval, paired difference and rank come by themselves."""
        return cls(key, unit, direction, at, num, den, offset, scale, count, within)

    @classmethod
    def plain(
        cls,
        key: str,
        value: float,
        *,
        n: int,
        no_interval: str,
        unit: str = "",
        direction: Direction | None = None,
        at: float | None = None,
    ) -> "Score":
        """A number that cannot be resampled; `no_interval` says why."""
        return cls(key, unit, direction, at, value=value, n=n, no_interval=no_interval)

    @classmethod
    def with_interval(
        cls,
        key: str,
        value: float,
        low: float,
        high: float,
        *,
        n: int,
        unit: str = "",
        direction: Direction | None = None,
        at: float | None = None,
    ) -> "Score":
        """A number that is no ratio of sums and whose 95 % interval the metric makes itself (an AUROC); it is not paired."""
        return cls(key, unit, direction, at, value=value, n=n, low=low, high=high)


@dataclass(frozen=True)
class Env:
    """What a metric may use when the pass is over.

    Attributes:
        sae: the SAE it measured.
        tokenizer: of the language model; None in a run on token ids without one.
        seed: of the run.
        cache: a folder for what is worth keeping between runs.
        judge: answers the requests of a metric that says in `asks` that it has some; None for the others.
        lens: the language model at the SAE's hook point, for experiments after the pass; None in a run without a model.
    """

    sae: SAE
    tokenizer: "PreTrainedTokenizerBase | None" = None
    seed: int = 0
    cache: Path | None = None
    judge: Session | None = None
    lens: Lens | None = None

    def require_lens(self, metric: str) -> Lens:
        """The lens.

        Raises:
            SaebenchError: the run has no language model.
        """
        if self.lens is None:
            raise SaebenchError(
                f"metric '{metric}' acts on a language model, and this run has none: run a text task with --model"
            )
        return self.lens


class Metric:
    """Base class of every metric; one instance per SAE.

    Class attributes:
        name: how it is asked for and recorded.
        version: raised whenever a number would change.
        needs: a subset of `NEEDS`. Empty: the metric reads weights only and gets no batches.
        asks: the prompts (name@version) that it puts to a judge. Empty: it asks none, and `env.judge` is None.
        about: what a score says, in a few words, by its key, as tables show it; `{n:,}` in it is the score's n. A key that is
            not there shows its unit.
        headlines: the keys that people see first. Empty: all scores that have a direction.
        paired: whether a unit is the same thing for every SAE (a context, a document). Where it is not (an SAE's own latents),
            differences between SAEs are made of independent samples.

    State is whatever instance attributes `update` changes: numbers, numpy arrays, torch tensors and lists of plain
    dictionaries are saved and restored by the harness (attributes that begin with an underscore are not).
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()
    asks: ClassVar[tuple[str, ...]] = ()
    about: ClassVar[Mapping[str, str]] = {}
    headlines: ClassVar[tuple[str, ...]] = ()
    paired: ClassVar[bool] = True

    def __init__(self, sae: SAE) -> None:
        """Prepare to measure `sae`; reads shapes, does no work."""

    def update(self, batch: Batch) -> None:
        """Add one batch of whole contexts. Nothing may depend on how contexts were split into batches."""

    def merge(self, other: Self) -> None:
        """Add what another instance saw on other contexts, as if this one had seen them."""
        raise TypeError(f"metric '{self.name}' keeps state and must define merge")

    def units(self) -> pd.DataFrame:
        """One row per unit: `unit_id`, `cluster_id` (the document) and the columns that scores are made of."""
        return pd.DataFrame({"unit_id": [], "cluster_id": []})

    def scores(self, env: Env) -> list[Score]:
        """The scores, declared over columns of `units()` or computed."""
        raise NotImplementedError(f"metric '{self.name}' must define scores")

    @classmethod
    def judge_calls(cls, d_sae: int) -> list[Calls]:
        """The calls that one SAE of so many latents costs at most, for `--dry-run`; of metrics that ask a judge."""
        return []

    def details(self) -> dict[str, Any]:
        """What else belongs into the record, as plain values: which latents were chosen, what was fitted. Asked for last."""
        return {}

    def files(self) -> dict[str, bytes]:
        """What is worth keeping beside the record, by suffix: `html` is written to RECORD.METRIC.html."""
        return {}


@dataclass
class Rows:
    """Growing per-context rows: the units of a metric that sums over contexts. Plain columns of float64.

    Use as an attribute of a metric: `self.rows = Rows()`, then `self.rows.add(batch, n=…, sse=…)` in `update`.
    """

    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, batch: Batch, **sums: np.ndarray) -> None:
        """Append one row per context of `batch`; each keyword is a column, [B]."""
        rows: Mapping[str, np.ndarray] = {
            "unit_id": batch.context_id,
            "cluster_id": batch.document_id,
            **sums,
        }
        for name, values in rows.items():
            self.columns.setdefault(name, []).append(np.asarray(values))

    def merge(self, other: "Rows") -> None:
        for name, parts in other.columns.items():
            self.columns.setdefault(name, []).extend(parts)

    def frame(self) -> pd.DataFrame:
        """The rows in the order of their unit_id, whatever order they came in."""
        frame = pd.DataFrame({name: np.concatenate(parts) for name, parts in self.columns.items()})
        if frame.empty:
            frame = pd.DataFrame(columns=["unit_id", "cluster_id"])
        return frame.sort_values("unit_id", ignore_index=True)


def get_state(metric: Metric) -> dict[str, Any]:
    """A metric's state as plain values and arrays: what is saved between contexts and sent between ranks."""
    state: dict[str, Any] = {}
    for name, value in vars(metric).items():
        if name.startswith("_"):
            continue
        if isinstance(value, Rows):
            for column, array in value.frame().items():
                state[f"{name}/{column}"] = array.to_numpy()
        elif isinstance(value, Tensor):
            state[name] = value.detach().cpu().numpy()
        elif isinstance(value, dict) and not all(isinstance(k, str) for k in value):
            raise TypeError(
                f"metric '{metric.name}' keeps a dict in '{name}' whose keys are not text, which a saved state loses"
            )
        elif isinstance(value, np.generic):
            state[name] = value.item()
        elif isinstance(value, np.ndarray | int | float | str | bool | list | dict) or value is None:
            state[name] = value
        else:
            raise TypeError(
                f"metric '{metric.name}' keeps a {type(value).__name__} in '{name}', which cannot be saved: "
                "use numbers, arrays, tensors, Rows or lists of plain values, or begin its name with '_'"
            )
    return state


def set_state(metric: Metric, state: Mapping[str, Any]) -> None:
    """Put back what `get_state` took."""
    rows: dict[str, Rows] = {}
    for name, value in state.items():
        owner, _, column = name.partition("/")
        if column:
            rows.setdefault(owner, Rows()).columns[column] = [np.asarray(value)]
            continue
        now = getattr(metric, name, None)
        setattr(
            metric,
            name,
            torch.as_tensor(value).to(now.device, now.dtype) if isinstance(now, Tensor) else value,
        )
    for owner, value in rows.items():
        setattr(metric, owner, value)
