"""The metric contract: the class `Metric`, its scores and its environment; intervals are the harness's.

A metric reads the contexts batch by batch and keeps sums. It returns one row per unit (`units`), and scores declared over the
columns of these rows (`scores`). From both the harness computes intervals, paired differences and ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saebench.batch import NEEDS as NEEDS
from saebench.batch import Batch as Batch
from saebench.batch import Edit as Edit
from saebench.batch import Edited as Edited
from saebench.batch import TokenLosses as TokenLosses
from saebench.batch import Truth as Truth
from saebench.judge import Calls, Session
from saebench.lens import Lens, LensWork
from saebench.presentation import Axis, Figure
from saebench.sae import SAE
from saebench.stats import Kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Score:
    """One number of a metric, declared over columns of the units where possible.

    Make it with `Score.ratio` or `Score.auroc`, whose value and interval the harness computes from the units, or with
    `Score.plain` or `Score.with_interval`.

    Attributes:
        key: its name within the metric.
        unit: of measurement ("nats/token", "fraction", …).
        direction: whether higher or lower is better, or None.
        at: the abscissa of a score that is a point of a curve (tokens seen, k, bin edge); else None.
        num, den: columns of the units: value = offset + scale · Σnum / Σden. For an area under the ROC curve, the decision
            column (`num`, or `num_0`, `num_1`, … for more than two classes) and the class numbers.
        count: the column of the units whose sum is n; None counts the rows.
        within: the smallest and the largest possible value of a score with columns: [0, 1] for an accuracy, [-1, 1] for the gap
            between two. Intervals end there, and a value beyond is an error.
        value, n: for a plain score.
        no_interval: the reason why a plain score has no interval.
        low, high: the interval that the metric computed for a plain score.
        kind: of a score with columns: a ratio of sums, or an area under the ROC curve.
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
    kind: Kind = "ratio"

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
        """offset + scale · Σnum/Σden over the rows of `units()`; the harness makes interval, paired difference and rank."""
        return cls(key, unit, direction, at, num, den, offset, scale, count, within)

    @classmethod
    def auroc(
        cls,
        key: str,
        decision: str,
        label: str,
        *,
        unit: str = "area",
        direction: Direction | None = "higher",
        at: float | None = None,
    ) -> "Score":
        """The area under the ROC curve over the rows of `units()`; the harness makes interval, paired difference and rank.

        Args:
            decision: the column of decision values; with C > 2 classes, the columns are `decision_0` … `decision_C-1` and the
                score is the mean of the one-against-the-rest areas.
            label: the column of class numbers; with two classes 1 is positive.
        """
        return cls(key, unit, direction, at, decision, label, within=(0, 1), kind="area")

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
        """A number without an interval; `no_interval` is the reason."""
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
        """A number with a 95 % interval that the metric computed; differences between SAEs are not paired."""
        return cls(key, unit, direction, at, value=value, n=n, low=low, high=high)


@dataclass(frozen=True)
class Env:
    """The environment of `Metric.scores`, after the pass.

    Attributes:
        sae: the measured SAE.
        tokenizer: of the language model; None in a run on token ids without one.
        seed: of the run, for a metric that is `seeded`; 0 for the others.
        cache: a folder for files kept between runs.
        judge: answers the requests of a metric that declares some in `asks`; None for the others.
        lens: the language model at the SAE's hook points, for a metric that declares `uses_lens`; None for the others.
    """

    sae: SAE
    tokenizer: "PreTrainedTokenizerBase | None" = None
    seed: int = 0
    cache: Path | None = None
    judge: Session | None = None
    lens: Lens | None = None


