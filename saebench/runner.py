"""Plan, resume, run: from SAEs and a task to records on disk."""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from saebench import ranks
from saebench.ablation import Ablations
from saebench.calibration import Calibration, calibrate, check_l0
from saebench.corpus import Contexts, special_ids, task_contexts, token_contexts
from saebench.errors import NonFiniteError, SaebenchError, UsageError, one_line
from saebench.hookpoint import HookPoint
from saebench.metric import NEEDS, get_state, set_state
from saebench.models import cache_folder, default_device, default_dtype, load_model
from saebench.plan import Failure, Job, Request, make_jobs, read_task, wanted_metrics
from saebench.provenance import provenance
from saebench.results import Record, fingerprint, read_record, record_path
from saebench.sae import SAE
from saebench.scoring import finish_metric
from saebench.state import StateFolder
from saebench.stream import Lane, Pass, Tally
from saebench.subject import Subject
from saebench.task import Task

# SAEs that go through one pass together; more of them run in further passes.
LANES = 16
# Contexts a batch, before anything is known about memory. An accelerator starts higher and halves until it fits.
BATCH = {"cpu": 16, "cuda": 64}
# Seconds between saves of a pass's state: what a killed run loses at most.
SAVE_EVERY = 15.0


class Reporter(Protocol):
    """Hears how a run goes; the command line shows it."""

    def message(self, text: str) -> None: ...

    def begin(self, label: str, total: int, done: int) -> None: ...

    def advance(self, contexts: int) -> None: ...

    def end(self) -> None: ...


class Silent:
    """A reporter that says nothing."""

    def message(self, text: str) -> None: ...

    def begin(self, label: str, total: int, done: int) -> None: ...

    def advance(self, contexts: int) -> None: ...

    def end(self) -> None: ...


class RunError(SaebenchError):
    """Some SAEs could not be measured; `records` holds what was."""

    def __init__(self, failures: list[Failure], records: list[Record]) -> None:
        super().__init__("; ".join(f"{f.name}: {f.error}" for f in failures))
        self.failures = failures
        self.records = records


@dataclass
class Outcome:
    """What a run came to, in the order of the request."""

    records: list[Record] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    computed: int = 0


def run(
    saes: str | Path | SAE | Sequence[str | Path | SAE],
    *,
    names: Sequence[str] = (),
    model: str | None = None,
    revision: str | None = None,
    hook: str | None = None,
    task: str = "fidelity",
    tokens: str | Path | None = None,
    metrics: Sequence[str] = (),
    results: str | Path = "results",
    batch_size: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    force: bool = False,
    strict: bool = False,
    format: str | None = None,
    k: int | None = None,
    scale: float | None = None,
    ignore_keys: Collection[str] = (),
    reporter: Reporter | None = None,
) -> list[Record]:
    """Measure SAEs and write their records; the same as `saebench run`.

    Args:
        saes: checkpoint paths, or SAEs in memory.
        names: one for each SAE; by default from their paths.
        model: alias, hub id, folder or GGUF file; by default the one each checkpoint names.
        revision: of a hub model.
        hook: where the SAEs read; by default what each checkpoint says.
        task: name, name@version, or a TOML file.
        tokens: a .npy file of token ids [contexts, tokens] to run on instead of the task's text.
        metrics: names; by default the task's.
        results: folder of the records.
        batch_size: contexts a batch; by default fitted.
        device, dtype: of the model; float32 on a CPU and bfloat16 on a GPU by default.
        limit: only the first so many contexts; the records are marked partial.
        seed: of everything random.
        force: compute again what a record already holds.
        strict: a broken plugin is an error.
        format, k, scale, ignore_keys: see `load_sae`.
        reporter: hears about progress.

    Returns:
        One record per SAE, in order.

    Raises:
        UsageError: the request makes no sense.
        RunError: some SAEs failed; its `records` are the others'.
    """
    several = [saes] if isinstance(saes, str | Path | SAE) else list(saes)
    outcome = execute(
        Request(
            several, names, model, revision, hook, task, tokens, metrics, Path(results), batch_size, device, dtype,
            limit, seed, force, strict, format, k, scale, ignore_keys,
        ),
        reporter or Silent(),
    )  # fmt: skip
    if outcome.failures:
        raise RunError(outcome.failures, outcome.records)
    return outcome.records


def execute(request: Request, reporter: Reporter) -> Outcome:
    """Run a request; a failing SAE does not stop the others."""
    check_request(request)
    task = read_task(request)
    wanted = wanted_metrics(request, task)
    rank, _ = ranks.start()
    jobs, failures = make_jobs(request)
    outcome = Outcome(failures=failures)
    for model in dict.fromkeys(job.model for job in jobs):
        mine = [job for job in jobs if job.model == model]
        try:
            _ModelRun(request, task, wanted, model, reporter, outcome).run(mine)
        except SaebenchError as error:
            outcome.failures += [Failure(job.name, error) for job in mine if job.missing or job.record is None]
    if rank == 0:
        outcome.records = [job.record for job in jobs if job.record is not None and job.record.path is not None]
    return outcome


