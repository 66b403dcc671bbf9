"""Batches of calls, at a lower price: submit, store the id at once, wait, collect, also after a kill."""

import time
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any
from uuid import uuid4

from saebench.judge import BatchLost, JudgeError, Reply, Request, sound
from saebench.judging.cache import HandedOver
from saebench.judging.calls import SingleCalls
from saebench.judging.ledger import Ledger

# Single calls tried before a batch; if all of them fail, the batch would fail too.
PROBES = 3
# Requests a batch: below every provider's limit.
BATCH_ITEMS = 10_000


class Batches:
    """Submits batches and collects their replies."""

    def __init__(self, ledger: Ledger, calls: SingleCalls, poll: float) -> None:
        """
        Args:
            ledger: holds the replies and the cost limit.
            calls: sends the single calls before a batch.
            poll: seconds between two queries of a batch's state.
        """
        self.ledger, self.calls, self.poll = ledger, calls, poll
        self.judge, self.cache = ledger.judge, ledger.cache

    def ask(self, missing: dict[str, Request]) -> None:
        """Collect the batches of earlier runs, then submit the rest, each time as much as the cost limit allows."""
        settled = self.ledger.settled
        self._collect_begun(missing)
        self.ledger.resume()
        self.ledger.settled = settled  # replies to an earlier process do not show that this one gets any
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
        """Warn that single calls repeat calls of a batch in progress."""
        begun = self.cache.open_batches(self.ledger.identity) if self.cache and self.ledger.listener else []
        held = len({key for one in begun for key in one.requests if key in missing})
        if held and self.ledger.listener:
            self.ledger.listener.message(
                f"{held} of {len(missing)} calls are in a batch that is not collected yet; they are sent again: "
                "stop and add --judge-batch to wait for the batch instead"
            )

    def _probe(self, left: dict[str, Request]) -> None:
        """Send single calls until one is answered: a fault shows in a second, not after a day.

        Raises:
            JudgeError: none was answered, and more calls are left.
        """
        for key in list(left)[:PROBES]:
            if self.ledger.settled:
                return
            self.calls.ask({key: left.pop(key)})
            problem = self.ledger.answers[key].problem
        if left and not self.ledger.settled:
            raise JudgeError(
                f"no batch was submitted, since the single calls before it got no reply (the last: {problem}): "
                "run the same command again when the judge answers"
            )

    def _collect_begun(self, missing: dict[str, Request]) -> None:
        """Collect the batches of earlier runs; one whose run ended during submission may not exist."""
        for begun in self.cache.open_batches(self.ledger.identity) if self.cache else ():
            wanted = {key: missing[key] for key in begun.requests if key in missing}
            if not wanted:
                self._forget_answered(begun)
                continue
            batch = begun.batch or self.judge.find(begun.mark)
            if batch is None:
                self._forget(begun.mark)
                continue
            # The whole batch, unwanted replies included: they are paid for, and the provider keeps them for some days only.
            known = {key: request for key, request in begun.requests.items() if request is not None}
            self._collect(begun.mark, batch, known | wanted, begun.sampling, set(wanted))

    def _forget_answered(self, begun: HandedOver) -> None:
        """Delete the entry of a batch whose calls were all answered singly."""
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
        """Wait for a batch and cache all its replies; a request without one is `failed`."""
        try:
            while (replies := self.judge.collect(batch, requests)) is None:
                time.sleep(self.poll)
        except BatchLost:
            self._forget(mark)
            raise
        gone = Reply("failed", problem="the finished batch has no reply for it")
        found = {key: sound(replies.get(key, gone)) for key in requests}
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
