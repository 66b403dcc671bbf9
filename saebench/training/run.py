"""A training run from beginning to end: text -> activations -> batches -> every SAE's step -> SAEs on disk.

`prepare` makes everything that is needed and fails early; `train` is the loop. A run that was killed goes on from its last
checkpoint with the same batches, and ends with the same SAEs as one that was not.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from saebench import ranks
from saebench.checkpoint import save_sae
from saebench.corpus import token_contexts
from saebench.errors import NonFiniteError, SaebenchError, UsageError, is_out_of_memory, one_line
from saebench.hookpoint import HookPoint
from saebench.models import cache_folder, default_device, load_config, load_model, load_tokenizer
from saebench.registry import registry
from saebench.running.provenance import provenance
from saebench.sae import SAE
from saebench.subject import Subject
from saebench.training.activations import Activations, Chunks, calibrate_on
from saebench.training.baselines import BASELINES, Trainable, make_baseline
from saebench.training.buffer import Buffer
from saebench.training.cache import CachedActivations, cache_key
from saebench.training.checkpoints import RunFolder
from saebench.training.interrupt import Interrupt, Stopped
from saebench.training.meter import Meter
from saebench.training.plan import SaeSpec, TrainRequest
from saebench.training.recipe import make_settings
from saebench.training.shapes import check_saes, hook_width
from saebench.training.text import Text, training_text
from saebench.training.trainer import Trainer

# Rows that recipes look at before the first step: input scale, b_dec.
SAMPLE = 32_768
# Activations that are shuffled together, unless they would take more than this.
_CHUNK_TOKENS = 2**17
_CHUNK_BYTES = 2 * 2**30
# Of all tokens: what is kept back where the budget is "all of the text", since outliers are known only when they come.
_OUTLIERS = 0.002


class Reporter(Protocol):
    """Hears how training goes."""

    def message(self, text: str) -> None: ...

    def begin(self, steps: int, done: int) -> None: ...

    def progress(self, step: int, tokens_per_second: float, lines: list[dict[str, Any]]) -> None: ...

    def end(self) -> None: ...

    def logged(self, folder: RunFolder) -> None: ...


def run_dtype(device: str, asked: str | None) -> str:
    """The model's precision: bfloat16 wherever the machine multiplies it faster than float32."""
    if asked:
        return asked
    has_bf16 = not device.startswith("cpu") or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return "bfloat16" if has_bf16 else "float32"


def default_context_batch(device: str) -> int:
    """Contexts a forward pass: what was fastest (16 and 32 are alike on a CPU)."""
    return 16 if device.startswith("cpu") else 64


