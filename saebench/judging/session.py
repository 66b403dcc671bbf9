"""Asking a judge: replay what is known, send what is missing, count, and stop before a limit is passed.

The replies come back in the order of the requests, whatever the order in which they were answered.
"""

from collections.abc import Sequence

from saebench.judge import Capabilities, Judge, JudgeError, Reply, Request
from saebench.judging.batches import Batches
from saebench.judging.cache import ReplyCache
from saebench.judging.calls import SingleCalls
from saebench.judging.ledger import Ledger, Listener, Mode
from saebench.judging.prices import Price


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
        self.judge = judge
        self.ledger = Ledger(judge, cache, mode, price, max_cost, listener)
        self.calls = SingleCalls(self.ledger, pause)
        self.batches = Batches(self.ledger, self.calls, poll)
        self.batch = batch
        self._open = False

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
        ledger = self.ledger
        keys = [request.key(ledger.identity) for request in requests]
        ledger.want(keys)
        missing = ledger.missing(dict(zip(keys, requests, strict=True)))
        if missing and ledger.mode == "only":
            first = next(iter(missing.values()))
            where = ledger.cache.path if ledger.cache else "memory"
            raise JudgeError(
                f"{len(missing)} of {len(set(keys))} calls are not in {where} (the first: {first.prompt}): "
                "record them with --replay record"
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
