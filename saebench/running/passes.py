"""Passes at one hook point: the SAEs and batch size of each, its saved state, and the merge over ranks."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import saebench
from saebench import ranks
from saebench.cache import cache_folder
from saebench.errors import NonFiniteError, one_line
from saebench.forward.ablation import Ablations
from saebench.forward.calibration import Calibration
from saebench.forward.fork import Ground
from saebench.forward.guard import SAEGuard
from saebench.forward.lane import Lane
from saebench.metric import NEEDS, Metric
from saebench.results import fingerprint
from saebench.running.identify import Work
from saebench.running.plan import Place
from saebench.running.provenance import provenance
from saebench.running.setting import Setting
from saebench.stream import Pass, Tally
from saebench.subject import Subject

# The most SAEs of one pass; more SAEs run in further passes.
LANES = 16
# Streams of the first batch tried (per context the model's own and one per SAE). An accelerator starts high and halves until
# the batch fits. On a CPU the number keeps a layer's temporaries below 32 MiB for a small model: larger ones are mapped anew
# every time (with 16 contexts a batch, 8 SAEs together took as long per SAE as 4).
STREAMS = {"cpu": 32, "cuda": 128}
# Seconds between two saves of a pass's state: a killed run repeats at most so much work.
SAVE_EVERY = 15.0


def edit_rows(metrics: Iterable[type[Metric]]) -> int:
    """Streams per context that the edits of one SAE's metrics add."""
    return sum(metric.edit_rows for metric in metrics)


