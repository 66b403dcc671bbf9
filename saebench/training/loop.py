"""The loop of a training run: batches -> every SAE's step -> checkpoints -> SAEs on disk."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from saebench.errors import NonFiniteError, SaebenchError, is_out_of_memory, one_line
from saebench.hookpoint import HookPoint
from saebench.loading.checkpoint import save_sae
from saebench.results import write_atomically
from saebench.sae import SAE
from saebench.source import Source
from saebench.training.activations import Chunks
from saebench.training.baselines import Trainable
from saebench.training.buffer import Buffer
from saebench.training.card import model_card
from saebench.training.checkpoints import RunFolder
from saebench.training.interrupt import Interrupt, Stopped
from saebench.training.meter import Meter
from saebench.training.request import SaeSpec, TrainRequest
from saebench.training.text import Text
from saebench.training.trainer import Trainer

# Rows that recipes look at before the first step: input scale, b_dec.
SAMPLE = 32_768


class Reporter(Protocol):
    """Receives a run's progress."""

    def message(self, text: str) -> None: ...

    def capturing(self, done: int, total: int) -> None:
        """Forward passes of the chunk that is being made."""
        ...

    def begin(self, steps: int, done: int) -> None: ...

    def stepped(self, step: int) -> None:
        """A step is done; lines of numbers come less often."""
        ...

    def progress(self, step: int, tokens_per_second: float, lines: list[dict[str, Any]]) -> None: ...

    def end(self) -> None: ...

    def logged(self, folder: RunFolder) -> None: ...


@dataclass
class Lane:
    """One SAE with its trainer and meter."""

    spec: SaeSpec
    trainer: Trainable
    meter: Meter


