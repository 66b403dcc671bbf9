"""The message of a chat completion: its answer, its thoughts, and P(true) of its boolean fields."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from saebench.judge import Reply, value_places, without_thoughts


def message_text(message: Any) -> tuple[str, str]:
    """(answer, thoughts) of a message: thoughts stand in a field of their own, or in the text between tags.

    With some parsers of thoughts (vLLM) the answer of a model that did not think stands in the field of thoughts.
    """
    content = message.content
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    extra = getattr(message, "model_extra", None) or {}
    apart = next((t for name in ("reasoning_content", "reasoning") if isinstance(t := extra.get(name), str)), "")
    if not (content or "").strip() and apart.strip():
        answer, thoughts = without_thoughts(apart)
        return (answer, thoughts) if answer.lstrip()[:1] in ("{", "`") and answer.strip() else ("", apart)
    answer, thoughts = without_thoughts(content or "")
    return answer, thoughts or apart


def likely(text: str, logprobs: Any, reply: Reply) -> dict[str, float]:
    """P(true) by field; empty if the server's log-probabilities have another form."""
    try:
        tokens = [
            (t.token, {a.token: a.logprob for a in t.top_logprobs} | {t.token: t.logprob}) for t in logprobs or ()
        ]
        return probabilities(text, tokens, reply)
    except (TypeError, ValueError, AttributeError, OverflowError):
        return {}


def probabilities(text: str, tokens: Sequence[tuple[str, Mapping[str, float]]], reply: Reply) -> dict[str, float]:
    """P(true) of each boolean field, among true and false.

    A server lists only the likeliest alternatives. Where one of the two words is not among them, the smallest listed
    probability bounds it from above and takes its place: llama.cpp's list precedes its grammar and may hold neither `false` nor
    any other word of the form, so leaving the missing word out would make every answer certain. A field has no probability if
    no word is listed above that bound.

    Args:
        text: the reply, without thoughts.
        tokens: the reply's tokens in order, thoughts included, each with the log-probabilities (natural) of its alternatives.
        reply: `text`, parsed.
    """
    own = _tokens_of(text, tokens)
    starts = [0]
    for token, _ in own:
        starts.append(starts[-1] + len(token))
    found: dict[str, float] = {}
    for name, place in value_places(text).items() if own else ():
        if not isinstance(reply.data.get(name), bool):
            continue
        at = next(i for i in range(len(own)) if starts[i] <= place < starts[i + 1])
        likely = _true(own[at][1], own[at][0][: place - starts[at]])
        if likely is not None:
            found[name] = likely
    return found


def _tokens_of(
    text: str, tokens: Sequence[tuple[str, Mapping[str, float]]]
) -> Sequence[tuple[str, Mapping[str, float]]]:
    """The last tokens, which join to the text; none if the text begins inside a token, or the tokens are of another text."""
    size = sum(len(token) for token, _ in tokens) - len(text)
    for i in range(len(tokens) + 1):
        if size == 0:
            return tokens[i:] if "".join(token for token, _ in tokens[i:]) == text else ()
        if size < 0 or i == len(tokens):
            break
        size -= len(tokens[i][0])
    return ()


def _true(alternatives: Mapping[str, float], before: str) -> float | None:
    """P(true) from the alternatives to the token that holds the value, behind the text `before` it in that token."""
    listed = {token: logprob for token, logprob in alternatives.items() if math.isfinite(logprob) and logprob <= 1e-3}
    mass = {"true": 0.0, "false": 0.0}
    for token, logprob in listed.items():
        if word := _word(token, before):
            mass[word] += math.exp(logprob)
    smallest = math.exp(min(listed.values(), default=0.0))
    if max(mass.values()) <= smallest:
        return None
    true, false = (mass[word] or smallest for word in ("true", "false"))
    return true / (true + false)


def _word(token: str, before: str) -> str | None:
    """The word, true or false, that a token begins with behind the text `before` it in the chosen token."""
    rest = token[len(before) :] if token.startswith(before) else token if not before.strip() else ""
    rest = rest.lstrip().lower()
    return next((word for word in ("true", "false") if rest and (rest.startswith(word) or word.startswith(rest))), None)
