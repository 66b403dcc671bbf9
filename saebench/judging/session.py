"""Asking a judge: replay what is known, send what is missing, count, and stop before a limit is passed.

The replies come back in the order of the requests, whatever the order in which they were answered.
"""

import json
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, Literal, Protocol
from uuid import uuid4

from saebench.errors import one_line
from saebench.judge import BatchLost, Capabilities, Judge, JudgeError, NoAnswer, Reply, Request
from saebench.judging.cache import HandedOver, ReplyCache
from saebench.judging.prices import Price, cost_bound, cost_of

Mode = Literal["record", "live", "only"]
# So many calls in a row without an answer mean that there will be none.
GIVE_UP = 20
# Seconds between two attempts at most, where the server does not say.
LONGEST_PAUSE = 8.0
# And where it does say, whatever it says.
LONGEST_WAIT = 3600.0
# Calls made alone before a batch: one may be a request that nobody answers, so many mean that a batch would have none either.
PROBES = 3
# Requests a batch: below what every provider takes.
BATCH_ITEMS = 10_000


class Listener(Protocol):
    """Hears how many calls are done: the run's reporter."""

    def begin(self, label: str, total: int, done: int, unit: str = "contexts") -> None: ...

    def advance(self, contexts: int) -> None: ...

    def end(self) -> None: ...

    def message(self, text: str) -> None: ...


@dataclass
class Tally:
    """What a session did.

    Attributes:
        sent: calls that were answered in this run; replayed: found in the cache.
        cost: of this run in US dollars, at most; None where the price is not known. An attempt that was sent and not answered
            counts as the dearest answer.
    """

    sent: int = 0
    replayed: int = 0
    cost: float | None = None


