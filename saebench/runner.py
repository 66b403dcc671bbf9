"""Run a request: from SAEs and a task to records on disk. The same from Python and from the command line."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from saebench import ranks
from saebench.errors import SaebenchError
from saebench.judging.ledger import Mode
from saebench.results import Record, require_writable
from saebench.running.judge import open_session
from saebench.running.measure import ModelRun, Outcome, Reporter, Silent, load_subject
from saebench.running.plan import Failure, make_jobs, read_tasks, wanted_metrics
from saebench.running.request import Request, check_request
from saebench.sae import SAE

T = TypeVar("T")


class RunError(SaebenchError):
    """Some SAEs could not be measured; `records` holds what was."""

    def __init__(self, failures: list[Failure], records: list[Record]) -> None:
        super().__init__("; ".join(f"{f.name}: {f.error}" for f in failures))
        self.failures = failures
        self.records = records


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
    data: str | Path | None = None,
    text_column: str = "text",
    label_column: str = "label",
    group_column: str | None = None,
    judge: str | None = None,
    judge_url: str | None = None,
    judge_cache: str | Path | None = None,
    judge_batch: bool = False,
    judge_thinking: int = 0,
    replay: Mode = "record",
    max_cost: float | None = None,
    reporter: Reporter | None = None,
) -> list[Record]:
    """Measure SAEs and write their records; the same as `saebench run`.

    Args:
        saes: checkpoint paths, or SAEs in memory. A folder of checkpoints, or a pattern like "runs/*", stands for all of them.
        names: one for each SAE; by default from their paths.
        model: alias, hub id, folder or GGUF file; by default the one each checkpoint names.
        revision: of a hub model.
        hook: where the SAEs read; by default what each checkpoint says.
        task: name, name@version, a suite (`probing`: one record per SAE and task), or a TOML file.
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
        data, text_column, label_column, group_column: probe for the labels of this table in place of a task.
        judge: provider:model of the language model that metrics ask, for those that ask one.
        judge_url: another address that speaks the provider's protocol; it gets no key but $SAEBENCH_JUDGE_KEY.
        judge_cache: the file of the judge's replies; by default in the cache folder.
        judge_batch: hand the calls over as a batch, at half the price, and wait for it.
        judge_thinking: tokens that a reply of the model at `judge_url` may spend on thoughts.
        replay: "record" asks what the file of replies does not hold, "live" asks everything again and puts it in
            its place (older records made from that file can then be replayed only from a copy of it), "only" asks nothing.
        max_cost: US dollars that the judge may cost; the run stops before passing it.
        reporter: hears about progress.

    Returns:
        One record per SAE (and task of a suite), in order.

    Raises:
        UsageError: the request makes no sense.
        RunError: some SAEs failed; its `records` are the others'.
    """
    several = [saes] if isinstance(saes, str | Path | SAE) else list(saes)
    outcome = execute(
        Request(
            saes=several, names=names, model=model, revision=revision, hook=hook, task=task, tokens=tokens,
            metrics=metrics, results=Path(results), batch_size=batch_size, device=device, dtype=dtype,
            limit=limit, seed=seed, force=force, strict=strict, format=format, k=k, scale=scale,
            ignore_keys=ignore_keys, data=data, text_column=text_column, label_column=label_column,
            group_column=group_column, judge=judge, judge_url=judge_url, judge_cache=judge_cache,
            judge_batch=judge_batch, judge_thinking=judge_thinking, replay=replay, max_cost=max_cost,
        ),
        reporter or Silent(),
    )  # fmt: skip
    if outcome.failures:
        raise RunError(outcome.failures, outcome.records)
    return outcome.records


def execute(request: Request, reporter: Reporter) -> Outcome:
    """Run a request, every task of a suite in turn; a failing SAE does not stop the others."""
    check_request(request)
    require_writable(request.results)
    tasks = read_tasks(request)
    wanted = [wanted_metrics(request, task) for task in tasks]
    rank, _ = ranks.start()
    judge = open_session(request, wanted, reporter)
    jobs, failures = make_jobs(request, reporter.message)
    ranks.require_same("set of SAEs that it could load", [(job.name, job.sha256, job.model) for job in jobs])
    outcome = Outcome(several=len(jobs) + len(failures) > 1)
    for failure in failures:
        outcome.fail(failure, reporter)
    for model in dict.fromkeys(job.model for job in jobs):
        mine = [job for job in jobs if job.model == model]
        try:
            subject, timings = _everywhere(partial(load_subject, request, model, reporter))
        except SaebenchError as error:
            for job in mine:
                outcome.fail(Failure(job.name, error), reporter)
            continue
        for task, metrics in zip(tasks, wanted, strict=True):
            todo = [replace(job, record=None, missing={}) for job in mine]
            try:
                ModelRun(request, task, metrics, subject, timings, reporter, outcome, judge).run(todo)
            except SaebenchError as error:
                for job in todo:
                    if job.missing or job.record is None:
                        outcome.fail(Failure(job.name, error), reporter)
            if rank == 0:
                done = [job.record for job in todo if job.record is not None and job.record.path is not None]
                outcome.records += done
    if judge is not None:
        judge.close()
        if rank == 0:
            reporter.message(judge.ledger.spent())
    order = {job.sha256: i for i, job in enumerate(jobs)}
    outcome.records.sort(key=lambda record: order[record.sae["sha256"]])
    return outcome


def _everywhere(load: Callable[[], T]) -> T:
    """What each rank loads for itself; where one cannot, none goes on without it.

    Raises:
        SaebenchError: this rank's own, or the first that another had.
    """
    problem = None
    try:
        loaded = load()
    except SaebenchError as error:
        problem = error
    message = ranks.first(None if problem is None else str(problem))
    if message is not None:
        raise problem or SaebenchError(message)
    return loaded
