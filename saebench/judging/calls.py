"""Asking a judge one call at a time, several at once."""

import random
import threading
from collections import Counter, deque
from queue import SimpleQueue
from typing import Any

from saebench.errors import one_line
from saebench.judge import JudgeError, NoAnswer, Reply, Request
from saebench.judging.ledger import Ledger

# So many calls in a row without an answer mean that there will be none.
GIVE_UP = 20
# Seconds between two attempts at most, where the server does not say.
LONGEST_PAUSE = 8.0
# And where it does say, whatever it says.
LONGEST_WAIT = 3600.0


class SingleCalls:
    """Sends requests, tries again what may be answered yet, and stops at the limit."""

    def __init__(self, ledger: Ledger, pause: float) -> None:
        """
        Args:
            ledger: what takes the replies and knows the limit.
            pause: seconds before the second attempt at a call; twice as long before each further one.
        """
        self.ledger, self.judge, self.pause = ledger, ledger.judge, pause

    def ask(self, missing: dict[str, Request]) -> None:
        """Send requests, so many at a time; this thread alone writes, so that a kill loses only what is under way."""
        work: SimpleQueue[tuple[str, Request, float] | None] = SimpleQueue()
        done: SimpleQueue[tuple[str, Reply | BaseException | None]] = SimpleQueue()
        stop = threading.Event()
        threads = min(self.judge.concurrency, len(missing))
        for _ in range(threads):  # daemons: an interrupted run does not wait for a server that hangs
            threading.Thread(target=self._work, args=(work, done, stop), daemon=True).start()
        try:
            self._feed(missing, threads, work, done, stop)
        finally:
            stop.set()
            for _ in range(threads):
                work.put(None)

    def _feed(self, missing: dict[str, Request], threads: int, work: Any, done: Any, stop: threading.Event) -> None:
        """Hand out attempts, each only if the limit allows it, and take in what became of them."""
        waiting = deque((key, 0.0) for key in missing)  # and after how many seconds
        under_way: dict[str, float] = {}
        attempts: Counter[str] = Counter()
        problem: BaseException | None = None
        failures = 0
        while under_way or (waiting and problem is None):
            # The first call goes alone: what a provider does not know is settled once, and before there is much to lose.
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
                else:  # the judge cannot be asked, a worker was stopped, or this call was not sent any more
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
        """Count an attempt without an answer; in how many seconds to make another, None: not at all."""
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
                    came = self.judge.complete(request)
            except (JudgeError, NoAnswer) as error:
                came = error
            except Exception as error:  # a stranger's judge
                came = Reply("failed", problem=f"{type(error).__name__}: {one_line(error)}")
            except BaseException as error:  # raised where the run waits for it
                came = error
            done.put((key, came))


def _arrived(done: Any) -> list[Any]:
    """What has come by now, and at least one: to be written to disk at once, since each time costs some milliseconds."""
    found = [done.get()]
    while not done.empty():
        found.append(done.get())
    return found


def _gave_up(last: str) -> JudgeError:
    return JudgeError(
        f"{GIVE_UP} calls in a row got no answer (the last: {last}); what was answered is kept: run the same command again when "
        "the judge answers"
    )
