"""Prompts with answers: tokenised, split by entity, and filtered by the model's knowledge.

An evaluation reads them from `Contexts.prompts`, row for row with the contexts:

    prompts = contexts.prompts
    choose = prompts.rows(held_out=False, attribute="country")    # [n] numbers of prompts
    x = env.lens.capture(prompts.token_ids[choose], ...)          # the stream of these prompts
    x[range(len(choose)), prompts.position[choose]]               # at the entity's last token
    prompts.answer[i]                                             # token ids of the right answer of prompt i

Choose latents, thresholds and strengths on the prompts with `held_out` False, score on the others. Entities, never prompts, are
split: an entity is on one side with all its templates and attributes, and is the cluster of every interval.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from saebench.cache import load_from_cache, save_in_cache
from saebench.errors import SaebenchError, UsageError, unknown
from saebench.task import Prompt, PromptSpec
from saebench.text import clean


@dataclass(frozen=True)
class Prompts:
    """N prompts of at most T tokens, in the order of a hash of their text, so that the first n are a random sample.

    Attributes:
        token_ids: [N, T] int64, with BOS if the task has one; padded on the right with 0.
        lengths: [N] int64, tokens without padding; the answer is predicted at lengths - 1.
        position: [N] int64, the position of interest: the last token of the focus words, or of the prompt.
        answer: token ids of each answer; its first token is the prediction that evaluations read.
        source: the prompts as text.
        entity, attribute, template: [N] int64, indices into the names.
        entities, attributes, templates: the names, sorted.
        held_out: [N] bool, the side of each prompt's entity.
        known: [N] bool, whether the model gives the right answer; None before `with_known`.
        dropped: prompts left out, by reason.
    """

    token_ids: np.ndarray
    lengths: np.ndarray
    position: np.ndarray
    answer: tuple[tuple[int, ...], ...]
    source: tuple[Prompt, ...]
    entity: np.ndarray
    attribute: np.ndarray
    template: np.ndarray
    entities: tuple[str, ...]
    attributes: tuple[str, ...]
    templates: tuple[str, ...]
    held_out: np.ndarray
    known: np.ndarray | None = None
    dropped: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)

    def rows(
        self,
        *,
        held_out: bool | None = None,
        attribute: str | None = None,
        entity: str | None = None,
        known: bool = True,
    ) -> np.ndarray:
        """Row numbers of the prompts of a side, attribute and entity; with `known`, of known prompts only (after `with_known`).

        Raises:
            UsageError: no such attribute or entity.
        """
        chosen = np.ones(len(self), dtype=bool)
        if held_out is not None:
            chosen &= self.held_out == held_out
        for kind, name, names, codes in (
            ("attribute", attribute, self.attributes, self.attribute),
            ("entity", entity, self.entities, self.entity),
        ):
            if name is not None:
                if name not in names:
                    raise unknown(kind, name, names)
                chosen &= codes == names.index(name)
        if known and self.known is not None:
            chosen &= self.known
        return np.flatnonzero(chosen)

    def take(self, rows: np.ndarray) -> "Prompts":
        """The prompts with these row numbers; names keep their indices."""
        return replace(
            self,
            token_ids=self.token_ids[rows],
            lengths=self.lengths[rows],
            position=self.position[rows],
            answer=tuple(self.answer[i] for i in rows),
            source=tuple(self.source[i] for i in rows),
            entity=self.entity[rows],
            attribute=self.attribute[rows],
            template=self.template[rows],
            held_out=self.held_out[rows],
            known=None if self.known is None else self.known[rows],
        )

    def with_known(self, known: np.ndarray) -> "Prompts":
        """The same prompts with the knowledge filter: [N] bool, whether the model's answer is right."""
        if known.shape != (len(self),) or known.dtype != bool:
            raise ValueError(f"known has shape {known.shape} and type {known.dtype}, expected {len(self)} bool")
        return replace(self, known=known)

    def digest(self) -> bytes:
        """Hash of tokens, positions, answers, names and sides, without the knowledge filter, which depends on a model."""
        names = [self.answer, self.entities, self.attributes, self.templates]
        digest = hashlib.sha256(json.dumps(names).encode())
        for array in (
            self.token_ids,
            self.lengths,
            self.position,
            self.entity,
            self.attribute,
            self.template,
            self.held_out,
        ):
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return digest.digest()

    def about(self) -> dict[str, Any]:
        """Counts for the record: prompts, entities of each side, prompts of each attribute, prompts that the model knows."""
        return {
            "prompts": len(self),
            "entities": {
                "choose": len(set(self.entity[~self.held_out].tolist())),
                "held_out": len(set(self.entity[self.held_out].tolist())),
            },
            "attributes": {name: int((self.attribute == i).sum()) for i, name in enumerate(self.attributes)},
            "templates": len(set(self.template.tolist())),
            "known": None if self.known is None else int(self.known.sum()),
            "left_out": dict(self.dropped),
        }


def load_known(folder: Path, prompts: Prompts, model: str) -> Prompts | None:
    """The prompts with the filter that `save_known` cached; None if there is none.

    Args:
        folder: the cache folder.
        model: key of the language model: sha256 of its weights, and its dtype.
    """
    found = load_from_cache(_known_path(folder, prompts, model))
    known = None if found is None else found.get("known")
    if known is None or known.shape != (len(prompts),) or known.dtype != torch.bool:
        return None
    return prompts.with_known(known.numpy())


def save_known(folder: Path, prompts: Prompts, model: str) -> None:
    """Cache the knowledge filter of these prompts for a language model."""
    if prompts.known is not None:
        save_in_cache(_known_path(folder, prompts, model), {"known": torch.from_numpy(prompts.known.copy())})


