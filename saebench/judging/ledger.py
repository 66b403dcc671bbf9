"""The ledger of a session: known replies, their cost, and the budget left."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from saebench.judge import Judge, JudgeError, Reply, Request
from saebench.judging.cache import ReplyCache
from saebench.judging.prices import Price, cost_bound, cost_of

Mode = Literal["record", "live", "only"]


class Listener(Protocol):
    """Hears how many calls are done: the run's reporter."""

    def begin(self, label: str, total: int, done: int, unit: str = "contexts") -> None: ...

    def advance(self, contexts: int) -> None: ...

    def end(self) -> None: ...

    def message(self, text: str) -> None: ...


@dataclass
class Tally:
    """Counts of a session.

    Attributes:
        sent: calls that were answered in this run; replayed: found in the cache.
        cost: of this run in US dollars, at most; None where the price is not known. An attempt that was sent and not answered
            counts as the dearest answer.
    """

    sent: int = 0
    replayed: int = 0
    cost: float | None = None


class Ledger:
    """Replies by the key of their request, in memory and in the file, and their cost.

    Attributes:
        answers: replies known in this run, by key.
        settled: whether a call of this run was answered, so that the accepted parameters are known.
        tally: counts of this run.
    """

    def __init__(
        self,
        judge: Judge,
        cache: ReplyCache | None,
        mode: Mode,
        price: Price | None,
        max_cost: float | None,
        listener: Listener | None,
    ) -> None:
        """See `JudgeSession`."""
        self.judge, self.cache, self.mode = judge, cache, "only" if judge.replays else mode
        self.price, self.max_cost, self.listener = price, max_cost, listener
        self.identity = judge.identity
        self.tally = Tally(cost=0.0 if price else None)
        self.answers: dict[str, Reply] = {}
        self.settled = not judge.sends
        self._touched: set[str] = set()

    # --- replies ------------------------------------------------------------------------------------------------

    def want(self, keys: Sequence[str]) -> None:
        """Add these requests to those that `about` describes."""
        self._touched |= set(keys)

    def missing(self, wanted: dict[str, Request]) -> dict[str, Request]:
        """Requests without a reply; cached replies are taken from the cache."""
        unknown = [key for key in wanted if key not in self.answers]
        if self.cache and self.mode != "live":
            found = self.cache.get(unknown)
            # A call that failed is worth another try, but a replay shows it as it was.
            found = {k: r for k, r in found.items() if r.state != "failed" or self.mode == "only"}
            self.answers |= found
            self.tally.replayed += len(found)
        return {key: request for key, request in wanted.items() if key not in self.answers}

    def keep(self, answered: Sequence[tuple[str, Request, Reply]]) -> None:
        """Prefer the cached reply: another run may have stored one first, and a replay returns that one."""
        if not answered:
            return
        self.settled = self.settled or any(reply.state != "failed" for _, _, reply in answered)
        self.answers |= {key: reply for key, _, reply in answered}
        self.tally.sent += len(answered)
        if self.cache:
            self.answers |= self.cache.put(self.identity, answered, replaces=self.mode == "live")
        if self.listener:
            self.listener.advance(len(answered))

    def resume(self) -> None:
        """Reuse the sampling settings of this score's cached replies; never mix two."""
        found = self._samplings()
        if len(found) == 1 and self.mode != "live":
            self.judge.resume(found[0])

    def _samplings(self) -> list[Mapping[str, Any]]:
        """The ways of sampling among the replies since `begin`."""
        replies = [self.answers[key] for key in self._touched if key in self.answers]
        found = {json.dumps(r.sampling, sort_keys=True): r.sampling for r in replies if r.sampling is not None}
        return [found[text] for text in sorted(found)]

    # --- costs ------------------------------------------------------------------------------------------------

    def charge(self, request: Request, reply: Reply | None, factor: float = 1.0) -> None:
        """Add the cost of an attempt; its upper bound where no reply reports the usage."""
        if self.price and self.tally.cost is not None:
            headroom = self.judge.headroom
            cost = cost_of(self.price, request, reply, headroom) if reply else cost_bound(self.price, request, headroom)
            self.tally.cost += factor * cost

    def affords(self, request: Request, reserved: float, factor: float = 1.0) -> float | None:
        """Reserve the most that one attempt may cost; None where the limit does not allow it."""
        if not self.price:
            return 0.0
        bound = factor * cost_bound(self.price, request, self.judge.headroom)
        if self.max_cost is not None and (self.tally.cost or 0.0) + reserved + bound > self.max_cost:
            return None
        return bound

    def limit_reached(self, left: int) -> JudgeError:
        """The error to raise when the next of `left` calls could exceed the limit."""
        return JudgeError(
            f"stopped before passing --max-cost {self.max_cost:g}: {left} calls are left, at most ${self.tally.cost:.4f} "
            "were spent; replies so far are kept: run the command again with a higher limit"
        )

    # --- reports -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Count anew for `about`: before each metric of each SAE."""
        self._touched.clear()

    def about(self) -> dict[str, Any]:
        """Who answered since `begin`, for the record: the same for a run, its continuation and its replay."""
        replies = [self.answers[key] for key in sorted(self._touched) if key in self.answers]
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
        """Counts of this run alone; they differ from run to run."""
        return {"sent": self.tally.sent, "replayed": self.tally.replayed, "cost_usd": self.tally.cost}

    def spent(self) -> str:
        """This run's counts, in words."""
        cost = "price unknown" if self.tally.cost is None else f"at most ${self.tally.cost:.4f}"
        name = f"{self.judge.name}:{self.judge.model}"
        return f"judge {name}: {self.tally.sent} calls sent ({cost}), {self.tally.replayed} replayed"
