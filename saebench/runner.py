"""Run a request: from SAEs and a task to records on disk, for Python and the command line alike."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from saebench import ranks
from saebench.errors import SaebenchError
from saebench.judging.session import JudgeSession
from saebench.metric import Metric
from saebench.options import takes
from saebench.results import Record, require_writable
from saebench.running.judge import open_session
from saebench.running.measure import Result, measure
from saebench.running.plan import Job, all_wanted, make_jobs, read_tasks
from saebench.running.reporting import Failure, Outcome, Reporter, Silent
from saebench.running.request import Request, check_request
from saebench.running.setting import load_source, make_setting
from saebench.task import Task


class RunError(SaebenchError):
    """Some SAEs could not be measured; `records` holds the records of the others."""

    def __init__(self, failures: list[Failure], records: list[Record]) -> None:
        super().__init__("; ".join(f"{f.name}: {f.error}" for f in failures))
        self.failures = failures
        self.records = records


@takes(Request)
def run(request: Request) -> list[Record]:
    """Measure SAEs and write their records; the same as `saebench run`.

    SAEs in memory, strings and paths may be mixed. `reporter` receives progress.

    Returns:
        One record per SAE (and task of a suite), in order.

    Raises:
        UsageError: the request is invalid.
        RunError: some SAEs failed; its `records` are the others'.
    """
    outcome = execute(request, request.reporter or Silent())
    if outcome.failures:
        raise RunError(outcome.failures, outcome.records)
    return outcome.records


def execute(request: Request, reporter: Reporter) -> Outcome:
    """Run a request, every task of a suite in turn; a failing SAE does not stop the others."""
    check_request(request)
    require_writable(request.folder)
    tasks = read_tasks(request)
    wanted = all_wanted(request, tasks)
    rank, _ = ranks.start()
    judge = open_session(request, wanted, reporter)
    jobs, failures = make_jobs(request, reporter.message, tasks)
    ranks.require_same("set of SAEs that it could load", [(job.name, job.sha256, job.model) for job in jobs])
    outcome = Outcome(several=len(jobs) + len(failures) > 1)
    for failure in failures:
        outcome.fail(failure, reporter)
    for model in dict.fromkeys(job.model for job in jobs):
        mine = [job for job in jobs if job.model == model]
        for job, result in _on_model(request, list(zip(tasks, wanted, strict=True)), model, mine, reporter, judge):
            if isinstance(result, SaebenchError):
                outcome.fail(Failure(job.name, result), reporter)
            elif rank == 0:
                outcome.records.append(result)
    if judge is not None:
        judge.close()
        if rank == 0:
            reporter.message(judge.ledger.spent())
    order = {job.sha256: i for i, job in enumerate(jobs)}
    outcome.records.sort(key=lambda record: order[record.sae["sha256"]])
    return outcome


def _on_model(
    request: Request,
    wanted: Sequence[tuple[Task, Mapping[str, type[Metric]]]],
    model: str,
    jobs: Sequence[Job],
    reporter: Reporter,
    judge: JudgeSession | None,
) -> Iterator[tuple[Job, Result]]:
    """The results of every task for the SAEs of one model, which is loaded once.

    Args:
        wanted: tasks, each with its metric classes by name.
    """
    tasks = [task for task, _ in wanted]
    try:
        source, seconds = ranks.everywhere(partial(load_source, request, tasks, model, reporter))
    except SaebenchError as error:
        yield from ((job, error) for job in jobs)
        return
    for task, metrics in wanted:
        try:
            setting = make_setting(request, task, metrics, source, seconds, reporter, judge)
        except SaebenchError as error:
            yield from ((job, error) for job in jobs)
            continue
        yield from measure(setting, jobs)
