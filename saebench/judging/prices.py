"""Prices of judges: a dated file of prices per million tokens, and the upper bound of a call's cost before it is sent."""

import json
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from saebench.errors import UsageError, one_line
from saebench.judge import Calls, Judge, Reply, Request

# Tokens that providers add to a request with a schema; generous, since it only bounds.
_AROUND = 600


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens.

    Attributes:
        batch: price of a batch, as a share of that.
        date: when the price was looked up.
    """

    input: float
    output: float
    batch: float = 1.0
    date: str = ""

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        return (self.input * input_tokens + self.output * output_tokens) / 1e6


def find_price(judge: Judge) -> Price | None:
    """The price of a judge's tokens: none for one that sends nothing; None where it is not known, as at any other address.

    Raises:
        UsageError: the file of prices that $SAEBENCH_PRICES names cannot be read.
    """
    if not judge.sends:
        return Price(0.0, 0.0)
    if judge.url is not None:
        return None
    entry = _prices().get(judge.name, {}).get(judge.model)
    return None if entry is None else Price(**entry)


def cost_bound(price: Price, request: Request, headroom: int = 0) -> float:
    """Upper bound of a call's cost: each byte of text is a token, and the reply has max_tokens and the headroom."""
    text = request.system + request.user + json.dumps(request.schema(), ensure_ascii=False)
    return price.cost(len(text.encode()) + _AROUND, request.max_tokens + headroom)


def cost_of(price: Price, request: Request, reply: Reply, headroom: int = 0) -> float:
    """Cost of a call; its upper bound where the provider reports no usage (a failed call may have been charged)."""
    if reply.usage is None:
        return cost_bound(price, request, headroom)
    return price.cost(reply.usage.input_tokens, reply.usage.output_tokens)


def estimate(calls: Sequence[Calls], price: Price | None, batch: bool = False) -> tuple[int, int, float | None]:
    """(input tokens, output tokens, US dollars or None) of calls that are only planned."""
    inputs = sum(c.count * -(-c.input_characters // 4) for c in calls)
    outputs = sum(c.count * c.output_tokens for c in calls)
    if price is None:
        return inputs, outputs, None
    return inputs, outputs, price.cost(inputs, outputs) * (price.batch if batch else 1.0)


def price_file() -> str:
    """The file of prices: $SAEBENCH_PRICES, else the one that came with saebench."""
    return os.environ.get("SAEBENCH_PRICES") or str(files("saebench.judging").joinpath("prices.toml"))


def _prices() -> dict[str, dict[str, Any]]:
    path = Path(price_file())
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
        return {judge: {m: _entry(e) for m, e in models.items()} for judge, models in body.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"prices {path}: {one_line(error)}: see the file that came with saebench for its form"
        ) from error


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    body = {"input": float(entry["input"]), "output": float(entry["output"]), "batch": float(entry.get("batch", 1.0))}
    if min(body.values()) < 0:
        raise ValueError(f"a price below 0: {entry}")
    return body | {"date": str(entry["date"])}