def check_request(request: Request) -> None:
    """Raise UsageError for numbers that make no sense."""
    for name, value in (("--limit", request.limit), ("--batch-size", request.batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be 1 or more, not {value}")


class _ModelRun:
    """Everything of a request that happens on one language model."""

    def __init__(
        self, request: Request, task: Task, wanted: dict[str, Any], model: str, reporter: Reporter, outcome: Outcome
    ) -> None:
        self.request, self.task, self.wanted, self.reporter, self.outcome = request, task, wanted, reporter, outcome
        self.rank, self.world = ranks.start()
        self.timings: dict[str, float] = {}
        device = ranks.own_device(request.device or default_device())
        with self._timed("load_model"):
            reporter.message(f"loading {model}")
            loaded = load_model(
                model, revision=request.revision, dtype=request.dtype or default_dtype(device), device=device
            )
        self.subject = Subject(loaded)
        self.state = StateFolder(request.results)
        with self._timed("text"):
            self.contexts = self._contexts()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start

    def _contexts(self) -> Contexts:
        tokenizer = self.subject.loaded.tokenizer
        if self.request.tokens is None:
            return task_contexts(self.task, tokenizer).head(self.request.limit)
        specials: Iterable[int] = () if tokenizer is None else special_ids(tokenizer).tolist()
        vocabulary = self.subject.model.get_input_embeddings().weight.shape[0]
        return token_contexts(Path(self.request.tokens), vocabulary, specials).head(self.request.limit)

    # --- what is still to do ------------------------------------------------------------------------------------------

    def run(self, jobs: list[Job]) -> None:
        """Compute what is missing of these SAEs' records."""
        for job in jobs:
            try:
                self.subject.require(job.read)
                self.subject.require(job.write)
                self._plan(job)
            except SaebenchError as error:
                self._fail(job, error)
        ready = [job for job in jobs if job.missing]
        for place in dict.fromkeys((job.read, job.write) for job in ready):
            group = [job for job in ready if (job.read, job.write) == place]
            try:
                self._group(*place, group)
            except SaebenchError as error:
                for job in group:
                    if job.missing:
                        self._fail(job, error)

    def _fail(self, job: Job, error: SaebenchError) -> None:
        self.outcome.failures.append(Failure(job.name, error))
        job.missing = {}

    def _plan(self, job: Job) -> None:
        """Give the job its record (a new one, or the one that exists) and find the metrics it lacks."""
        record = self._skeleton(job)
        path = record_path(self.request.results, record)
        if path.exists() and not self.request.force:
            record = read_record(path)
        job.record = record
        have = {name: entry["version"] for name, entry in record.metrics.items() if name not in record.errors}
        job.missing = {n: m for n, m in self.wanted.items() if have.get(n) != m.version}
        if not job.missing:
            self.reporter.message(f"{job.name}: already measured, {path}")
        # What rank 0 saw on disk is what counts: another rank may look a moment later.
        job.missing = {n: self.wanted[n] for n in ranks.agree(list(job.missing))}

    def _skeleton(self, job: Job) -> Record:
        loaded, contexts = self.subject.loaded, self.contexts
        corpus = {"fingerprint": contexts.fingerprint(), "contexts": len(contexts), "length": contexts.length,
                  "documents": len(set(contexts.document_id.tolist())), "available": contexts.available,
                  "dropped_tokens": contexts.dropped_tokens}  # fmt: skip
        settings = {"model_dtype": self.subject.dtype, "sae_dtype": "float32", "seed": self.request.seed,
                    "limit": self.request.limit, "max_norm": self.task.contexts.max_norm}  # fmt: skip
        task = {"name": self.task.name, "version": self.task.version, "sha256": self.task.sha256()}
        identity = {
            "sae": job.sha256, "model": loaded.sha256, "hook": str(job.read), "hook_out": str(job.write),
            "task": task, "corpus": corpus["fingerprint"], "settings": settings,
        }  # fmt: skip
        about = dict(job.about)
        about["warnings"] = about["warnings"] + self._habits(about)
        return Record(
            fingerprint(identity), self.request.limit is not None, about,
            {"id": loaded.id, "sha256": loaded.sha256, "revision": loaded.revision,
             "type": self.subject.model.config.model_type},
            str(job.read), str(job.write), task, corpus, settings,
        )  # fmt: skip

    def _habits(self, about: dict[str, Any]) -> list[str]:
        """Warnings where the SAE was trained in another way than it is measured."""
        out = []
        bos = self.task.contexts.bos
        if self.request.tokens is None and about["prepend_bos"] not in (None, bos):
            out.append(f"trained with{'' if about['prepend_bos'] else 'out'} BOS, measured with{'' if bos else 'out'}")
        if about["model"] is not None and about["model"] != self.subject.loaded.id:
            out.append(f"made for model '{about['model']}', measured on '{self.subject.loaded.id}'")
        return out

    # --- one (read, write) place --------------------------------------------------------------------------------------

    def _group(self, read: HookPoint, write: HookPoint, jobs: list[Job]) -> None:
        batch = (
            self.request.batch_size or BATCH[self.subject.device.type if self.subject.device.type == "cuda" else "cpu"]
        )
        try:
            with self._timed("calibrate"):
                self.subject.check(write)
                calibration = calibrate(
                    self.subject, self.contexts, read, write, self.task.contexts.max_norm, batch, cache_folder()
                )
        except NonFiniteError as error:
            for job in jobs:
                self._record_error(job, error)
            return
        fit = [job for job in jobs if self._fits(job, calibration)]
        key = self._state_key(read, write)
        lane_keys = {self._lane_key(job): job for job in fit}
        # First those that an interrupted run had begun, together as they were; then the others.
        saved = self.state.find(key, set(lane_keys))
        begun = [job for lane, job in lane_keys.items() if saved and lane in saved["lanes"]]
        if begun:
            assert saved is not None
            self._pass(read, write, begun, calibration, batch, key, saved)
        rest = [job for job in fit if job not in begun]
        for start in range(0, len(rest), LANES):
            self._pass(read, write, rest[start : start + LANES], calibration, batch, key, None)

    def _record_error(self, job: Job, error: SaebenchError) -> None:
        """A record that says why there are no numbers."""
        if self.rank == 0 and job.record is not None:
            for name, metric in job.missing.items():
                job.record.metrics[name] = {"version": metric.version, "units": None}
                job.record.errors[name] = one_line(error)
            job.record.write(record_path(self.request.results, job.record), {})
        job.missing = {}

    def _state_key(self, read: HookPoint, write: HookPoint) -> str:
        return fingerprint(
            {"model": self.subject.loaded.sha256, "read": str(read), "write": str(write), "rank": self.rank,
             "world": self.world, "corpus": self.contexts.fingerprint()}
        )[:16]  # fmt: skip

    def _lane_key(self, job: Job) -> str:
        assert job.record is not None
        versions = ",".join(f"{name}@{metric.version}" for name, metric in sorted(job.missing.items()))
        return f"{job.record.fingerprint}:{versions}"

    def _fits(self, job: Job, calibration: Calibration) -> bool:
        """Whether the SAE belongs at this place at all."""
        sae = job.sae(self.request).to(self.subject.device)
        widths = calibration.sample.shape[1], calibration.mean.shape[0]
        try:
            if (sae.d_in, sae.d_out) != widths:
                raise UsageError(
                    f"{job.name}: the SAE reads {sae.d_in} and writes {sae.d_out} numbers per token, but {job.read} of "
                    f"{self.subject.loaded.id} has {widths[0]} and {job.write} {widths[1]}: check --model and --hook"
                )
            check_l0(sae, calibration)
        except SaebenchError as error:
            self._fail(job, error)
            return False
        return True

    # --- one pass -----------------------------------------------------------------------------------------------------

    def _pass(
        self, read: HookPoint, write: HookPoint, jobs: list[Job], calibration: Calibration, batch: int, key: str,
        saved: dict[str, Any] | None,
    ) -> None:  # fmt: skip
        begin = time.perf_counter()
        saes = [job.sae(self.request).to(self.subject.device) for job in jobs]
        lanes = [
            Lane(sae, {n: m(sae) for n, m in job.missing.items() if m.needs})
            for job, sae in zip(jobs, saes, strict=True)
        ]
        mine = np.arange(len(self.contexts))[self.rank :: self.world]
        contexts = Contexts(
            self.contexts.token_ids[mine], self.contexts.document_id[mine], self.contexts.special[mine],
            self.contexts.documents,
        )  # fmt: skip
        losses = any(lane.needs("token_losses") for lane in lanes)
        ablations = (
            Ablations(self.subject, contexts, write, calibration, cache_folder()) if losses and len(mine) else None
        )
        the_pass = Pass(self.subject, contexts, mine, read, write, lanes, calibration, ablations)
        keys = [self._lane_key(job) for job in jobs]
        resumed = _restore(the_pass, keys, saved)
        if any(lane.metrics for lane in lanes):
            try:
                batch = self._stream(the_pass, keys, key, batch)
            except NonFiniteError as error:
                for lane in lanes:
                    lane.fail(one_line(error), NEEDS)
        if ablations:
            ablations.keep()
        wall = time.perf_counter() - begin
        merged = _merge_ranks(the_pass)
        if self.rank == 0:
            run = self._run_entry(wall, the_pass, batch, len(jobs), resumed, bool(ablations and ablations.cached))
            for job, lane in zip(jobs, lanes, strict=True):
                self._finish(job, lane, calibration, merged, run)
        self.state.drop(key, set(keys))
        self.outcome.computed += len(jobs)
        for job in jobs:
            job.missing = {}

    def _stream(self, the_pass: Pass, keys: list[str], key: str, batch: int) -> int:
        """Run the pass with progress, saving its state now and then and at its end."""
        last = time.monotonic()
        shown = the_pass.done

        def after_batch() -> None:
            nonlocal last, shown
            self.reporter.advance(the_pass.done - shown)
            shown = the_pass.done
            if time.monotonic() - last >= SAVE_EVERY or the_pass.done == len(the_pass.contexts):
                self.state.save(key, _snapshot(the_pass, keys))
                last = time.monotonic()

        label = f"{len(keys)} SAE{'s' * (len(keys) > 1)} at {the_pass.write}"
        self.reporter.begin(label, len(the_pass.contexts), the_pass.done)
        try:
            return the_pass.run(batch, after_batch)
        finally:
            self.reporter.end()

    def _run_entry(
        self, wall: float, the_pass: Pass, batch: int, together: int, resumed: bool, cached: bool
    ) -> dict[str, Any]:
        tokens = the_pass.contexts.token_ids.size
        return {
            "provenance": provenance(self.subject.device)
            | {"batch_size": batch, "ranks": self.world, "saes_together": together, "forked": self.subject.forks},
            "timings": {
                **{stage: round(s, 3) for stage, s in self.timings.items()},
                "pass": round(wall, 3),
                "tokens_per_second": round(tokens / wall, 1),
                "resumed": resumed,
                "ablations_cached": cached,
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
        }

    def _finish(self, job: Job, lane: Lane, calibration: Calibration, tally: Tally, run: dict[str, Any]) -> None:
        """Scores, intervals and units of one SAE into its record, and the record onto disk."""
        record = job.record
        assert record is not None
        record.calibration = {
            "median_norm": calibration.median_norm,
            "threshold": calibration.threshold if np.isfinite(calibration.threshold) else None,
        }
        record.corpus["tokens"] = {"scored": tally.scored, "outliers": tally.outliers, "special": tally.special}
        units = {}
        for name, metric in job.missing.items():
            instance = lane.metrics.get(name) or metric(lane.sae)
            frame = finish_metric(
                record, instance, lane, self.request.seed, self.subject.loaded.tokenizer, cache_folder()
            )
            if frame is not None:
                units[name] = frame
        record.runs.append({"metrics": list(job.missing), **run})
        record.write(record_path(self.request.results, record), units)


def _snapshot(the_pass: Pass, keys: list[str]) -> dict[str, Any]:
    tally = the_pass.tally
    lanes = zip(keys, the_pass.lanes, strict=True)
    return {
        "done": the_pass.done,
        "tally": [tally.scored, tally.outliers, tally.special],
        "lanes": {k: {m.name: get_state(m) for m in lane.alive} for k, lane in lanes},
        "errors": {k: lane.errors for k, lane in zip(keys, the_pass.lanes, strict=True)},
    }


def _restore(the_pass: Pass, keys: list[str], saved: dict[str, Any] | None) -> bool:
    """Put a saved state into a pass; whether there was one."""
    if saved is None:
        return False
    the_pass.done = saved["done"]
    the_pass.tally = Tally(*saved["tally"])
    for key, lane in zip(keys, the_pass.lanes, strict=True):
        lane.errors = dict(saved["errors"][key])
        for metric in lane.alive:
            set_state(metric, saved["lanes"][key][metric.name])
    return True


def _merge_ranks(the_pass: Pass) -> Tally:
    """On rank 0: every rank's sums in the lanes of this pass, and the tokens of all ranks."""
    everyone = ranks.gather(_snapshot(the_pass, [str(i) for i in range(len(the_pass.lanes))]))
    for other in everyone[1:]:
        for i, lane in enumerate(the_pass.lanes):
            for name, message in other["errors"][str(i)].items():
                lane.errors.setdefault(name, message)
            for metric in lane.alive:
                fresh = type(metric)(lane.sae)
                set_state(fresh, other["lanes"][str(i)][metric.name])
                metric.merge(fresh)
    tallies = [s["tally"] for s in everyone] or [[0, 0, 0]]
    return Tally(*(sum(column) for column in zip(*tallies, strict=True)))
