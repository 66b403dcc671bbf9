"""Asking a judge by the batch, at half the price: hand over, note its id at once, wait, collect, also after a kill."""

import time
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any
from uuid import uuid4

from saebench.judge import BatchLost, JudgeError, Reply, Request
from saebench.judging.cache import HandedOver
from saebench.judging.calls import SingleCalls
from saebench.judging.ledger import Ledger

# Calls made alone before a batch: one may be a request that nobody answers, so many mean that a batch would have none either.
PROBES = 3
# Requests a batch: below what every provider takes.
BATCH_ITEMS = 10_000


class Batches:
    """Hands requests over and collects their replies."""

    def __init__(self, ledger: Ledger, calls: SingleCalls, poll: float) -> None:
        """
        Args:
            ledger: what takes the replies and knows the limit.
            calls: asks one call alone, before there is a day to lose.
            poll: seconds between two looks at a batch.
        """
        self.ledger, self.calls, self.poll = ledger, calls, poll
        self.judge, self.cache = ledger.judge, ledger.cache

    def ask(self, missing: dict[str, Request]) -> None:
        """Collect the batches that an earlier run handed over, then hand over the rest, as much as the limit allows at a time."""
        settled = self.ledger.settled
        self._collect_begun(missing)
        self.ledger.resume()
        self.ledger.settled = settled  # that another process was answered does not show that this one will be
        left = {key: request for key, request in missing.items() if key not in self.ledger.answers}
        self._probe(left)
        while left:
            part = self._affordable(left)
            if not part:
                raise self.ledger.limit_reached(len(left))
            mark, sampling = uuid4().hex, self.judge.sampling
            if self.cache:
                self.cache.open_batch(self.ledger.identity, mark, part, sampling)
            try:
                batch = self.judge.submit(part, mark)
            except BatchLost:
                self._forget(mark)
                raise
            if self.cache:
                self.cache.name_batch(mark, batch)
            self._collect(mark, batch, part, sampling)
            left = {key: request for key, request in left.items() if key not in self.ledger.answers}

    def mention(self, missing: Mapping[str, Request]) -> None:
        """Say of calls that are asked one by one that a batch holds them already."""
        begun = self.cache.open_batches(self.ledger.identity) if self.cache and self.ledger.listener else []
        held = len({key for one in begun for key in one.requests if key in missing})
        if held and self.ledger.listener:
            self.ledger.listener.message(
                f"{held} of {len(missing)} calls are in a batch that was handed over and not collected; they are asked again: "
                "stop and add --judge-batch to wait for it instead"
            )

    def _probe(self, left: dict[str, Request]) -> None:
        """Ask one call alone, which shows in a second what a batch would show in a day; another, where that failed.

        Raises:
            JudgeError: none of them was answered, and more are left.
        """
        for key in list(left)[:PROBES]:
            if self.ledger.settled:
                return
            self.calls.ask({key: left.pop(key)})
            problem = self.ledger.answers[key].problem
        if left and not self.ledger.settled:
            raise JudgeError(
                f"no batch was handed over, since calls made alone before it got no answer (the last: {problem})"
            )

    def _collect_begun(self, missing: dict[str, Request]) -> None:
        """Collect what an earlier run handed over; one that ended in the middle of it may have been heard or not."""
        for begun in self.cache.open_batches(self.ledger.identity) if self.cache else ():
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

    def _affordable(self, left: dict[str, Request]) -> dict[str, Request]:
        part: dict[str, Request] = {}
        reserved = 0.0
        for key, request in left.items():
            bound = self.ledger.affords(request, reserved, self._batch_factor)
            if bound is None or len(part) == BATCH_ITEMS:
                break
            part[key] = request
            reserved += bound
        return part

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
            self.ledger.charge(requests[key], reply, self._batch_factor)
        how = sampling or None
        rows = [(k, requests[k], r if r.state == "failed" else replace(r, sampling=how)) for k, r in found.items()]
        if self.cache:
            self.cache.put(self.ledger.identity, [row for row in rows if wanted is not None and row[0] not in wanted])
        self.ledger.keep([row for row in rows if wanted is None or row[0] in wanted])
        self._forget(mark)

    def _forget(self, mark: str) -> None:
        if self.cache:
            self.cache.close_batch(mark)

    @property
    def _batch_factor(self) -> float:
        return self.ledger.price.batch if self.ledger.price else 1.0
