"""What a run knows of a judge's replies, what they cost, and what may still be spent."""

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
    """What a session did.

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
        answers: what is known in this run.
        settled: whether a call of this run was answered, so that what the provider takes is known.
        tally: what this run did.
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

    # --- what is known ------------------------------------------------------------------------------------------------

    def want(self, keys: Sequence[str]) -> None:
        """Count these requests as part of what `about` tells of."""
        self._touched |= set(keys)

    def missing(self, wanted: dict[str, Request]) -> dict[str, Request]:
        """What is not answered yet; replays what the cache knows."""
        unknown = [key for key in wanted if key not in self.answers]
        if self.cache and self.mode != "live":
            found = self.cache.get(unknown)
            # A call that failed is worth another try, but a replay shows it as it was.
            found = {k: r for k, r in found.items() if r.state != "failed" or self.mode == "only"}
            self.answers |= found
            self.tally.replayed += len(found)
        return {key: request for key, request in wanted.items() if key not in self.answers}

    def keep(self, answered: Sequence[tuple[str, Request, Reply]]) -> None:
        """What is in the file counts: another run may have been faster, and a replay will show its replies."""
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
        """Ask as was asked for what is kept of this score, so that one score is of one way of sampling."""
        found = self._samplings()
        if len(found) == 1 and self.mode != "live":
            self.judge.resume(found[0])

    def _samplings(self) -> list[Mapping[str, Any]]:
        """The ways of sampling among the replies since `begin`."""
        replies = [self.answers[key] for key in self._touched if key in self.answers]
        found = {json.dumps(r.sampling, sort_keys=True): r.sampling for r in replies if r.sampling is not None}
        return [found[text] for text in sorted(found)]

    # --- what it costs ------------------------------------------------------------------------------------------------

    def charge(self, request: Request, reply: Reply | None, factor: float = 1.0) -> None:
        """Count what an attempt cost: at most, where there is no reply to say it."""
        if self.price and self.tally.cost is not None:
            headroom = self.judge.headroom
            cost = cost_of(self.price, request, reply, headroom) if reply else cost_bound(self.price, request, headroom)
            self.tally.cost += factor * cost

    def affords(self, request: Request, reserved: float, factor: float = 1.0) -> float | None:
        """What one attempt at the request may cost, if the limit allows it; None if not."""
        if not self.price:
            return 0.0
        bound = factor * cost_bound(self.price, request, self.judge.headroom)
        if self.max_cost is not None and (self.tally.cost or 0.0) + reserved + bound > self.max_cost:
            return None
        return bound

    def limit_reached(self, left: int) -> JudgeError:
        """What to raise when the next of `left` calls could pass the limit."""
        return JudgeError(
            f"stopped before passing --max-cost {self.max_cost:g}: {left} calls are left, at most ${self.tally.cost:.4f} "
            "were spent; what was answered is kept: run it again with a higher limit"
        )

    # --- what is told -------------------------------------------------------------------------------------------------

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
        """What this run did of it so far: it differs from run to run."""
        return {"sent": self.tally.sent, "replayed": self.tally.replayed, "cost_usd": self.tally.cost}

    def spent(self) -> str:
        """What this run did, in words."""
        cost = "price unknown" if self.tally.cost is None else f"at most ${self.tally.cost:.4f}"
        name = f"{self.judge.name}:{self.judge.model}"
        return f"judge {name}: {self.tally.sent} calls sent ({cost}), {self.tally.replayed} replayed"
