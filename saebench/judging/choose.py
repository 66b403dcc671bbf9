"""From `--judge PROVIDER:MODEL` to a judge that is not opened yet."""

from urllib.parse import urlsplit

from saebench.errors import UsageError
from saebench.judge import Judge
from saebench.registry import registry


def make_judge(spec: str, url: str | None = None) -> Judge:
    """The judge that `--judge spec` names, not opened.

    Args:
        spec: provider:model, like `openai:gpt-6-luna` or `local:smollm2-135m-instruct`.
        url: another address that speaks the provider's protocol.

    Raises:
        UsageError: no such provider, no model named, or no such address.
    """
    provider, _, model = spec.partition(":")
    kind: type[Judge] = registry().get("judges", provider)
    if not model:
        raise UsageError(f"--judge {spec} names no model: write it as {provider}:MODEL")
    if url is not None:
        if "@" in url:
            raise UsageError("--judge-url may hold no password, since it stands in records: set SAEBENCH_JUDGE_KEY")
        if not _is_address(url):
            raise UsageError(f"--judge-url {url} is no address: write it like http://localhost:8000/v1")
    return kind(model, url)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port  # raises where it is no port
    except ValueError:
        return False
    asks = parts.query or parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and not asks and url.isprintable()
