"""Single calls to a judge, several at once, with retries."""

import random
import threading
from collections import Counter, deque
from queue import SimpleQueue
from typing import Any

from saebench.errors import one_line
from saebench.judge import JudgeError, NoAnswer, Reply, Request, sound
from saebench.judging.ledger import Ledger

# Calls in a row without a reply after which the run stops.
GIVE_UP = 20
# Limit on the seconds between two attempts without a Retry-After …
LONGEST_PAUSE = 8.0
# … and with one.
LONGEST_WAIT = 3600.0


class SingleCalls:
    """Sends requests, retries, and stops at the cost limit."""

    def __init__(self, ledger: Ledger, pause: float) -> None:
        """
        Args:
            ledger: holds the replies and the cost limit.
            pause: seconds before the second attempt at a call; doubled before each further one.
        """
        self.ledger, self.judge, self.pause = ledger, ledger.judge, pause

    def ask(self, missing: dict[str, Request]) -> None:
        """Send requests, `concurrency` at a time; only this thread writes, so that a kill loses only calls in progress."""
        work: SimpleQueue[tuple[str, Request, float] | None] = SimpleQueue()
        done: SimpleQueue[tuple[str, Reply | BaseException | None]] = SimpleQueue()
        stop = threading.Event()
        threads = min(self.judge.concurrency, len(missing))
        for _ in range(threads):  # daemons: an interrupted run must not wait for a server that hangs
            threading.Thread(target=self._work, args=(work, done, stop), daemon=True).start()
        try:
            self._feed(missing, threads, work, done, stop)
        finally:
            stop.set()
            for _ in range(threads):
                work.put(None)

    def _feed(self, missing: dict[str, Request], threads: int, work: Any, done: Any, stop: threading.Event) -> None:
        """Start attempts, each only within the cost limit, and collect their outcomes."""
        waiting = deque((key, 0.0) for key in missing)  # (key, delay in seconds)
        under_way: dict[str, float] = {}
        attempts: Counter[str] = Counter()
        problem: BaseException | None = None
        failures = 0
        while under_way or (waiting and problem is None):
            # The first call runs alone: it settles which parameters the provider takes, before there is much to lose.
            most = threads if self.ledger.settled else 1
            if waiting and problem is None and len(under_way) < most:
                key, wait = waiting[0]
                bound = self.ledger.affords(missing[key], sum(under_way.values()))
                if bound is not None:
                    waiting.popleft()
                    work.put((key, missing[key], wait))
                    under_way[key] = bound
                    continue
                if not under_way:
                    raise self.ledger.limit_reached(len(waiting))
            answered = []
            for key, came in _arrived(done):
                del under_way[key]
                attempts[key] += 1
                if isinstance(came, NoAnswer):
                    again = self._again(missing[key], came, attempts[key])
                    if again is not None:
                        waiting.appendleft((key, again))
                        continue
                    came = Reply("failed", problem=str(came))
                elif isinstance(came, Reply):
                    self.ledger.charge(missing[key], came)
                else:  # no request can be answered, a worker was stopped, or this call was not sent
                    problem = problem or came
                    continue
                answered.append((key, missing[key], came))
                failures = failures + 1 if came.state == "failed" else 0
                if failures == GIVE_UP:
                    problem = problem or _gave_up(came.problem)
            self.ledger.keep(answered)
            if problem:
                stop.set()
        if problem:
            raise problem

    def _again(self, request: Request, came: NoAnswer, attempts: int) -> float | None:
        """Charge an attempt without a reply; return the delay of the next one in seconds, None for no retry."""
        if came.billed:
            self.ledger.charge(request, None)
        if came.wait is None or attempts > self.judge.retries:
            return None
        own = min(LONGEST_PAUSE, self.pause * 2 ** (attempts - 1)) * random.uniform(0.75, 1)
        return min(came.wait, LONGEST_WAIT) if came.wait > 0 else own

    def _work(self, work: Any, done: Any, stop: threading.Event) -> None:
        while (item := work.get()) is not None:
            key, request, wait = item
            came: Reply | BaseException | None = None
            try:
                if not (stop.wait(wait) if wait else stop.is_set()):
                    came = sound(self.judge.complete(request))
            except (JudgeError, NoAnswer) as error:
                came = error
            except Exception as error:  # a third-party judge
                came = Reply("failed", problem=f"{type(error).__name__}: {one_line(error)}")
            except BaseException as error:  # raised again in the waiting thread
                came = error
            done.put((key, came))


def _arrived(done: Any) -> list[Any]:
    """All outcomes so far, at least one: written together, since each transaction costs milliseconds."""
    found = [done.get()]
    while not done.empty():
        found.append(done.get())
    return found


def _gave_up(last: str) -> JudgeError:
    return JudgeError(
        f"{GIVE_UP} calls in a row got no reply (the last: {last}); earlier replies are kept: run the same command again when "
        "the judge answers"
    )
