"""Reliability cards: how far each score of a metric can be trusted. `saebench audit` makes them; they lie in `reliability/`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from saebench.disk import write_atomically
from saebench.errors import SaebenchError, one_line
from saebench.reading import RECORD_BYTES, read_json
from saebench.text import clean

# Below a folder of records. Its files have no '@', by which records are found.
FOLDER = "reliability"


@dataclass(frozen=True)
class ScoreCard:
    """The reliability of one score; None where it could not be measured, with the reason in `missing`.

    Attributes:
        key, unit, direction: of the score.
        headline: whether the metric shows it first.
        panel: the SAEs it was measured on.
        reseed_cv: standard deviation over the metric's own seeds, divided by the mean, on one SAE.
        smallest_difference: the half-width of the 95 % interval of the difference between two recipes, one SAE each (median).
        seed_sd: standard deviation over training seeds of one recipe, pooled over recipes and levels.
        discriminability: share of pairs of recipes at matched L0 that are told apart at 95 % (Holm over the pairs of a level);
            seeds are replicates where the panel has them.
        pairs: how many pairs.
        degraded: share of degraded copies that are told from their original, as worse where the score has a direction.
        wrong_way: share of degraded copies that are told apart as better.
        copies: how many copies.
        ladder: the smallest noise on the decoder from which on most copies are told apart; "none" where 10 % is not.
        monotone: Kendall's τ between score and training time along the snapshots of one run; positive is better with time.
        truth: Kendall's τ with the planted truth over the whole panel; positive agrees with it.
        truth_matched: the same within a level of L0, averaged over levels.
        floor: the score of a random SAE.
        values: the score of each seed, by recipe and level of L0; controls among them.
        missing: reasons, by attribute.
    """

    key: str
    unit: str = ""
    direction: str | None = None
    headline: bool = False
    panel: str = ""
    reseed_cv: float | None = None
    smallest_difference: float | None = None
    seed_sd: float | None = None
    discriminability: float | None = None
    pairs: int = 0
    degraded: float | None = None
    wrong_way: float | None = None
    copies: int = 0
    ladder: str | None = None
    monotone: float | None = None
    truth: float | None = None
    truth_matched: float | None = None
    floor: float | None = None
    values: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """The cards of all scores of a metric.

    Attributes:
        metric, version: of the metric.
        command: that makes the card again.
        seed: of the audit.
        panels: facts about each panel, by name.
        scores: one card each.
    """

    metric: str
    version: int
    command: str
    seed: int
    panels: Mapping[str, Mapping[str, Any]]
    scores: tuple[ScoreCard, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `read_card` takes them back."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return plain

    def write(self, results: Path) -> Path:
        """Write the card below a folder of records.

        Raises:
            OSError: the folder cannot be written.
        """
        path = results / FOLDER / f"{self.metric}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(self.to_json(), indent=1) + "\n").encode())
        return path


def read_card(path: Path) -> Card:
    """A card from disk.

    Raises:
        SaebenchError: not a readable card.
    """
    try:
        return _ADAPTER.validate_python(read_json(path, RECORD_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = clean(".".join(map(str, first["loc"])), 100)
        raise SaebenchError(f"{path}: not a reliability card: {place}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise SaebenchError(f"{path}: not a reliability card: {one_line(error)}") from error


def read_cards(results: Path) -> dict[str, Card]:
    """All cards below a folder of records, by metric; none where there is no such folder.

    Raises:
        SaebenchError: a file is not a readable card.
    """
    cards = [read_card(path) for path in sorted((results / FOLDER).glob("*.json"))]
    return {card.metric: card for card in cards}


_ADAPTER = TypeAdapter(Card)
