"""Ratings of steered texts: requests to a judge, their parsing, and the choice of a factor (AxBench, arXiv 2501.17148)."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import numpy as np

from saebench.judge import Kind, Reply, Request

# Each aspect is rated by a request of its own, which holds only the fields that it needs.
ASPECTS = ("concept", "instruction", "fluency")
PROMPTS = tuple(f"steering-{aspect}@1" for aspect in ASPECTS)
REPLY_TOKENS = 160
_FIELDS: Mapping[str, Kind] = {"reason": "string", "rating": "string"}
_RATINGS = {"0": 0.0, "1": 1.0, "2": 2.0}


@cache
def read_text(name: str) -> str:
    """A file of prompts/."""
    return files(__package__).joinpath(f"prompts/{name}.txt").read_text(encoding="utf-8")


def instructions(count: int) -> list[str]:
    """The first instructions of the bundled ones.

    Raises:
        ValueError: there are fewer, or too few to be split.
    """
    found = read_text("instructions").splitlines()
    if not 2 <= count <= len(found):
        raise ValueError(f"instructions {count} cannot be split, or exceed the bundled ones: set 2 to {len(found)}")
    return found[:count]


def rating_request(aspect: str, *, concept: str, instruction: str, text: str) -> Request:
    """The request for one rating of one text."""
    body = (
        {"text": text} if aspect == "fluency" else {aspect: {"concept": concept}.get(aspect, instruction), "text": text}
    )
    prompt = f"steering-{aspect}@1"
    return Request(read_text(prompt), json.dumps(body, ensure_ascii=False), _FIELDS, prompt, REPLY_TOKENS)


def rating(reply: Reply) -> float:
    """0, 1 or 2; NaN where the reply holds no rating, which is counted and never taken for 0."""
    given = reply.data.get("rating") if reply.state in ("ok", "malformed") else None
    return _RATINGS.get(given.strip(), np.nan) if isinstance(given, str) else np.nan


def harmonic(ratings: np.ndarray) -> np.ndarray:
    """Harmonic mean over the last axis, 0 where any rating is 0 and NaN where one is missing."""
    with np.errstate(divide="ignore"):
        out: np.ndarray = ratings.shape[-1] / (1 / ratings).sum(-1)
    return out


def best_factor(overall: np.ndarray) -> int | None:
    """The index of the factor with the highest mean over the even instructions, the smallest of equals.

    Args:
        overall: [factors, instructions] harmonic means, NaN where missing.

    Returns:
        None where no factor has a rating among these instructions.
    """
    means = np.array([mean(row[::2]) for row in overall])
    return None if np.isnan(means).all() else int(np.nanargmax(means))


def mean(values: np.ndarray) -> float:
    """The mean of the values that exist; NaN where none does."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else np.nan
