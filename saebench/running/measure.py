"""Everything of a request that happens on one language model: what is missing, calibration, passes, records."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import saebench
from saebench import ranks
from saebench.cache import cache_folder
from saebench.corpus import Contexts, special_ids, task_contexts, token_contexts
from saebench.errors import NonFiniteError, SaebenchError, UsageError, one_line
from saebench.forward.ablation import Ablations
from saebench.forward.calibration import Calibration, calibrate, check_l0
from saebench.hookpoint import HookPoint
from saebench.judging.session import JudgeSession
from saebench.metric import NEEDS, Env
from saebench.models import default_device, default_dtype, load_model
from saebench.results import Record, add_to_record, fingerprint, read_record, record_path
from saebench.running.judge import judge_settings
from saebench.running.plan import Failure, Job, named_by_checkpoint
from saebench.running.provenance import provenance
from saebench.running.request import Request
from saebench.running.scoring import finish_metric
from saebench.running.state import StateFolder
from saebench.stream import Lane, Pass, Tally
from saebench.subject import Subject
from saebench.task import Task

# SAEs that go through one pass together; more of them run in further passes.
LANES = 16
# Streams a batch (the model's own and one per SAE, for each context), before anything is known about memory. An accelerator
# starts higher and halves until it fits. On a CPU this keeps a layer's temporaries below 32 MiB for a small model: larger ones
# are mapped anew every time (with 16 contexts a batch, 8 SAEs together took as long per SAE as 4).
STREAMS = {"cpu": 32, "cuda": 128}
# Seconds between saves of a pass's state: what a killed run loses at most.
SAVE_EVERY = 15.0


def default_batch(device: str, saes: int, length: int = 128) -> int:
    """Contexts a batch for so many SAEs that the stream forks for: none, where the model stops at the hook point.

    Args:
        length: of the longest context; of shorter ones more go into a batch.
    """
    streams = STREAMS["cuda" if device.startswith("cuda") else "cpu"]
    return max(1, streams * max(1, 128 // length) // (1 + saes))


class Reporter(Protocol):
    """Hears how a run goes; the command line shows it."""

    def message(self, text: str) -> None: ...

    def begin(self, label: str, total: int, done: int, unit: str = "contexts") -> None: ...

    def advance(self, contexts: int) -> None: ...

    def end(self) -> None: ...


class Silent:
    """A reporter that says nothing."""

    def message(self, text: str) -> None: ...

    def begin(self, label: str, total: int, done: int, unit: str = "contexts") -> None: ...

    def advance(self, contexts: int) -> None: ...

    def end(self) -> None: ...


@dataclass
class Outcome:
    """What a run came to, in the order of the request.

    Attributes:
        records: of what was measured.
        failures: what could not be.
        several: whether more than one SAE was asked for, so that others go on where one fails.
    """

    records: list[Record] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    several: bool = False

    def fail(self, failure: Failure, reporter: Reporter) -> None:
        """Note what cannot be measured, and say it while the others go on."""
        self.failures.append(failure)
        if self.several:
            reporter.message(f"left out: {failure.name}: {one_line(failure.error, 1000)}")


def load_subject(request: Request, model: str, reporter: Reporter) -> tuple[Subject, dict[str, float]]:
    """The language model on this rank's device, and how long loading it took."""
    device = ranks.own_device(request.device or default_device())
    begin = time.perf_counter()
    reporter.message(f"loading {model}")
    with named_by_checkpoint(request, model):
        loaded = load_model(
            model, revision=request.revision, dtype=request.dtype or default_dtype(device), device=device
        )
    return Subject(loaded), {"load_model": time.perf_counter() - begin}


