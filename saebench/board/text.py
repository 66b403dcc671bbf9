"""Names from other people's files, made harmless."""

import unicodedata


def clean(text: object, limit: int = 80) -> str:
    """A name from somebody's file as one harmless line: no control or bidi characters, not longer than `limit`."""
    start = str(text)[: 4 * limit]
    kept = "".join(" " if c.isspace() else c for c in start if c.isspace() or unicodedata.category(c)[0] != "C")
    line = " ".join(kept.split()) or "unnamed"
    return line if len(line) <= limit else line[: limit - 1] + "…"
