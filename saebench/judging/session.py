"""A judge's session: replay cached replies, send missing requests, count, and stop at the cost limit.

Replies are returned in the order of the requests.
"""

from collections.abc import Sequence

from saebench.judge import Capabilities, Judge, JudgeError, Reply, Request
from saebench.judging.batches import Batches
from saebench.judging.cache import ReplyCache
from saebench.judging.calls import SingleCalls
from saebench.judging.ledger import Ledger, Listener, Mode
from saebench.judging.prices import Price


class JudgeSession:
    """The judge of one run, as `env.judge` of a metric."""

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
            cache: file of replies; None keeps them in memory only.
            mode: "record" replays cached replies and sends the other requests; "live" sends every request, and its replies
                replace the cached ones; "only" sends nothing, and a request without a cached reply is an error.
            price: of the judge's tokens; None if unknown.
            max_cost: US dollars that this run may cost; needs a price.
            batch: submit requests as batches and wait for them.
            poll: seconds between two queries of a batch's state.
            pause: seconds before the second attempt at a call; doubled before each further one.
        """
        self.judge = judge
        self.ledger = Ledger(judge, cache, mode, price, max_cost, listener)
        self.calls = SingleCalls(self.ledger, pause)
        self.batches = Batches(self.ledger, self.calls, poll)
        self.batch = batch
        self._open = False

    def open(self) -> None:
        """Open the judge, once.

        Raises:
            SaebenchError: no call can succeed.
        """
        if not self._open:
            self.judge.open()
            self._open = True
            if self.judge.warning and self.ledger.listener:
                self.ledger.listener.message(self.judge.warning)

    def close(self) -> None:
        """Close the judge."""
        if self._open:
            self.judge.close()

    @property
    def capabilities(self) -> Capabilities:
        return self.judge.capabilities

    def complete_all(self, requests: Sequence[Request], label: str = "judge") -> list[Reply]:
        """One reply for each request, in their order; equal requests are sent once. A failed request has a `failed` reply.

        Raises:
            JudgeError: the cost limit is reached, the provider refuses the key or the model, many calls in a row failed, or a
                replay lacks a reply. Earlier replies are kept.
        """
        ledger = self.ledger
        keys = [request.key(ledger.identity) for request in requests]
        ledger.want(keys)
        missing = ledger.missing(dict(zip(keys, requests, strict=True)))
        if missing and ledger.mode == "only":
            first = next(iter(missing.values()))
            where = ledger.cache.path if ledger.cache else "memory"
            raise JudgeError(
                f"{len(missing)} of {len(set(keys))} calls are not in {where} (the first: {first.prompt}): "
                "record them with --replay record, or name another file with --judge-cache"
            )
        if missing:
            self.open()
            ledger.resume()
            if not self.batch:
                self.batches.mention(missing)
            if ledger.listener:
                ledger.listener.begin(label, len(keys), len(keys) - len(missing), "calls")
            try:
                (self.batches if self.batch else self.calls).ask(missing)
            finally:
                if ledger.listener:
                    ledger.listener.end()
        return [ledger.answers[key] for key in keys]
