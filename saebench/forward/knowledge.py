"""The knowledge filter: which prompts a language model answers right, by its likeliest tokens."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from saebench.corpus import Contexts
from saebench.errors import SaebenchError
from saebench.prompts import Prompts, load_known, save_known
from saebench.subject import Subject
from saebench.task import PromptContent, Task

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


def with_filter(subject: Subject, contexts: Contexts, task: Task, cache: Path) -> Contexts:
    """The contexts with the knowledge filter of their prompts; only the known ones where the task asks for that.

    Raises:
        SaebenchError: see `with_knowledge`.
    """
    if contexts.prompts is None:
        return contexts
    prompts = with_knowledge(subject, contexts.prompts, cache, task.label)
    contexts = replace(contexts, prompts=prompts)
    if prompts.known is None or not (isinstance(task.content, PromptContent) and task.content.prompts.known):
        return contexts
    kept = contexts.take(np.flatnonzero(prompts.known))
    assert kept.prompts is not None
    left_out = (*prompts.dropped, ("not known", len(prompts) - len(kept)))
    return replace(kept, prompts=replace(kept.prompts, dropped=left_out), left_out=dict(left_out))


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
