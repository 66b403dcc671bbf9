"""From `--judge PROVIDER:MODEL` to a judge that is not opened yet."""

import re
from urllib.parse import urlsplit

from saebench.errors import UsageError
from saebench.judge import Judge
from saebench.registry import registry


def make_judge(spec: str, url: str | None = None, thinking: int = 0) -> Judge:
    """Make the judge that `--judge spec` names, not opened.

    Args:
        spec: provider:model, like `openai:gpt-6-luna` or `local:smollm2-135m-instruct`.
        url: another address that speaks the provider's protocol.
        thinking: tokens that a reply may spend on thoughts.

    Raises:
        UsageError: unknown provider, missing model, invalid address, or a judge without thoughts.
    """
    provider, _, model = spec.partition(":")
    kind: type[Judge] = registry().get("judges", provider)
    if not model:
        raise UsageError(f"--judge {spec} names no model: write it as {provider}:MODEL")
    if url is not None:
        _check_address(url)
    judge = kind(model, url)
    if thinking < 0:
        raise UsageError(f"--judge-thinking must be 0 or more, not {thinking}")
    if thinking and not judge.capabilities.thinking:
        raise UsageError(f"--judge-thinking is for a server at --judge-url, not for {spec}: leave it out")
    if thinking:
        judge.allow_thinking(thinking)
    return judge


def _check_address(url: str) -> None:
    """Check an address, without showing any part of one that may hold a key.

    Raises:
        UsageError: no http(s) address, or one with a password, a query or a fragment.
    """
    form = "write it like http://localhost:8000/v1"
    if "@" in url:
        raise UsageError("--judge-url may hold no password, since records contain it: set SAEBENCH_JUDGE_KEY")
    shown = re.split(r"[?#;&=\s]", url)[0]
    if shown != url and "://" in url:
        raise UsageError(
            f"--judge-url {shown}… is no address: leave out what follows, since records contain the address "
            "(a key belongs into SAEBENCH_JUDGE_KEY)"
        )
    if not _is_address(url):
        named = f" {shown}" if "://" in shown and shown.isprintable() else ""
        raise UsageError(f"--judge-url{named} is no address: {form}")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port  # raises if it is no port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and url.isprintable()
