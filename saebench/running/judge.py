"""The judge of a run: made from the request, checked before anything is spent, estimated for a dry run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saebench import ranks
from saebench.cache import cache_folder
from saebench.errors import SaebenchError, UsageError
from saebench.judge import Judge
from saebench.judging.cache import ReplyCache
from saebench.judging.choose import make_judge
from saebench.judging.ledger import Listener
from saebench.judging.prices import estimate, find_price, price_file
from saebench.judging.session import JudgeSession
from saebench.metric import Metric
from saebench.running.request import Request

Wanted = Mapping[str, type[Metric]]


def open_session(request: Request, wanted: Sequence[Wanted], listener: Listener) -> JudgeSession | None:
    """The session of a run whose metrics ask a judge, None for one whose metrics do not.

    Faults that would keep the judge from answering are found here, before a model runs: no key, an unknown model, no price,
    nothing to replay.

    Raises:
        UsageError, SaebenchError: no call can succeed; the message names the fix.
    """
    judge = chosen_judge(request, wanted)
    if judge is None:
        return None
    cache = _open_cache(request, judge, prompts(wanted))
    session = JudgeSession(
        judge, cache, mode=request.replay, price=find_price(judge), max_cost=request.max_cost, batch=request.judge_batch,
        listener=listener,
    )  # fmt: skip
    problem: SaebenchError | None = None
    if ranks.start()[0] == 0 and judge.sends and session.ledger.mode != "only":
        try:
            session.open()
        except SaebenchError as error:
            problem = error
    if problem:
        ranks.first(str(problem))
        raise problem
    if message := ranks.first(None):
        raise SaebenchError(message)
    return session


def _open_cache(request: Request, judge: Judge, asked: Sequence[str]) -> ReplyCache:
    """The file of replies. A replay needs one that holds replies of this judge, and makes none.

    Raises:
        SaebenchError: a replay without a reply to repeat, or an unreadable file.
    """
    path = Path(request.judge_cache) if request.judge_cache else cache_folder() / "judge-replies.sqlite"
    if not (judge.replays or request.replay == "only"):
        return ReplyCache(path)
    if not path.exists():
        raise SaebenchError(f"no file of replies {path}: name one with --judge-cache, or record with --replay record")
    cache = ReplyCache(path)
    if not cache.holds(judge.identity, asked):
        raise SaebenchError(
            f"{path} holds no reply of judge {request.judge} to {', '.join(asked)}: name another file with --judge-cache, or "
            "record with --replay record"
        )
    return cache


def chosen_judge(request: Request, wanted: Sequence[Wanted]) -> Judge | None:
    """The judge that was asked for, not opened; None where no metric asks one.

    Raises:
        UsageError: a judge is missing or superfluous, or lacks a requested capability.
    """
    asking = prompts(wanted)
    if not asking:
        if request.judge is not None:
            names = ", ".join(dict.fromkeys(name for some in wanted for name in some))
            raise UsageError(
                f"--judge: none of the metrics asks a judge ({names}): add one that does with --metric or --task"
            )
        return None
    if request.judge is None:
        first = next(name for some in wanted for name, metric in some.items() if metric.asks)
        raise UsageError(f"metric '{first}' asks a judge: pass --judge PROVIDER:MODEL (see `saebench list judges`)")
    judge = make_judge(request.judge, request.judge_url, request.judge_thinking)
    if request.judge_batch and not judge.capabilities.batch:
        raise UsageError(f"judge {judge.name} takes no batches: leave --judge-batch out")
    if request.max_cost is not None and find_price(judge) is None:
        if judge.url is not None:
            raise UsageError(f"--max-cost: the price of {judge.url} is unknown: leave --max-cost out")
        raise UsageError(
            f"--max-cost: the price of {request.judge} is unknown: add it to a copy of {Path(price_file()).name} that "
            "SAEBENCH_PRICES names, or leave --max-cost out"
        )
    return judge


def prompts(wanted: Sequence[Wanted]) -> list[str]:
    """The prompts of all these metrics, name@version, sorted."""
    return sorted({prompt for some in wanted for metric in some.values() for prompt in metric.asks})


def judge_settings(judge: Judge | None, wanted: Wanted) -> dict[str, Any]:
    """The judge's part of a record's settings, and so of its identity; empty where no metric asks one."""
    asked = prompts([wanted])
    return {"judge": {**judge.identity, "prompts": asked}} if judge is not None and asked else {}


@dataclass(frozen=True)
class JudgePlan:
    """A dry run's estimate of judge calls. Cached replies cost nothing and are not subtracted.

    Attributes:
        cost: US dollars, None where the price is unknown; `date` is the price's.
    """

    judge: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    date: str

    def to_json(self) -> dict[str, Any]:
        cost = "unknown" if self.cost is None else round(self.cost, 6)
        return {"judge": self.judge, "calls": self.calls, "input_tokens": self.input_tokens,
                "output_tokens": self.output_tokens, "cost_usd": cost, "price_date": self.date}  # fmt: skip

    def line(self) -> str:
        cost = "an unknown price" if self.cost is None else f"about ${self.cost:.4f}"
        dated = f" (prices of {self.date})" if self.date and self.cost is not None else ""
        return (
            f"judge {self.judge}: {self.calls:,} calls, about {self.input_tokens:,} tokens in and {self.output_tokens:,} "
            f"out: {cost}{dated}; cached replies cost nothing"
        )


def plan_judge(request: Request, wanted: Wanted, widths: Sequence[int]) -> JudgePlan | None:
    """The calls that these metrics will make for SAEs of these numbers of latents, and their cost."""
    judge = chosen_judge(request, [wanted])
    if judge is None:
        return None
    calls = [c for metric in wanted.values() if metric.asks for width in widths for c in metric.judge_calls(width)]
    price = find_price(judge)
    inputs, outputs, cost = estimate(calls, price, request.judge_batch)
    date = price.date if price else ""
    return JudgePlan(str(request.judge), sum(c.count for c in calls), inputs, outputs, cost, date)
