"""Expect an error by what matters in its message, so that a sentence can be improved without touching a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def raises(kind: type[BaseException], *parts: object) -> Iterator[pytest.ExceptionInfo[Any]]:
    """`pytest.raises` for one of our errors: each part (a flag, a value, a file's name, a key) stands in the message.

    The message is one line and does not begin with "it", as every error of ours must.
    """
    with pytest.raises(kind) as caught:
        yield caught
    check_message(str(caught.value), *parts)


def check_message(message: str, *parts: object) -> None:
    """Assert that an error message holds each part, is one line and names its subject."""
    missing = [part for part in map(str, parts) if part not in message]
    assert not missing, f"{missing} not in {message!r}"
    assert "\n" not in message, f"more than one line: {message!r}"
    assert not message.lower().startswith("it "), f"begins with 'it': {message!r}"
