"""The parts in which groups of records differ, so that two boards never carry one caption."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saebench.results import Group
from saebench.text import clean

# Names of options keep their underscore.
_WORDS = {"max_norm": "max_norm"}
# Characters shown of a value; if values agree in these, a hash of that length is shown instead.
_SHOWN = 8


def differing(groups: Sequence[Group]) -> list[dict[str, str]]:
    """For each group, the parts in which the groups differ, by name, with distinguishing values.

    A part that is a JSON object (a judge) is compared key by key, a list in it by the elements that not all groups have.
    """
    names = [_WORDS.get(name, name.replace("_", " ")) for name in groups[0]._fields]
    found: list[dict[str, str]] = [{} for _ in groups]
    for name, values in zip(names, zip(*groups, strict=True), strict=True):
        for part, texts in _parts(name, values):
            for one, text in zip(found, _shown(texts), strict=True):
                one[part] = text
    return found


def _parts(name: str, values: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The components in which values differ: (name, one text per value)."""
    if len(set(values)) == 1:
        return
    objects = [_object(value) for value in values]
    if all(one is None for one in objects):
        yield name, list(map(str, values))
        return
    if any(one is None for one in objects):
        yield name, ["none" if one is None else "given" for one in objects]
    keys = dict.fromkeys(key for one in objects if one for key in one)
    for key in keys:
        inner: list[Any] = [one.get(key) for one in objects if one]
        if all(isinstance(value, list) for value in inner):
            inner = [[x for x in value if not all(x in other for other in inner)] for value in inner]
        present = iter([_text(value) for value in inner])
        texts = [next(present) if one else "none" for one in objects]
        if len(set(texts) - {"none"}) > 1:
            yield f"{name} {key}", texts


def _object(value: str) -> Mapping[str, Any] | None:
    try:
        found = json.loads(value) if value.startswith("{") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _shown(texts: Sequence[str]) -> list[str]:
    """Each text, truncated if the results stay distinct; otherwise replaced by a hash."""
    for length in (_SHOWN, 16, 32, 64):
        cut = [clean(text, 200)[:length] for text in texts]
        if len(set(cut)) == len(set(texts)):
            return cut
    return [hashlib.sha256(text.encode(errors="replace")).hexdigest()[:_SHOWN] for text in texts]