def chunk_contexts(request: TrainRequest, d_in: int, nbytes: int, length: int) -> int:
    """How many contexts of `length` tokens are shuffled together."""
    if request.chunk_contexts:
        return request.chunk_contexts
    tokens = min(_CHUNK_TOKENS, _CHUNK_BYTES // (d_in * nbytes))
    return max(1, max(tokens, 2 * request.batch_size) // length)


def step_count(request: TrainRequest, text_tokens: int) -> int:
    """How many steps a run has.

    Raises:
        UsageError: the text is too short for the budget, or the budget for one step.
    """
    if not text_tokens:
        raise UsageError("the text has no token to train on: all are special (BOS, padding)")
    most = text_tokens * request.epochs
    tokens = request.tokens or int(most * (1 - _OUTLIERS))
    if tokens > most:
        epochs = -(-tokens // text_tokens)
        raise UsageError(
            f"{tokens:,} tokens are asked for and the text has {text_tokens:,} × {request.epochs} epoch(s): "
            f"it would take {epochs} epochs (--epochs {epochs}), or give more text or fewer --tokens"
        )
    if tokens < request.batch_size:
        raise UsageError(
            f"{tokens:,} tokens do not fill one batch of {request.batch_size:,}: give more, or a smaller batch"
        )
    return tokens // request.batch_size


def budget(request: TrainRequest) -> tuple[int | None, int | None, int]:
    """(tokens, steps, tokens a context) of a request whose text is on this machine; of one from a hub, what was asked for.

    Raises:
        UsageError: see `step_count`.
    """
    if request.data is None and request.corpus.hub is not None:
        return request.tokens, request.tokens and request.tokens // request.batch_size, request.context_length
    loaded_for = load_tokenizer(request.model, request.revision)
    config = load_config(request.model, request.revision).get_text_config()
    text = read_text(request, loaded_for, config.vocab_size, _specials(config))
    steps = step_count(request, text.tokens)
    return steps * request.batch_size, steps, text.length


def read_text(request: TrainRequest, tokenizer: Any, vocabulary: int, specials: list[int]) -> Text:
    """The text of a request.

    Raises:
        UsageError: `data` is missing, or no such file as `saebench.training.text.own_texts` reads.
    """
    if request.data is not None and request.data.suffix == ".npy":
        contexts = token_contexts(request.data, vocabulary, specials)
        return Text(contexts.token_ids.astype("int32"), torch.tensor(specials).numpy(), len(contexts))
    if tokenizer is None:
        raise UsageError(f"model '{request.model}' has no tokenizer: give token ids with --data FILE.npy")
    wanted = (request.tokens or 2**62) // request.epochs + 4 * _CHUNK_TOKENS
    return training_text(request.task(), tokenizer, wanted, request.data)


@dataclass
class Lane:
    """One SAE on its way."""

    spec: SaeSpec
    trainer: Trainable
    meter: Meter


@dataclass
class TrainingRun:
    """Everything that a run needs, ready to go."""

    request: TrainRequest
    subject: Subject
    hook: HookPoint
    text: Text
    chunks: Chunks
    steps: int
    lanes: list[Lane]
    folder: RunFolder
    interrupt: Interrupt
    rank: int
    world: int
    step: int = 0
    capture_seconds: float = 0.0
    train_seconds: dict[str, float] = field(default_factory=dict)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def go(self, reporter: Reporter) -> list[Path]:
        """Train, and write the SAEs; their folders."""
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
                    f"the text is used up: more of it was left out as outliers (max_norm {self.request.max_norm}) than planned "
                    f"for, and the last {self.steps - self.step} step(s) read some of it once more; fewer --tokens avoid that"
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

    # --- what is kept -------------------------------------------------------------------------------------------------

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
                    f"{self.folder.path}: there is nothing to do again"
                )
        return paths

    def _write(self, lane: Lane, path: Path) -> None:
        save_sae(self.named(lane.trainer.sae()), path)

    def _share(self) -> str:
        """How much of the time the language model took."""
        spent = self.capture_seconds + sum(self.train_seconds.values())
        share = self.capture_seconds / max(spent, 1e-9)
        return f"activations took {share:.0%} of the time, the SAEs' steps {1 - share:.0%}"

    def named(self, sae: SAE) -> SAE:
        """An SAE that says where it belongs."""
        request = self.request
        about = replace(
            sae.metadata,
            model=self.subject.loaded.id,
            hook=str(self.hook),
            context_length=self.text.length,
            prepend_bos=request.bos if request.data is None or request.data.suffix != ".npy" else None,
            training_tokens=self.steps * request.batch_size,
        )
        return replace(sae, metadata=about).to("cpu")

    def seconds(self) -> dict[str, float]:
        """Where the time went, of this process since it was last started."""
        spent = {"activations": self.capture_seconds, **self.train_seconds}
        return {name: round(value, 2) for name, value in spent.items()}


def _problem(write: Callable[[], None]) -> Exception | None:
    """What keeps something from being written; None once it is."""
    try:
        write()
    except (SaebenchError, SafetensorError, OSError, MemoryError) as error:
        return error
    return None


class _Clock:
    """Steps a second since last asked."""

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


# --- before the loop ----------------------------------------------------------------------------------------------------


def make_trainer(spec: SaeSpec, d_in: int, steps: int, device: str) -> Trainable:
    """The trainer of one SAE.

    Raises:
        UsageError: unknown recipe or setting, or one that does not fit.
    """
    try:
        if spec.recipe in BASELINES:
            return make_baseline(spec.recipe, spec.settings, d_in, spec.width, spec.seed, device)
        recipe = registry().get("recipes", spec.recipe)
        settings = make_settings(recipe, spec.settings)
        return Trainer(recipe, settings, d_in, width=spec.width, seed=spec.seed, steps=steps, device=device)
    except UsageError as error:
        raise UsageError(f"{spec.name}: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise SaebenchError(
                f"{spec.name}: {spec.width:,} latents do not fit into memory: choose a smaller width, or fewer SAEs at once"
            ) from error
        raise


def prepare(request: TrainRequest, out: Path, reporter: Reporter) -> TrainingRun:
    """Load the model and the text, make the trainers and the folder; whatever is wrong is found here.

    Raises:
        UsageError, SaebenchError: with what to do next.
    """
    device = ranks.own_device(request.device or default_device())
    rank, world = ranks.start(device)
    if request.batch_size % world:
        raise UsageError(
            f"--batch-size {request.batch_size} cannot be split over {world} processes: use a multiple of it"
        )
    hook = HookPoint.parse(request.hook)
    reporter.message(f"loading {request.model}")
    dtype = run_dtype(device, request.dtype)
    loaded = load_model(request.model, revision=request.revision, dtype=dtype, device=device)
    subject = Subject(loaded)
    subject.require(hook)
    check_saes(request.saes, hook_width(loaded.model.config, hook))
    config = loaded.model.config.get_text_config()
    vocabulary = subject.model.get_input_embeddings().weight.shape[0]
    text = read_text(request, loaded.tokenizer, vocabulary, _specials(config))
    steps = step_count(request, text.tokens)
    batch = request.context_batch or default_context_batch(device)
    calibration = calibrate_on(text, subject, hook, request.max_norm, batch, cache_folder())
    d_in = int(calibration.sample.shape[1])
    lanes = [Lane(spec, make_trainer(spec, d_in, steps, str(subject.device)), Meter()) for spec in request.saes]
    itemsize = next(subject.model.parameters()).element_size()
    interrupt = Interrupt()
    source = Activations(
        subject, hook, text, calibration, chunk_contexts(request, d_in, itemsize, text.length), batch, request.seed,
        interrupt.check,
    )  # fmt: skip
    chunks: Chunks = source
    if request.cache is not None:
        chunks = CachedActivations(source, request.cache / cache_key(source))
    tokens = steps * request.batch_size
    reporter.message(f"{len(lanes)} SAE(s), {tokens:,} tokens of {text.tokens:,} in the text, {steps:,} steps")
    folder = RunFolder(out)
    identity = request.identity() | {
        "dtype": dtype, "model_sha256": loaded.sha256, "text_sha256": text.fingerprint(), "steps": steps,
        "chunk_contexts": source.contexts, "context_batch": batch, "cached": request.cache is not None,
    }  # fmt: skip
    ranks.decide(lambda: _claim(folder, identity, subject, request, d_in))
    return TrainingRun(request, subject, hook, text, chunks, steps, lanes, folder, interrupt, rank, world)


def _claim(folder: RunFolder, identity: dict[str, Any], subject: Subject, request: TrainRequest, d_in: int) -> None:
    """Make the folder this run's own.

    Raises:
        UsageError: it holds something else.
        SaebenchError: it cannot be written, or there is too little space.
    """
    folder.begin(identity, provenance(subject.device))
    folder.require_space(checkpoint_bytes(request, d_in) * 5 // 2)


def checkpoint_bytes(request: TrainRequest, d_in: int) -> int:
    """Weights and two moments of every SAE, in float32."""
    return sum(3 * 4 * (2 * d_in * sae.width + sae.width + d_in) for sae in request.saes if sae.recipe not in BASELINES)


def _specials(config: Any) -> list[int]:
    """Special ids of a model without a tokenizer, from its config."""
    found = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    return sorted({i for value in found for i in (value if isinstance(value, list) else [value]) if i is not None})


def train(request: TrainRequest, out: Path, reporter: Reporter) -> list[Path]:
    """Train every SAE of a request into folders below `out`; goes on where an earlier run of it stopped.

    Raises:
        UsageError: the request makes no sense, or `out` holds something else.
        SaebenchError: it could not be finished; what to do next.
        KeyboardInterrupt: after a checkpoint.
    """
    folder = RunFolder(out)
    run = prepare(request, out, reporter)
    if folder.finished:
        paths = [out / sae.name for sae in request.saes]
        if gone := [path.name for path in paths if not path.is_dir()]:
            raise UsageError(
                f"--out {out} is finished, and {', '.join(gone)} is no longer in it: name another folder, or delete this one"
            )
        reporter.message(f"{out} is finished")
        return paths
    return run.go(reporter)
