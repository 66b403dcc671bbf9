"""A checkpoint's JSON config: values are checked by type and never converted."""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saebench.errors import one_line
from saebench.format import CheckpointError, LoadOptions

_JSON_LIMIT = 2**24


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} appears twice")
        found[key] = value
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: missing, not JSON, not an object, with a duplicate key, or larger than 16 MiB.
    """
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise ValueError("larger than any config")
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return value


@dataclass(frozen=True)
class Config:
    """A JSON object whose values are checked by type, never converted: the word "false" is no boolean, 7.5 is no k.

    Attributes:
        path: the file, for messages.
        data: the object.
        prefix: path of the object within the file, for messages ("trainer.").
    """

    path: Path
    data: dict[str, Any]
    prefix: str = ""

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Read the object in a file; raises as `read_json` does."""
        return cls(path, read_json(path))

    def _wrong(self, key: str, wanted: str) -> CheckpointError:
        value = json.dumps(self.data.get(key))[:60]
        return CheckpointError(f"{self.path}: '{self.prefix}{key}' is {value}, expected {wanted}")

    def check(self, matter: Collection[str], harmless: Collection[str], options: LoadOptions) -> None:
        """Refuse a key that is on neither list, since it may change every number."""
        strange = sorted(set(self.data) - set(matter) - set(harmless) - options.ignore_keys)
        if strange:
            raise CheckpointError(
                f"{self.path}: unknown key '{self.prefix}{strange[0]}' may change what the SAE computes; "
                f"if it does not, pass --ignore-key {strange[0]}"
            )

    def has(self, key: str) -> bool:
        """Whether the key has a value other than null."""
        return self.data.get(key) is not None

    def table(self, key: str) -> "Config":
        """The object under `key`; empty if the key is missing."""
        value = self.data.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return Config(self.path, value or {}, f"{self.prefix}{key}.")

    def integer(self, key: str, default: int | None = None, low: int = 1) -> int | None:
        """A whole number ≥ `low`; the default if the key is missing; a CheckpointError for any other value."""
        value = self.data.get(key, default)
        if value is None:
            return default
        if type(value) is not int or value < low:
            raise self._wrong(key, f"a whole number ≥ {low}")
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        """A finite number; the default if the key is missing; a CheckpointError for any other value."""
        value = self.data.get(key, default)
        if value is None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._wrong(key, "a finite number")
        return float(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """A JSON true or false; a CheckpointError if the key is missing and there is no default."""
        value = self.data.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not bool:
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        """A printable string of at most 500 characters; the default if the key is missing."""
        value = self.data.get(key, default)
        if value is None:
            return default
        if not isinstance(value, str) or not value.isprintable() or len(value) > 500:
            raise self._wrong(key, "a plain string")
        return value

    def choice(self, key: str, allowed: Collection[str], default: str | None = None) -> str:
        """One of `allowed`; a CheckpointError for any other value, or if the key is missing and there is no default."""
        value = self.data.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or value not in allowed:
            raise self._wrong(key, f"one of {', '.join(sorted(allowed))}")
        return value

    def expect(self, key: str, value: int) -> None:
        """Require the number under `key`, if there is one, to equal `value`, which the tensors imply."""
        said = self.integer(key)
        if said is not None and said != value:
            raise self._wrong(key, f"{value} as the tensors have it")