@dataclass
class TrainingRun:
    """The complete state of a training run."""

    request: TrainRequest
    subject: Source
    hook: HookPoint
    text: Text
    chunks: Chunks
    steps: int
    lanes: list[Lane]
    folder: RunFolder
    interrupt: Interrupt
    rank: int
    world: int
    command: str = ""
    step: int = 0
    capture_seconds: float = 0.0
    train_seconds: dict[str, float] = field(default_factory=dict)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def go(self, reporter: Reporter) -> list[Path]:
        """Train and write the SAEs; return their folders."""
        buffer = Buffer(self.chunks, self.request.batch_size, self.request.seed)
        self._begin(buffer, reporter)
        reporter.begin(self.steps, self.step)
        try:
            with self.interrupt:
                self._loop(buffer, reporter)
        except Stopped:
            self._save(buffer)
            raise KeyboardInterrupt from None
        finally:
            reporter.end()
        return self._finish(buffer, reporter)

    def _begin(self, buffer: Buffer, reporter: Reporter) -> None:
        saved = self.folder.load()
        if saved is None:
            started = time.perf_counter()
            sample = buffer.sample(SAMPLE)
            self.capture_seconds += time.perf_counter() - started
            for lane in self.lanes:
                lane.trainer.initialise(sample)
            if self.rank == 0:
                self.folder.rewind(0)
            return
        self.step = saved["step"]
        buffer.restore(saved["buffer"], self.subject.device)
        for lane in self.lanes:
            lane.trainer.load_state_dict(saved["saes"][lane.spec.name])
            lane.meter.steps = list(saved["meters"][lane.spec.name])
        if self.rank == 0:
            self.folder.rewind(self.step)
        reporter.message(f"going on from step {self.step} of {self.steps}")

    def _loop(self, buffer: Buffer, reporter: Reporter) -> None:
        last_saved = self.step
        clock = _Clock(self.step)
        end = self.chunks.per_epoch * self.request.epochs
        while self.step < self.steps:
            if self.step - last_saved >= self.request.checkpoint_every:
                self._save(buffer)
                last_saved = self.step
            if buffer.refill == end:
                reporter.message(
                    f"the text is used up: more tokens than planned were outliers (max_norm {self.request.max_norm}), so the "
                    f"last {self.steps - self.step} step(s) read some of it once more; fewer --tokens avoid that"
                )
            started = time.perf_counter()
            batches = buffer.batches()
            while self.step < self.steps:
                batch = next(batches, None)  # the first of a chunk runs the language model
                self.capture_seconds += time.perf_counter() - started
                if batch is None:
                    break
                self._step(batch)
                self.step += 1
                self._snapshot(reporter)
                reporter.stepped(self.step)
                if self.step % self.request.log_every == 0 or self.step == self.steps:
                    self._log(clock, reporter)
                self.interrupt.check()
                started = time.perf_counter()

    def _step(self, batch: torch.Tensor) -> None:
        share = self.request.batch_size // self.world
        mine = batch[self.rank * share : (self.rank + 1) * share]
        for lane in self.lanes:
            started = time.perf_counter()
            try:
                lane.meter.add(lane.trainer.step(mine))
            except NonFiniteError as error:
                raise self._diverged(f"{lane.spec.name}: {error}") from error
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    raise _no_memory(self.request.batch_size) from error
                raise
            spent = time.perf_counter() - started
            self.train_seconds[lane.spec.name] = self.train_seconds.get(lane.spec.name, 0.0) + spent

    # --- log, checkpoint, SAEs -------------------------------------------------------------------------------------------------

    def _log(self, clock: "_Clock", reporter: Reporter) -> None:
        lines: list[dict[str, Any]] = []
        for lane in self.lanes:
            means = lane.meter.flush()
            lines.append(
                {"step": self.step, "tokens": self.step * self.request.batch_size, "sae": lane.spec.name} | means
            )
        speed = clock.lap(self.step) * self.request.batch_size
        for line in lines:
            line["tokens_per_second"] = round(speed, 1)
        if self.rank == 0:
            self.folder.append(lines)
        reporter.progress(self.step, speed, lines)

    def _save(self, buffer: Buffer) -> None:
        meters = {lane.spec.name: lane.meter.steps for lane in self.lanes}
        if self.rank == 0:
            saes = {lane.spec.name: lane.trainer.state_dict() for lane in self.lanes}
            self.folder.save({"step": self.step, "buffer": buffer.state(), "saes": saes, "meters": meters})

    def _diverged(self, what: str) -> NonFiniteError:
        cached = "it takes the activations in --cache again" if self.request.cache else "--cache DIR keeps activations"
        return NonFiniteError(
            f"{what} ({self.folder.kept}): with a smaller learning rate (--set lr=…, or lr in the file), or without this SAE, "
            f"it is another run: give that one an --out of its own; {cached}"
        )

    def _finish(self, buffer: Buffer, reporter: Reporter) -> list[Path]:
        """Write every SAE that can be written; where one cannot, the checkpoint stays.

        Raises:
            SaebenchError: something could not be written; all that could be is there.
        """
        paths = [self.folder.path / lane.spec.name for lane in self.lanes]
        if self.rank > 0:
            return paths
        unsaved = _problem(lambda: self._save(buffer))  # three times as large as the SAEs, which may still find room
        failed = []
        for lane, path in zip(self.lanes, paths, strict=True):
            if problem := _problem(partial(self._write, lane, path)):
                failed.append(f"{lane.spec.name} ({one_line(problem, 200)})")
        ended = [{"step": self.step, "sae": "", "seconds": self.seconds()}]
        beside = {
            "a model card": _problem(lambda: self._write_cards(paths)),
            "the last checkpoint": unsaved,
            "the end of the log": _problem(lambda: self.folder.append(ended)),
            "the picture of the curves": _problem(lambda: reporter.logged(self.folder)),
        }
        if failed:
            others = f"the others are in {self.folder.path}"
            kept = unsaved or "and so is a checkpoint: the same command tries again without training"
            raise SaebenchError(
                f"{len(failed)} of {len(paths)} SAE(s) could not be written: {', '.join(failed)}; {others}; {kept}"
            )
        self.folder.finish()
        if self.train_seconds:  # a run that only had its SAEs left to write has no share to speak of
            reporter.message(self._share())
        for what, problem in beside.items():
            if problem:
                raise SaebenchError(
                    f"{what} could not be written: {one_line(problem.__cause__ or problem)}; every SAE is, in "
                    f"{self.folder.path}: no SAE needs to be trained again"
                )
        return paths

    def _snapshot(self, reporter: Reporter) -> None:
        """Write the SAEs for which this step is a snapshot's; training goes on where one cannot be written."""
        for lane in self.lanes if self.rank == 0 else ():
            for share in lane.spec.snapshots:
                if self.step != max(1, round(share * self.steps)):
                    continue
                name = lane.spec.snapshot_name(share)
                if problem := _problem(partial(self._write, lane, self.folder.path / name)):
                    reporter.message(f"{name} could not be written: {one_line(problem)}; training goes on without it")

    def _write(self, lane: Lane, path: Path) -> None:
        save_sae(self.named(lane.trainer.sae()), path)

    def _write_cards(self, paths: list[Path]) -> None:
        """Write the model card of every SAE whose folder was written."""
        log = self.folder.read_log()
        for lane, path in zip(self.lanes, paths, strict=True):
            if path.is_dir():
                settings = vars(lane.trainer.settings) if isinstance(lane.trainer, Trainer) else lane.spec.settings
                card = model_card(lane.spec, self.named(lane.trainer.sae()), settings, log, self.command)
                write_atomically(path / "README.md", card.encode())

    def _share(self) -> str:
        """The language model's share of the time, in words."""
        spent = self.capture_seconds + sum(self.train_seconds.values())
        share = self.capture_seconds / max(spent, 1e-9)
        return f"activations took {share:.0%} of the time, the SAEs' steps {1 - share:.0%}"

    def named(self, sae: SAE) -> SAE:
        """The SAE with its model, hook point and training settings as metadata, on the CPU."""
        request = self.request
        about = replace(
            sae.metadata,
            model=self.subject.loaded.id,
            hook=str(self.hook),
            context_length=self.text.length,
            prepend_bos=request.bos is True if request.data is None or request.data.suffix != ".npy" else None,
            training_tokens=self.step * request.batch_size,
        )
        return replace(sae, metadata=about).to("cpu")

    def seconds(self) -> dict[str, float]:
        """Where the time went, of this process since it was last started."""
        spent = {"activations": self.capture_seconds, **self.train_seconds}
        return {name: round(value, 2) for name, value in spent.items()}


def _problem(write: Callable[[], None]) -> Exception | None:
    """Call `write`; return the error that stopped it, or None."""
    try:
        write()
    except (SaebenchError, SafetensorError, OSError, MemoryError) as error:
        return error
    return None


class _Clock:
    """Steps per second since the last lap."""

    def __init__(self, step: int) -> None:
        self.step, self.time = step, time.perf_counter()

    def lap(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self.step) / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        return rate


def _no_memory(batch: int) -> SaebenchError:
    return SaebenchError(
        f"a step of {batch:,} activations does not fit into memory: --batch-size {max(1, batch // 2)}, or fewer SAEs at once"
    )
