"""The knowledge filter: which prompts a language model answers right, by its likeliest tokens."""

from pathlib import Path

import numpy as np
import torch

from saebench.errors import SaebenchError
from saebench.prompts import Prompts, load_known, save_known
from saebench.subject import Subject

# Prompts whose logits over the whole vocabulary exist at once.
_PROMPTS = 16


def with_knowledge(subject: Subject, prompts: Prompts, cache: Path, task: str) -> Prompts:
    """The prompts with `known`: whether every token of the answer is the model's likeliest one. Cached per model and dtype.

    Raises:
        SaebenchError: the model knows none of the answers.
    """
    model = f"{subject.loaded.sha256} {subject.dtype}"
    found = load_known(cache, prompts, model)
    if found is None:
        found = prompts.with_known(_known(subject, prompts))
        save_known(cache, found, model)
    if found.known is not None and not found.known.any():
        raise SaebenchError(
            f"task {task}: {subject.name} answers none of the {len(prompts)} prompts right: choose another --model or --task"
        )
    return found


@torch.no_grad()
def _known(subject: Subject, prompts: Prompts) -> np.ndarray:
    """[N] bool. Prompts of one length run together, so that nothing is padded before the answer."""
    known = np.zeros(len(prompts), dtype=bool)
    order = np.argsort(prompts.lengths, kind="stable")
    for rows in np.split(order, range(_PROMPTS, len(order), _PROMPTS)):
        texts = [[*prompts.token_ids[i, : prompts.lengths[i]].tolist(), *prompts.answer[i]] for i in rows]
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
        hidden = subject.hidden(padded.to(subject.device))
        for i, own in zip(rows, hidden, strict=True):
            start, answer = int(prompts.lengths[i]) - 1, list(prompts.answer[i])
            likeliest = subject.logits(own[start : start + len(answer)]).argmax(-1)
            known[i] = likeliest.tolist() == answer
    return known
