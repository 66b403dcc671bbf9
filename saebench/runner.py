"""Run a request: from SAEs and a task to records on disk. The same from Python and from the command line."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from saebench import ranks
from saebench.errors import SaebenchError
from saebench.options import takes
from saebench.results import Record, require_writable
from saebench.running.judge import open_session
from saebench.running.measure import measure
from saebench.running.plan import all_wanted, make_jobs, read_tasks
from saebench.running.reporting import Failure, Outcome, Reporter, Silent
from saebench.running.request import Request, check_request
from saebench.running.setting import load_source, make_setting

T = TypeVar("T")


class RunError(SaebenchError):
    """Some SAEs could not be measured; `records` holds what was."""

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
        try:
            subject, timings = _everywhere(partial(load_source, request, tasks, model, reporter))
        except SaebenchError as error:
            for job in mine:
                outcome.fail(Failure(job.name, error), reporter)
            continue
        for task, metrics in zip(tasks, wanted, strict=True):
            try:
                setting = make_setting(request, task, metrics, subject, timings, reporter, judge)
            except SaebenchError as error:
                for job in mine:
                    outcome.fail(Failure(job.name, error), reporter)
                continue
            for job, result in measure(setting, mine):
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
