"""A training run from beginning to end: text -> activations -> batches -> every SAE's step -> SAEs on disk.

`prepare` loads everything and fails early; loop.py holds the loop. A killed run resumes from its last checkpoint with the same
batches, and ends with the same SAEs as an uninterrupted one.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from saebench import ranks
from saebench.cache import cache_folder
from saebench.errors import SaebenchError, UsageError, is_out_of_memory
from saebench.hookpoint import HookPoint
from saebench.models import DTYPES, default_device, load_model, require_tokens
from saebench.recipe import make_settings
from saebench.registry import registry
from saebench.running.cost import hook_width
from saebench.running.provenance import provenance
from saebench.source import Source
from saebench.subject import Subject
from saebench.training.activations import Activations, Chunks, calibrate_on
from saebench.training.baselines import BASELINES, Trainable, make_baseline
from saebench.training.budget import (
    checkpoint_bytes,
    chunk_contexts,
    read_text,
    step_count,
    with_bos,
)
from saebench.training.cache import CachedActivations, cache_key
from saebench.training.checkpoints import RunFolder
from saebench.training.choices import settled
from saebench.training.interrupt import Interrupt
from saebench.training.loop import Lane, Reporter, TrainingRun
from saebench.training.meter import Meter
from saebench.training.request import SaeSpec, TrainRequest
from saebench.training.shapes import check_saes
from saebench.training.sourced import open_training_source, source_text, source_width
from saebench.training.text import Text
from saebench.training.trainer import Trainer


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
    """Load model and text, make the trainers and the folder; every invalid request fails here, before a step.

    Raises:
        UsageError, SaebenchError: the request is invalid, or a resource is missing.
    """
    device = ranks.own_device(request.device or default_device())
    rank, world = ranks.start(device)
    if request.batch_size % world:
        raise UsageError(
            f"--batch-size {request.batch_size} cannot be split over {world} processes: use a multiple of it"
        )
    hook = HookPoint.parse(request.hook)
    folder = RunFolder(out)
    request = ranks.agree(settled(request, device, folder.identity))
    request, subject, text = _opened(request, device, hook, reporter)
    for line in text.describe():
        reporter.message(line)
    steps = step_count(request, text.tokens)
    batch = int(request.context_batch or 1)
    calibration = calibrate_on(text, subject, hook, request.max_norm, batch, cache_folder())
    d_in = int(calibration.sample.shape[1])
    lanes = [Lane(spec, make_trainer(spec, d_in, steps, str(subject.device)), Meter()) for spec in request.saes]
    itemsize = DTYPES[subject.dtype].itemsize
    interrupt = Interrupt()
    source = Activations(
        subject, hook, text, calibration, chunk_contexts(request, d_in, itemsize, text.length), batch, request.seed,
        interrupt.check, reporter.capturing,
    )  # fmt: skip
    chunks: Chunks = source
    if request.cache is not None:
        chunks = CachedActivations(source, request.cache / cache_key(source))
    tokens = steps * request.batch_size
    reporter.message(f"{len(lanes)} SAE(s), {tokens:,} tokens of {text.tokens:,} in the text, {steps:,} steps")
    identity = request.identity() | {
        "model_sha256": subject.loaded.sha256, "text_sha256": text.fingerprint(), "steps": steps,
        "chunk_contexts": source.contexts, "cached": request.cache is not None,
    }  # fmt: skip
    ranks.decide(lambda: _claim(folder, identity, text, subject, request, d_in))
    return TrainingRun(request, subject, hook, text, chunks, steps, lanes, folder, interrupt, rank, world)


def _opened(
    request: TrainRequest, device: str, hook: HookPoint, reporter: Reporter
) -> tuple[TrainRequest, Source, Text]:
    """The source of activations and its contexts; and the request with BOS settled.

    Raises:
        UsageError, SaebenchError: model, text or file cannot be had, or do not fit the SAEs.
    """
    if (source := open_training_source(request)) is not None:
        text = source_text(source)
        check_saes(request.saes, int(source_width(request) or 0))
        return replace(request, bos=False), source, text
    reporter.message(f"loading {request.model}")
    loaded = load_model(request.model, revision=request.revision, dtype=str(request.dtype), device=device)
    subject = Subject(loaded)
    subject.require(hook)
    check_saes(request.saes, hook_width(loaded.model.config, hook))
    request = with_bos(request, loaded.tokenizer)
    vocabulary = subject.model.get_input_embeddings().weight.shape[0]
    text = read_text(request, loaded.tokenizer, loaded.model.config, vocabulary)
    require_tokens(loaded, text.token_ids)
    return request, subject, text


def _claim(
    folder: RunFolder, identity: dict[str, Any], text: Text, subject: Source, request: TrainRequest, d_in: int
) -> None:
    """Claim the folder for this run.

    Raises:
        UsageError: it holds something else.
        SaebenchError: it cannot be written, or there is too little space.
    """
    folder.begin(identity, provenance(subject.device), text.facts())
    folder.require_space(checkpoint_bytes(request, d_in) * 5 // 2)


def train(request: TrainRequest, out: Path, reporter: Reporter, command: str = "") -> list[Path]:
    """Train every SAE of a request into folders below `out`; resume an earlier run of it.

    Args:
        command: the command line, for the SAEs' model cards.

    Raises:
        UsageError: the request is invalid, or `out` holds something else.
        SaebenchError: the run could not be finished; the message names the next step.
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
    run.command = command
    return run.go(reporter)
