"""The short form of reliability cards beside a board."""

from collections.abc import Iterable
from pathlib import Path

from saebench.errors import SaebenchError, one_line
from saebench.reliability import Card, ScoreCard, read_cards
from saebench.report import Board
from saebench.text import clean


def card_notes(board: Board, folders: Iterable[Path]) -> list[str]:
    """One line per headline that has a direction and a card of its version; damaged cards are named."""
    cards: dict[str, Card] = {}
    found = []
    for folder in folders:
        try:
            cards |= read_cards(folder)
        except SaebenchError as error:
            found.append(f"left out: {one_line(error)}")
    for column in board.headlines:
        card = cards.get(column.metric)
        if card is None or card.version != column.version:
            continue
        for score in card.scores:
            if score.key == column.key and score.direction and (words := _short(score)):
                found.append(f"reliability of {clean(column.key)} ({clean(score.panel)}): {words}")
    return found


def _short(score: ScoreCard) -> str:
    parts = []
    if score.discriminability is not None:
        parts.append(f"separates {score.discriminability:.0%} of the recipes' pairs at matched L0")
    if score.ladder is not None:
        share = score.ladder.removeprefix("noise-")
        parts.append(
            "misses 10 % decoder noise" if score.ladder == "none" else f"sees {clean(share, 5)} % decoder noise"
        )
    if score.truth_matched is not None:
        parts.append(f"τ with planted truth {score.truth_matched:.2f}")
    return ", ".join(parts)