class ModelRun:
    """Everything of a request that happens on one language model, for one task."""

    def __init__(
        self,
        request: Request,
        task: Task,
        wanted: dict[str, Any],
        subject: Subject,
        timings: dict[str, float],
        reporter: Reporter,
        outcome: Outcome,
        judge: JudgeSession | None = None,
    ) -> None:
        """
        Args:
            subject: the loaded model, shared by the tasks of a suite.
            timings: seconds that loading it took.
            judge: what metrics ask that ask one.
        """
        self.judge = judge
        self.request, self.task, self.wanted = request, task, wanted
        self.reporter, self.outcome = reporter, outcome
        self.rank, self.world = ranks.start()
        self.jobs: list[Job] = []
        self.timings = dict(timings)
        self.subject = subject
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
        self.jobs = jobs
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
        self.outcome.fail(Failure(job.name, error), self.reporter)
        job.missing = {}

    def _plan(self, job: Job) -> None:
        """Give the job its record (a new one, or the one that exists) and find the metrics it lacks.

        Rank 0's disk counts, which another rank's may differ from.
        """
        skeleton = self._skeleton(job)
        ranks.require_same(f"SAE, model or text ({job.name})", skeleton.fingerprint)
        job.record, missing = ranks.decide(lambda: self._find(job, skeleton))
        job.missing = {name: self.wanted[name] for name in missing}

    def _find(self, job: Job, skeleton: Record) -> tuple[Record, list[str]]:
        """The record that is there, or the skeleton of a new one; and the names of the metrics that it lacks."""
        path = record_path(self.request.results, skeleton)
        record = read_record(path) if path.exists() else skeleton
        have = {name: entry["version"] for name, entry in record.metrics.items() if name not in record.errors}
        missing = [n for n, metric in self.wanted.items() if self.request.force or have.get(n) != metric.version]
        if not missing:
            self.reporter.message(f"{job.name}: already measured, {path}")
        return record, missing

    def _skeleton(self, job: Job) -> Record:
        loaded, contexts = self.subject.loaded, self.contexts
        corpus = {"fingerprint": contexts.fingerprint(), "contexts": len(contexts), "length": contexts.length,
                  "documents": len(set(contexts.document_id.tolist())), "available": contexts.available,
                  "dropped_tokens": contexts.dropped_tokens}  # fmt: skip
        if contexts.labels is not None:
            corpus |= {"labels": contexts.labels.about(), "left_out": dict(contexts.left_out)}
        settings = {"model_dtype": self.subject.dtype, "sae_dtype": "float32", "seed": self.request.seed,
                    "limit": self.request.limit, "max_norm": self.task.contexts.max_norm,
                    **judge_settings(self.judge.judge if self.judge else None, self.wanted)}  # fmt: skip
        task = {"name": self.task.name, "version": self.task.version, "sha256": self.task.sha256()}
        about = dict(job.about)
        about["warnings"] = about["warnings"] + self._habits(about, job.read)
        record = Record(
            "", self.request.limit is not None, about,
            {"id": loaded.id, "sha256": loaded.sha256, "revision": loaded.revision,
             "type": self.subject.model.config.model_type},
            str(job.read), str(job.write), task, corpus, settings,
        )  # fmt: skip
        record.fingerprint = fingerprint(record.identity)
        return record

    def _habits(self, about: dict[str, Any], read: HookPoint) -> list[str]:
        """Warnings where the SAE was trained in another way than it is measured."""
        out = []
        bos = self.task.contexts.bos
        if self.request.tokens is None and about["prepend_bos"] not in (None, bos):
            out.append(f"trained with{'' if about['prepend_bos'] else 'out'} BOS, measured with{'' if bos else 'out'}")
        if about["model"] is not None and about["model"] != self.subject.loaded.id:
            out.append(f"made for model '{about['model']}', measured on '{self.subject.loaded.id}'")
        if about["hook"] is not None and about["hook"] != str(read) and _place(about["hook"]) != read:
            out.append(f"made for hook point '{about['hook']}', measured at {read}")
        return out

    # --- one (read, write) place --------------------------------------------------------------------------------------

    def _group(self, read: HookPoint, write: HookPoint, jobs: list[Job]) -> None:
        forks = any("token_losses" in metric.needs for job in jobs for metric in job.missing.values())
        batch = self.request.batch_size or default_batch(
            self.subject.device.type, min(len(jobs), LANES) if forks else 0, self.contexts.length
        )
        try:
            with self._timed("calibrate"):
                self.subject.check(write)
                calibration = calibrate(
                    self.subject, self.contexts, read, write, self.task.contexts.max_norm, batch, cache_folder()
                )
        except NonFiniteError as error:
            self._record_error(jobs, error)
            return
        fit = [job for job in jobs if self._fits(job, calibration)]
        key = self._state_key(read, write)
        lane_keys = {self._lane_key(job): job for job in fit}
        # First those that an interrupted run had begun, together as they were; then the others.
        saved = (None if self.request.force else self.state.find(key, set(lane_keys))) or {"lanes": {}}
        begun = [lane_keys[lane] for lane in ranks.common(saved["lanes"]) if lane in lane_keys]
        if begun:
            self._pass(read, write, begun, calibration, batch, key, saved)
        rest = [job for job in fit if job not in begun]
        for start in range(0, len(rest), LANES):
            self._pass(read, write, rest[start : start + LANES], calibration, batch, key, None)

    def _record_error(self, jobs: list[Job], error: SaebenchError) -> None:
        """Records that say why there are no numbers; what needs no activations is still measured."""
        for job in jobs:
            lane = self._lane(job)
            lane.fail(one_line(error), NEEDS)
            if self.rank == 0:
                self._finish(job, lane, {"provenance": provenance(self.subject.device), "timings": dict(self.timings)})
            job.missing = {}

    def _lane(self, job: Job) -> Lane:
        sae = job.sae(self.request).to(self.subject.device)
        lane = Lane(self._lane_key(job), sae, {})
        for name, metric in job.missing.items():
            try:
                lane.metrics[name] = metric(sae)
            except Exception as error:  # a stranger's metric
                lane.errors[name] = f"{type(error).__name__}: {one_line(error)}"
        return lane

    def _state_key(self, read: HookPoint, write: HookPoint) -> str:
        return fingerprint(
            {"saebench": saebench.__version__, "model": self.subject.loaded.sha256, "read": str(read),
             "write": str(write), "rank": self.rank, "world": self.world, "corpus": self.contexts.fingerprint()}
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
                    f"the SAE reads {sae.d_in} and writes {sae.d_out} numbers per token, but {job.read} of "
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
        begin, start = time.perf_counter(), 0
        problem = None
        try:
            the_pass = self._prepare(read, write, [self._lane(job) for job in jobs], calibration)
            if saved:
                the_pass.restore(saved)
                start = the_pass.done
            batch = self._stream(the_pass, key, batch)
        except SaebenchError as error:
            problem = str(error)
        # A rank that failed alone must not leave the others waiting for its sums.
        if message := ranks.first(problem):
            raise SaebenchError(message)
        if the_pass.ablations:
            the_pass.ablations.keep()
        wall = time.perf_counter() - begin
        for other in ranks.gather(the_pass.snapshot())[1:]:
            the_pass.absorb(other)
        if self.rank == 0:
            run = self._run_entry(wall, the_pass, batch, saved is not None, start)
            try:
                for job, lane in zip(jobs, the_pass.lanes, strict=True):
                    self._finish(job, lane, run, calibration, the_pass.tally)
                    job.missing = {}
            except SaebenchError as error:
                problem = str(error)
        if message := ranks.first(problem):
            raise SaebenchError(message)
        for job in jobs:
            job.missing = {}
        done = {
            j.record.fingerprint
            for j in self.jobs
            if j.record is not None and not j.missing and not self._unasked(j.record)
        }
        self.state.drop(key, done)

    def _unasked(self, record: Record) -> bool:
        """Whether a judge could not be asked to the end: what the pass kept for it is worth keeping till the next run."""
        return any(metric.asks and name in record.errors for name, metric in self.wanted.items())

    def _prepare(self, read: HookPoint, write: HookPoint, lanes: list[Lane], calibration: Calibration) -> Pass:
        """A pass over this rank's own contexts: every world-th of them; padded ones by length."""
        mine = self.contexts.by_length(np.arange(len(self.contexts))[self.rank :: self.world])
        contexts = self.contexts.take(mine)
        ablations = None
        if any(lane.needs("token_losses") for lane in lanes) and len(mine):
            ablations = Ablations(self.subject, contexts, write, calibration, cache_folder())
        return Pass(self.subject, contexts, mine, read, write, lanes, calibration, ablations, self.request.seed)

    def _stream(self, the_pass: Pass, key: str, batch: int) -> int:
        """Run the pass with progress, saving its state now and then and at its end."""
        if not any(metric.needs for lane in the_pass.lanes for metric in lane.alive):
            return batch
        last = time.monotonic()
        shown = the_pass.done

        def after_batch() -> None:
            nonlocal last, shown
            self.reporter.advance(the_pass.done - shown)
            shown = the_pass.done
            if time.monotonic() - last >= SAVE_EVERY or the_pass.done == len(the_pass.contexts):
                self.state.save(key, the_pass.snapshot())
                last = time.monotonic()

        n = len(the_pass.lanes)
        label = f"{n} SAE{'s' * (n > 1)} at {the_pass.write}"
        self.reporter.begin(label, len(the_pass.contexts), the_pass.done)
        try:
            return the_pass.run(batch, after_batch)
        except NonFiniteError as error:
            for lane in the_pass.lanes:
                lane.fail(one_line(error), NEEDS)
            return batch
        finally:
            self.reporter.end()

    def _run_entry(self, wall: float, the_pass: Pass, batch: int, resumed: bool, start: int) -> dict[str, Any]:
        """Provenance, which the same run repeats, and timings, which it does not."""
        own = {"batch_size": batch, "ranks": self.world, "forked": self.subject.forks}
        share = 1 - start / max(1, len(the_pass.contexts))  # a resumed run did not do the rest
        timings: dict[str, Any] = {stage: round(seconds, 3) for stage, seconds in self.timings.items()}
        timings |= {
            "pass": round(wall, 3),
            "tokens_per_second": round(self.world * the_pass.contexts.tokens * share / wall, 1),
            "saes_together": len(the_pass.lanes),
            "resumed": resumed,
            "ablations_cached": the_pass.ablations is not None and the_pass.ablations.cached,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        return {"provenance": provenance(self.subject.device) | own, "timings": timings}

    def _finish(
        self,
        job: Job,
        lane: Lane,
        run: dict[str, Any],
        calibration: Calibration | None = None,
        tally: Tally | None = None,
    ) -> None:
        """Scores, intervals and units of one SAE into its record, and the record onto disk."""
        record = job.record
        assert record is not None
        if calibration is not None:
            finite = np.isfinite(calibration.threshold)
            record.calibration = {
                "median_norm": calibration.median_norm,
                "threshold": calibration.threshold if finite else None,
            }
        if tally is not None and sum(astuple(tally)):
            record.corpus["tokens"] = asdict(tally)
        kept, seconds, judged = {}, {}, {}
        for name, metric in job.missing.items():
            begin = time.perf_counter()
            instance = lane.metrics.get(name, metric)
            judge = self.judge if metric.asks else None
            if judge is not None:
                judge.ledger.begin()
            env = Env(lane.sae, self.subject.loaded.tokenizer, self.request.seed, cache_folder(), judge)
            kept[name] = finish_metric(record, instance, lane.errors.get(name), env)
            if judge is not None:
                judged[name] = judge.ledger.about()
            seconds[name] = round(time.perf_counter() - begin, 3)
        timings = run["timings"] | {"scores": seconds}
        entry = {"metrics": list(job.missing), **run, "timings": timings}
        if judged and self.judge is not None:
            entry["judged"] = judged
            timings["judge"] = self.judge.ledger.timings()
        record.runs.append(entry)
        units = {name: k.units for name, k in kept.items() if k.units is not None}
        files = {name: k.files for name, k in kept.items() if k.files}
        job.record = add_to_record(self.request.results, record, list(job.missing), units, files)


def _place(hook: str) -> HookPoint | None:
    try:
        return HookPoint.parse(hook)
    except UsageError:
        return None