class JudgeSession:
    """What a metric asks through, as `env.judge`; one for each run."""

    def __init__(
        self,
        judge: Judge,
        cache: ReplyCache | None = None,
        *,
        mode: Mode = "record",
        price: Price | None = None,
        max_cost: float | None = None,
        batch: bool = False,
        listener: Listener | None = None,
        poll: float = 30.0,
        pause: float = 0.5,
    ) -> None:
        """
        Args:
            judge: opened, unless the mode is "only".
            cache: where replies are kept; None keeps them in memory only.
            mode: "record" replays what the cache holds and asks the rest; "live" asks everything once more, and its replies
                take the place of those that the cache holds; "only" asks nothing, and a request that the cache does not hold is
                an error.
            price: of the judge's tokens; None: not known.
            max_cost: US dollars that this run may cost; needs a price.
            batch: hand requests over as batches and wait for them.
            poll: seconds between two looks at a batch.
            pause: seconds before the second attempt at a call; twice as long before each further one.
        """
        self.judge, self.cache, self.mode = judge, cache, "only" if judge.replays else mode
        self.price, self.max_cost, self.batch = price, max_cost, batch
        self.listener, self.poll, self.pause = listener, poll, pause
        self.tally = Tally(cost=0.0 if price else None)
        self.identity = judge.identity
        self._answers: dict[str, Reply] = {}
        self._settled = not judge.sends
        self._open = False
        self._touched: set[str] = set()

    def open(self) -> None:
        """Make the judge ready to answer, once.

        Raises:
            SaebenchError: it will not be able to.
        """
        if not self._open:
            self.judge.open()
            self._open = True

    def close(self) -> None:
        """Let go of the judge."""
        if self._open:
            self.judge.close()

    @property
    def capabilities(self) -> Capabilities:
        return self.judge.capabilities

    def complete_all(self, requests: Sequence[Request], label: str = "judge") -> list[Reply]:
        """One reply for each request, in their order.

        What a request's failure leaves is a reply that says so; equal requests are asked once.

        Raises:
            JudgeError: nothing more can be asked: a limit is reached, the provider refuses the key or the model, many calls in
                a row failed, or a request is not in the cache that is to be replayed. What was answered is kept.
        """
        keys = [request.key(self.identity) for request in requests]
        self._touched |= set(keys)
        missing = self._missing(dict(zip(keys, requests, strict=True)))
        if missing and self.mode == "only":
            first = next(iter(missing.values()))
            where = self.cache.path if self.cache else "memory"
            raise JudgeError(
                f"{len(missing)} of {len(set(keys))} calls are not in {where} (the first: {first.prompt}): "
                "record them with --replay record"
            )
        if missing:
            self.open()
            self._resume()
            if not self.batch:
                self._mention_batches(missing)
            if self.listener:
                self.listener.begin(label, len(keys), len(keys) - len(missing), "calls")
            try:
                self._ask_batches(missing) if self.batch else self._ask(missing)
            finally:
                if self.listener:
                    self.listener.end()
        return [self._answers[key] for key in keys]

    def _missing(self, wanted: dict[str, Request]) -> dict[str, Request]:
        """What is not answered yet; replays what the cache knows."""
        unknown = [key for key in wanted if key not in self._answers]
        if self.cache and self.mode != "live":
            found = self.cache.get(unknown)
            # A call that failed is worth another try, but a replay shows it as it was.
            found = {k: r for k, r in found.items() if r.state != "failed" or self.mode == "only"}
            self._answers |= found
            self.tally.replayed += len(found)
        return {key: request for key, request in wanted.items() if key not in self._answers}

    def _samplings(self) -> list[Mapping[str, Any]]:
        """The ways of sampling among the replies since `begin`."""
        replies = [self._answers[key] for key in self._touched if key in self._answers]
        found = {json.dumps(r.sampling, sort_keys=True): r.sampling for r in replies if r.sampling is not None}
        return [found[text] for text in sorted(found)]

    def _resume(self) -> None:
        """Ask as was asked for what is kept of this score, so that one score is of one way of sampling."""
        found = self._samplings()
        if len(found) == 1 and self.mode != "live":
            self.judge.resume(found[0])

    def _keep(self, answered: Sequence[tuple[str, Request, Reply]]) -> None:
        """What is in the file counts: another run may have been faster, and a replay will show its replies."""
        if not answered:
            return
        self._settled = self._settled or any(reply.state != "failed" for _, _, reply in answered)
        self._answers |= {key: reply for key, _, reply in answered}
        self.tally.sent += len(answered)
        if self.cache:
            self._answers |= self.cache.put(self.identity, answered, replaces=self.mode == "live")
        if self.listener:
            self.listener.advance(len(answered))

    def _charge(self, request: Request, reply: Reply | None, factor: float = 1.0) -> None:
        """Count what an attempt cost: at most, where there is no reply to say it."""
        if self.price and self.tally.cost is not None:
            headroom = self.judge.headroom
            cost = cost_of(self.price, request, reply, headroom) if reply else cost_bound(self.price, request, headroom)
            self.tally.cost += factor * cost

    def _affords(self, request: Request, reserved: float, factor: float = 1.0) -> float | None:
        """What one attempt at the request may cost, if the limit allows it; None if not."""
        if not self.price:
            return 0.0
        bound = factor * cost_bound(self.price, request, self.judge.headroom)
        if self.max_cost is not None and (self.tally.cost or 0.0) + reserved + bound > self.max_cost:
            return None
        return bound

    def _limit(self, left: int) -> JudgeError:
        return JudgeError(
            f"stopped before passing --max-cost {self.max_cost:g}: {left} calls are left, at most ${self.tally.cost:.4f} "
            "were spent; what was answered is kept: run it again with a higher limit"
        )

    # --- one call each ------------------------------------------------------------------------------------------------

    def _ask(self, missing: dict[str, Request]) -> None:
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
            most = threads if self._settled else 1
            if waiting and problem is None and len(under_way) < most:
                key, wait = waiting[0]
                bound = self._affords(missing[key], sum(under_way.values()))
                if bound is not None:
                    waiting.popleft()
                    work.put((key, missing[key], wait))
                    under_way[key] = bound
                    continue
                if not under_way:
                    raise self._limit(len(waiting))
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
                    self._charge(missing[key], came)
                else:  # the judge cannot be asked, a worker was stopped, or this call was not sent any more
                    problem = problem or came
                    continue
                answered.append((key, missing[key], came))
                failures = failures + 1 if came.state == "failed" else 0
                if failures == GIVE_UP:
                    problem = problem or _gave_up(came.problem)
            self._keep(answered)
            if problem:
                stop.set()
        if problem:
            raise problem

    def _again(self, request: Request, came: NoAnswer, attempts: int) -> float | None:
        """Count an attempt without an answer; in how many seconds to make another, None: not at all."""
        if came.billed:
            self._charge(request, None)
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

    # --- batches ------------------------------------------------------------------------------------------------------

    def _ask_batches(self, missing: dict[str, Request]) -> None:
        """Collect the batches that an earlier run handed over, then hand over the rest, as much as the limit allows at a time."""
        settled = self._settled
        self._collect_begun(missing)
        self._resume()
        self._settled = settled  # that another process was answered does not show that this one will be
        left = {key: request for key, request in missing.items() if key not in self._answers}
        self._probe(left)
        while left:
            part = self._affordable(left)
            if not part:
                raise self._limit(len(left))
            mark, sampling = uuid4().hex, self.judge.sampling
            if self.cache:
                self.cache.open_batch(self.identity, mark, part, sampling)
            try:
                batch = self.judge.submit(part, mark)
            except BatchLost:
                self._forget(mark)
                raise
            if self.cache:
                self.cache.name_batch(mark, batch)
            self._collect(mark, batch, part, sampling)
            left = {key: request for key, request in left.items() if key not in self._answers}

    def _probe(self, left: dict[str, Request]) -> None:
        """Ask one call alone, which shows in a second what a batch would show in a day; another, where that failed.

        Raises:
            JudgeError: none of them was answered, and more are left.
        """
        for key in list(left)[:PROBES]:
            if self._settled:
                return
            self._ask({key: left.pop(key)})
            problem = self._answers[key].problem
        if left and not self._settled:
            raise JudgeError(
                f"no batch was handed over, since calls made alone before it got no answer (the last: {problem})"
            )

    def _collect_begun(self, missing: dict[str, Request]) -> None:
        """Collect what an earlier run handed over; one that ended in the middle of it may have been heard or not."""
        for begun in self.cache.open_batches(self.identity) if self.cache else ():
            wanted = {key: missing[key] for key in begun.requests if key in missing}
            if not wanted:
                self._forget_answered(begun)
                continue
            batch = begun.batch or self.judge.find(begun.mark)
            if batch is None:
                self._forget(begun.mark)
                continue
            # All of it, also what is not wanted now: it was paid for, and its provider keeps it for some days only.
            known = {key: request for key, request in begun.requests.items() if request is not None}
            self._collect(begun.mark, batch, known | wanted, begun.sampling, set(wanted))

    def _forget_answered(self, begun: HandedOver) -> None:
        """Forget a batch of which every call was answered in another way."""
        found = self.cache.get(begun.requests) if self.cache else {}
        if all(key in found and found[key].state != "failed" for key in begun.requests):
            self._forget(begun.mark)

    def _mention_batches(self, missing: Mapping[str, Request]) -> None:
        """Say of calls that are asked one by one that a batch holds them already."""
        begun = self.cache.open_batches(self.identity) if self.cache and self.listener else []
        held = len({key for one in begun for key in one.requests if key in missing})
        if held and self.listener:
            self.listener.message(
                f"{held} of {len(missing)} calls are in a batch that was handed over and not collected; they are asked again: "
                "stop and add --judge-batch to wait for it instead"
            )

    def _affordable(self, left: dict[str, Request]) -> dict[str, Request]:
        part: dict[str, Request] = {}
        reserved = 0.0
        for key, request in left.items():
            bound = self._affords(request, reserved, self._batch_factor)
            if bound is None or len(part) == BATCH_ITEMS:
                break
            part[key] = request
            reserved += bound
        return part

    @property
    def _batch_factor(self) -> float:
        return self.price.batch if self.price else 1.0

    def _collect(
        self,
        mark: str,
        batch: str,
        requests: dict[str, Request],
        sampling: Mapping[str, Any],
        wanted: Set[str] | None = None,
    ) -> None:
        """Wait for a batch and keep its replies, those that are not wanted now too; what it has no reply for failed."""
        try:
            while (replies := self.judge.collect(batch, requests)) is None:
                time.sleep(self.poll)
        except BatchLost:
            self._forget(mark)
            raise
        gone = Reply("failed", problem="the finished batch has no reply for it")
        found = {key: replies.get(key, gone) for key in requests}
        for key, reply in found.items():
            self._charge(requests[key], reply, self._batch_factor)
        how = sampling or None
        rows = [(k, requests[k], r if r.state == "failed" else replace(r, sampling=how)) for k, r in found.items()]
        if self.cache:
            self.cache.put(self.identity, [row for row in rows if wanted is not None and row[0] not in wanted])
        self._keep([row for row in rows if wanted is None or row[0] in wanted])
        self._forget(mark)

    def _forget(self, mark: str) -> None:
        if self.cache:
            self.cache.close_batch(mark)

    # --- what it costs ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Count anew for `about`: before each metric of each SAE."""
        self._touched.clear()

    def about(self) -> dict[str, Any]:
        """Who answered since `begin`, for the record: the same for a run, its continuation and its replay."""
        replies = [self._answers[key] for key in sorted(self._touched) if key in self._answers]
        usages = [reply.usage for reply in replies if reply.usage]
        return {
            **self.identity,
            "sampling": [dict(way) for way in self._samplings()],
            "answered_by": sorted({reply.model for reply in replies if reply.model}),
            "calls": len(replies),
            "states": {state: sum(r.state == state for r in replies) for state in sorted({r.state for r in replies})},
            "input_tokens": sum(usage.input_tokens for usage in usages),
            "output_tokens": sum(usage.output_tokens for usage in usages),
        }

    def timings(self) -> dict[str, Any]:
        """What this run did of it so far: it differs from run to run."""
        return {"sent": self.tally.sent, "replayed": self.tally.replayed, "cost_usd": self.tally.cost}

    def spent(self) -> str:
        """What this run did, in words."""
        cost = "price unknown" if self.tally.cost is None else f"at most ${self.tally.cost:.4f}"
        name = f"{self.judge.name}:{self.judge.model}"
        return f"judge {name}: {self.tally.sent} calls sent ({cost}), {self.tally.replayed} replayed"


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