def _known_path(folder: Path, prompts: Prompts, model: str) -> Path:
    key = hashlib.sha256(prompts.digest() + model.encode()).hexdigest()[:32]
    return folder / "known" / f"{key}.safetensors"


def prompt_rows(frame: pd.DataFrame, spec: PromptSpec, where: str) -> list[Prompt]:
    """The prompts of a table. Incomplete rows stay, for `make_prompts` to count.

    Raises:
        UsageError: a column is missing.
    """
    needed = [spec.text, spec.answer, spec.entity, *([spec.focus] if spec.focus else [])]
    for column in needed:
        if column not in frame:
            raise UsageError(f"{where}: {unknown('column', column, map(str, frame.columns))}")

    def cells(column: str | None) -> list[str | None]:
        if column is None or column not in frame:
            return [None] * len(frame)
        return [None if pd.isna(cell) else str(cell) for cell in frame[column]]

    columns = [cells(c) for c in (spec.text, spec.answer, spec.entity, spec.attribute, spec.template, spec.focus)]
    return [
        Prompt(text or "", answer or "", entity or "", attribute or "", template or "", focus)
        for text, answer, entity, attribute, template, focus in zip(*columns, strict=True)
    ]


def make_prompts(
    rows: Sequence[Prompt], tokenizer: Any, spec: PromptSpec, *, bos: int | None, length: int, count: int, where: str
) -> Prompts:
    """Tokenise prompts, find their positions of interest, and split their entities.

    Args:
        rows: the prompts as text.
        tokenizer: a fast tokenizer of transformers.
        bos: the id that each prompt begins with; None for none.
        length: longer prompts, in tokens, are left out and counted.
        count: largest number of prompts.
        where: the task, as named in errors.

    Raises:
        SaebenchError: focus words missing from a text, or fewer than two entities left.
    """
    dropped: Counter[str] = Counter({"incomplete": 0, "repeated": 0, "too long": 0, "beyond the task's count": 0})
    made: list[tuple[Prompt, list[int], int, tuple[int, ...]]] = []
    seen = set()
    for row in sorted(rows, key=lambda r: _hash(json.dumps([r.text, r.answer, r.entity, r.attribute, r.template]))):
        if not (row.text and row.answer and row.entity):
            dropped["incomplete"] += 1
            continue
        if (row.text, row.answer, row.attribute) in seen:
            dropped["repeated"] += 1
            continue
        seen.add((row.text, row.answer, row.attribute))
        ids, position = _tokens(row, tokenizer, bos, where)
        answer = tuple(tokenizer(row.answer, add_special_tokens=False, verbose=False).input_ids)
        if len(ids) > length:
            dropped["too long"] += 1
        elif not answer:
            dropped["incomplete"] += 1
        elif len(made) == count:
            dropped["beyond the task's count"] += 1
        else:
            made.append((row, ids, position, answer))
    source = tuple(row for row, *_ in made)
    entities, entity = np.unique([row.entity for row in source], return_inverse=True)
    attributes, attribute = np.unique([row.attribute for row in source], return_inverse=True)
    templates, template = np.unique([row.template for row in source], return_inverse=True)
    if len(entities) < 2:
        raise SaebenchError(f"{where}: {len(entities)} entities are left, but a split needs two ({dict(dropped)})")
    lengths = np.array([len(ids) for _, ids, *_ in made], dtype=np.int64)
    token_ids = np.zeros((len(made), int(lengths.max())), dtype=np.int64)
    for line, (_, ids, *_) in zip(token_ids, made, strict=True):
        line[: len(ids)] = ids
    held = split_entities(entities.tolist(), spec.held_out, spec.seed)
    return Prompts(
        token_ids, lengths, np.array([p for *_, p, _ in made], dtype=np.int64), tuple(a for *_, a in made), source,
        entity.astype(np.int64), attribute.astype(np.int64), template.astype(np.int64),
        tuple(entities.tolist()), tuple(attributes.tolist()), tuple(templates.tolist()), held[entity],
        dropped=tuple(sorted(dropped.items())),
    )  # fmt: skip


def split_entities(entities: Sequence[str], share: float, seed: int) -> np.ndarray:
    """[E] bool, the held-out entities: the first by a seeded hash of their names, at least one per side."""
    n = min(len(entities) - 1, max(1, round(share * len(entities))))
    order = sorted(range(len(entities)), key=lambda e: _hash(f"{seed}\0{entities[e]}"))
    held = np.zeros(len(entities), dtype=bool)
    held[order[:n]] = True
    return held


def _tokens(row: Prompt, tokenizer: Any, bos: int | None, where: str) -> tuple[list[int], int]:
    """The token ids of a prompt, and its position of interest."""
    try:
        found = tokenizer(row.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    except NotImplementedError as error:
        raise SaebenchError(
            f"{where}: the model's tokenizer returns no offsets, which prompts need: use its fast tokenizer"
        ) from error
    ids, start = list(found["input_ids"]), [] if bos is None else [bos]
    words = row.focus if row.focus is not None else row.entity
    at = row.text.rfind(words)
    if at < 0:
        if row.focus is not None:
            raise SaebenchError(f"{where}: prompt '{clean(row.text)}' does not contain its focus '{clean(words)}'")
        return [*start, *ids], len(start) + len(ids) - 1
    end = at + len(words)
    # The last token that begins before the end of the words; it may extend beyond them.
    inside = [i for i, (left, right) in enumerate(found["offset_mapping"]) if left < end and right > left]
    return [*start, *ids], len(start) + (inside[-1] if inside else len(ids) - 1)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