def together(device: str, edits: int) -> int:
    """The number of SAEs that share one pass.

    Args:
        edits: streams per context that the metrics of one SAE add.
    """
    return max(1, min(LANES, _streams(device) // (1 + edits))) if edits else LANES


def default_batch(device: str, streams: int, length: int = 128) -> int:
    """Contexts per batch.

    Args:
        streams: forked streams per context: one per SAE where losses are needed, and the edits; 0 where the model stops at
            the hook point.
        length: tokens of the longest context; a batch holds more contexts where they are short.
    """
    return max(1, _streams(device) * max(1, 128 // length) // (1 + streams))


def _streams(device: str) -> int:
    return STREAMS["cuda" if device.startswith("cuda") else "cpu"]


@dataclass(frozen=True)
class PlannedPass:
    """SAEs that share a pass.

    Attributes:
        saved: the state of an interrupted pass of the same SAEs, to continue from.
    """

    works: Sequence[Work]
    saved: dict[str, Any] | None = None


@dataclass(frozen=True)
class Passed:
    """A finished pass, merged over ranks.

    Attributes:
        lanes: one per SAE, in the order of the planned pass; the metrics hold their sums over all contexts.
        run: provenance and timings of the records' new entry in `runs`.
        calibration: None where the activations are not finite.
    """

    lanes: Sequence[Lane]
    tally: Tally
    run: dict[str, Any]
    calibration: Calibration | None


def make_lane(setting: Setting, work: Work) -> Lane:
    """The SAE on the model's device with an instance of each missing metric."""
    sae = work.job.sae(setting.request).to(setting.subject.device)
    lane = Lane(work.key, sae, {}, watch=SAEGuard(sae, partial(work.job.fresh, setting.request)))
    for name, metric in work.missing.items():
        instance = lane.attempt(name, partial(metric, sae))
        if instance is not None:
            lane.metrics[name] = instance
    return lane


def state_key(setting: Setting, place: Place) -> str:
    """Identity of the passes at one place, without their SAEs; each rank has its own."""
    return fingerprint(
        {"saebench": saebench.__version__, "model": setting.subject.loaded.sha256, "read": str(place.read),
         "write": str(place.write), "rank": setting.rank, "world": setting.world,
         "corpus": setting.contexts.fingerprint()}
    )[:16]  # fmt: skip


def plan_passes(setting: Setting, works: Sequence[Work], key: str, size: int) -> list[PlannedPass]:
    """Passes of at most `size` SAEs; the SAEs of an interrupted pass come first, together again."""
    by_key = {work.key: work for work in works}
    saved = (None if setting.request.force else setting.state.find(key, set(by_key))) or {"lanes": {}}
    begun = [by_key[lane] for lane in ranks.common(saved["lanes"]) if lane in by_key]
    rest = [work for work in works if work not in begun]
    passes = [PlannedPass(begun, saved)] if begun else []
    return passes + [PlannedPass(rest[start : start + size]) for start in range(0, len(rest), size)]


def run_pass(
    setting: Setting, place: Place, planned: PlannedPass, calibration: Calibration, batch: int, key: str
) -> Passed:
    """Run one pass on every rank and merge the ranks' sums into rank 0's.

    Raises:
        SaebenchError: a rank failed; on every rank.
    """
    begin = time.perf_counter()

    def stream() -> tuple[Pass, int, int]:
        the_pass = _make_pass(setting, place, planned, calibration)
        if planned.saved and not _restored(the_pass, planned.saved):
            the_pass = _make_pass(setting, place, planned, calibration)
        begun = the_pass.done
        return the_pass, begun, _stream(setting, the_pass, batch, key)

    # A rank that failed alone must not leave the others waiting for its sums.
    the_pass, start, batch = ranks.everywhere(stream)
    if the_pass.ground.ablations:
        the_pass.ground.ablations.keep()
    wall = max(time.perf_counter() - begin, 1e-9)  # a coarse clock may stand still
    for other in ranks.gather(the_pass.snapshot())[1:]:
        the_pass.absorb(other)
    run = _run_entry(setting, wall, the_pass, batch, planned.saved is not None, start)
    return Passed(the_pass.lanes, the_pass.tally, run, calibration)


def _restored(the_pass: Pass, saved: Mapping[str, Any]) -> bool:
    """Restore a saved state; False where it does not fit these metrics, so that the pass must start over."""
    try:
        the_pass.restore(saved)
    except KeyboardInterrupt:
        raise
    except BaseException:  # a metric may raise anything at the state of another version of itself
        return False
    return True


def _make_pass(setting: Setting, place: Place, planned: PlannedPass, calibration: Calibration) -> Pass:
    """A pass over every world-th context, those of this rank; padded contexts are sorted by length."""
    subject, lanes = setting.subject, [make_lane(setting, work) for work in planned.works]
    mine = setting.contexts.by_length(np.arange(len(setting.contexts))[setting.rank :: setting.world])
    contexts = setting.contexts.take(mine)
    ablations = None
    if isinstance(subject, Subject) and any(lane.needs("token_losses") for lane in lanes) and len(mine):
        ablations = Ablations(subject, contexts, place.write, calibration, cache_folder())
    ground = Ground(
        subject, contexts, mine, place.read, place.write, calibration, ablations, setting.request.seed
    )  # fmt: skip
    return Pass(ground, lanes)


def _stream(setting: Setting, the_pass: Pass, batch: int, key: str) -> int:
    """Run the pass with progress and saved states; returns the batch size that fitted."""
    if not any(metric.needs or metric.edit_rows for lane in the_pass.lanes for metric in lane.alive):
        return batch
    n = len(the_pass.lanes)
    label = f"{n} SAE{'s' * (n > 1)} at {the_pass.ground.write}"
    setting.reporter.begin(label, len(the_pass.contexts), the_pass.done)
    try:
        return the_pass.run(batch, _saver(setting, the_pass, key))
    except NonFiniteError as error:
        for lane in the_pass.lanes:
            lane.fail(one_line(error), NEEDS)
        return batch
    finally:
        setting.reporter.end()


def _saver(setting: Setting, the_pass: Pass, key: str) -> Callable[[], None]:
    """A callback for each finished batch: it reports progress, and saves the state every `SAVE_EVERY` seconds and at the end."""
    last = time.monotonic()
    shown = the_pass.done

    def after_batch() -> None:
        nonlocal last, shown
        setting.reporter.advance(the_pass.done - shown)
        shown = the_pass.done
        if time.monotonic() - last >= SAVE_EVERY or the_pass.done == len(the_pass.contexts):
            setting.state.save(key, the_pass.snapshot())
            last = time.monotonic()

    return after_batch


def _run_entry(setting: Setting, wall: float, the_pass: Pass, batch: int, resumed: bool, start: int) -> dict[str, Any]:
    """The record's entry in `runs`: provenance, which a repeated run has again, and timings, which it has not."""
    own = {"batch_size": batch, "ranks": setting.world, "forked": setting.subject.forks}
    share = 1 - start / max(1, len(the_pass.contexts))  # the saved part took no time in this run
    timings: dict[str, Any] = {stage: round(seconds, 3) for stage, seconds in setting.clock.seconds.items()}
    timings |= {
        "pass": round(wall, 3),
        "tokens_per_second": round(setting.world * the_pass.contexts.tokens * share / wall, 1),
        "saes_together": len(the_pass.lanes),
        "resumed": resumed,
        "ablations_cached": the_pass.ground.ablations is not None and the_pass.ground.ablations.cached,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return {"provenance": provenance(setting.subject.device) | own, "timings": timings}