class Metric:
    """Base class of every metric; one instance per SAE.

    Class attributes:
        name: for `--metric` and records.
        version: raised whenever a number changes.
        needs: a subset of `NEEDS`. Empty: the metric reads weights only and gets no batches.
        optional: the needed parts that a batch may lack (`token_losses` where no language model runs): see `Batch.has`.
        asks: the prompts (name@version) that the metric sends to a judge. Empty: it asks none, and `env.judge` is None.
        about: a caption for each key, as tables show it; `{n:,}` in it is the score's n. A key without one shows its unit.
        headlines: the keys that tables show first. Empty: all scores that have a direction.
        smallest: by key, the smallest difference between two SAEs that matters, in the score's unit: "better" needs
            that much. Twice the standard deviation over training seeds is a good choice. A missing key has none.
        figures: plots of the scores, beside the default plot of each headline over the sparsity axis.
        sparsity: the score that serves boards as the sparsity axis, if the metric has one.
        truth: the score that `saebench audit` holds other metrics against, for a metric that reads planted features.
        paired: whether all SAEs share the units (contexts, documents). Where each SAE has its own (its latents), samples are
            independent and differences are not paired.
        edit_rows: rows per context that `edits` returns, at most; each is a further stream above the hook point. 0: no edits.
        uses_lens: whether `scores` runs the language model (`env.lens`).
        seeded: whether a number depends on the run's seed. `batch.seed` and `env.seed` are 0 for the others,
            and `--seed` makes no second record of them.
        settings: a frozen dataclass with a default for every field, or an instance of one. A run's `--set NAME.field=value` and a
            task's [settings.NAME] replace the class attribute; values other than the defaults are part of the record's
            identity. Annotate fields with plain types: int, float, bool, str, Path, Literal, tuples of them.

    The instance attributes that `update` changes are the state. The harness saves and restores numbers, numpy arrays, torch
    tensors, `Rows` and lists of plain dictionaries, but no attribute that begins with an underscore.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()
    optional: ClassVar[frozenset[str]] = frozenset()
    asks: ClassVar[tuple[str, ...]] = ()
    about: ClassVar[Mapping[str, str]] = {}
    headlines: ClassVar[tuple[str, ...]] = ()
    smallest: ClassVar[Mapping[str, float]] = {}
    figures: ClassVar[tuple[Figure, ...]] = ()
    sparsity: ClassVar[Axis | None] = None
    truth: ClassVar[str | None] = None
    paired: ClassVar[bool] = True
    edit_rows: ClassVar[int] = 0
    uses_lens: ClassVar[bool] = False
    seeded: ClassVar[bool] = False
    settings: ClassVar[Any] = None
    # Set by the harness on the class that a run measures with: the settings that differ from the metric's own.
    changed_settings: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if isinstance(cls.settings, type):
            cls.settings = cls.settings()

    def __init__(self, sae: SAE) -> None:
        """Prepare to measure `sae`: read its shapes, compute nothing."""

    def update(self, batch: Batch) -> None:
        """Add one batch of whole contexts. No score may depend on the split into batches."""

    def edits(self, batch: Batch) -> list[Edit]:
        """Alternative streams to run above the hook point for this batch; `update` finds them in `batch.edited`.

        Called before `update` with the same batch, without `token_losses` and `edited`. It must not change the metric's state,
        because a batch that does not fit into memory is split and tried again, and each row may depend on its own context only.
        """
        return []

    def merge(self, other: Self) -> None:
        """Add another instance's sums over other contexts, as if this one had seen them."""
        raise TypeError(f"metric '{self.name}' keeps state and must define merge")

    def units(self) -> pd.DataFrame:
        """One row per unit: `unit_id`, `cluster_id` (the document) and the columns that the scores name."""
        return pd.DataFrame({"unit_id": [], "cluster_id": []})

    def scores(self, env: Env) -> list[Score]:
        """The scores, declared over columns of `units()` or computed."""
        raise NotImplementedError(f"metric '{self.name}' must define scores")

    @classmethod
    def judge_calls(cls, d_sae: int) -> list[Calls]:
        """The most judge calls for one SAE of `d_sae` latents, for `--dry-run`."""
        return []

    @classmethod
    def lens_work(cls, d_sae: int, length: int) -> LensWork | None:
        """The experiments that one SAE costs at most, for `--dry-run`; of metrics that use the lens.

        Args:
            length: tokens of a context of the task at most.

        Returns:
            None: not declared, and left out of the estimated time.
        """
        return None

    def details(self) -> dict[str, Any]:
        """Further plain values for the record, such as chosen latents and fitted parameters. Called last."""
        return {}

    def files(self) -> dict[str, bytes]:
        """Files to write beside the record, by suffix: `html` becomes RECORD.METRIC.html."""
        return {}


@dataclass
class Rows:
    """Per-context rows that grow with each batch: the units of a metric that sums over contexts. Columns are float64.

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
        """The rows, sorted by unit_id."""
        frame = pd.DataFrame({name: np.concatenate(parts) for name, parts in self.columns.items()})
        if frame.empty:
            frame = pd.DataFrame(columns=["unit_id", "cluster_id"])
        return frame.sort_values("unit_id", ignore_index=True)


def get_state(metric: Metric) -> dict[str, Any]:
    """A metric's state as plain values and arrays, to save between batches and send between ranks.

    Raises:
        TypeError: an attribute cannot be stored.
    """
    state: dict[str, Any] = {}
    for name, value in vars(metric).items():
        if name.startswith("_"):
            continue
        if isinstance(value, Rows):
            if value.columns:  # a new instance has empty ones already
                state |= {f"{name}/{column}": array.to_numpy() for column, array in value.frame().items()}
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
    for name, value in state.items():
        _require_storable(metric, name, value)
    return state


def _require_storable(metric: Metric, name: str, value: Any) -> None:
    """Raise TypeError for a value that fits neither JSON nor an array of numbers."""
    if isinstance(value, np.ndarray):
        fits = value.dtype.kind in "biuf" and value.dtype.isnative and value.dtype.itemsize <= 8
        problem = None if fits else f"array of {value.dtype}"
    elif isinstance(value, Mapping):
        odd = [key for key in value if not isinstance(key, str) or key == "__array__"]
        problem = f"dictionary with the key {odd[0]!r}" if odd else None
        for inner in value.values():
            _require_storable(metric, name, inner)
    elif isinstance(value, list | tuple):
        problem = None
        for inner in value:
            _require_storable(metric, name, inner)
    else:
        problem = None if value is None or type(value) in (int, float, str, bool) else f"{type(value).__name__}"
    if problem:
        raise TypeError(
            f"metric '{metric.name}' keeps a {problem} in '{name}', which cannot be stored: use numbers, text, arrays of "
            "numbers, tensors, Rows, or lists of them, or begin its name with '_'"
        )


def set_state(metric: Metric, state: Mapping[str, Any]) -> None:
    """Restore a state from `get_state`."""
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


def reads_weights_only(metric: type[Metric]) -> bool:
    """Whether a metric needs nothing of a batch, adds no stream, and neither experiments on a language model nor asks a judge."""
    return not (metric.needs or metric.edit_rows or metric.uses_lens or metric.asks)
