"""The knowledge filter against greedy decoding by the whole model, its cache, and a model that answers nothing right."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from saebench.corpus import Contexts
from saebench.errors import SaebenchError
from saebench.forward.knowledge import with_filter, with_knowledge
from saebench.prompts import Prompts
from saebench.subject import Subject
from saebench.task import ContextSpec, CorpusSpec, Prompt, PromptContent, PromptSpec, Task
from tests.raising import raises
from tests.tiny_models import VOCABULARY, tiny

N = 40


def greedy(subject: Subject, ids: list[int], count: int) -> tuple[int, ...]:
    own = list(ids)
    for _ in range(count):
        own.append(int(subject.model(input_ids=torch.tensor([own]), use_cache=False).logits[0, -1].argmax()))
    return tuple(own[len(ids) :])


def prompts_for(subject: Subject) -> tuple[Prompts, np.ndarray]:
    """Prompts of 3 to 8 tokens; every third answer is wrong in its last token."""
    random = np.random.default_rng(0)
    lengths = random.integers(3, 9, N)
    token_ids = np.zeros((N, 8), dtype=np.int64)
    answers, right = [], np.arange(N) % 3 != 0
    for i, length in enumerate(lengths):
        token_ids[i, :length] = random.integers(3, VOCABULARY, length)
        answer = list(greedy(subject, token_ids[i, :length].tolist(), 1 + i % 3))
        answer[-1] = answer[-1] if right[i] else (answer[-1] + 1) % VOCABULARY
        answers.append(tuple(answer))
    codes = np.arange(N)
    names = tuple(map(str, codes))
    source = tuple(Prompt(name, "", name, "", "", None) for name in names)
    zeros = np.zeros(N, dtype=np.int64)
    prompts = Prompts(
        token_ids,
        lengths,
        lengths - 1,
        tuple(answers),
        source,
        codes,
        zeros,
        zeros,
        names,
        ("",),
        ("",),
        codes % 2 == 0,
    )
    return prompts, right


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_known_prompts_are_those_that_greedy_decoding_answers(name: str, tmp_path: Path, monkeypatch):
    subject = tiny(name)
    prompts, right = prompts_for(subject)
    found = with_knowledge(subject, prompts, tmp_path, "cities@1")
    assert found.known is not None
    assert found.known.tolist() == right.tolist()
    assert found.about()["known"] == int(right.sum())
    assert set(found.rows()) == set(np.flatnonzero(right))
    # The second time, no forward pass runs; another model has a filter of its own.
    monkeypatch.setattr(Subject, "hidden", lambda *_: pytest.fail("ran the model again"))
    assert with_knowledge(subject, prompts, tmp_path, "cities@1").known.tolist() == right.tolist()


def test_a_model_that_knows_nothing_is_an_error_of_one_line(tmp_path: Path):
    subject = tiny("llama")
    prompts, _ = prompts_for(subject)
    wrong = replace(prompts, answer=tuple((*a[:-1], (a[-1] + 2) % VOCABULARY) for a in prompts.answer))
    with raises(SaebenchError, "cities@1", f"none of the {N}", "--model", "--task"):
        with_knowledge(subject, wrong, tmp_path, "cities@1")


@pytest.mark.parametrize("only", [False, True])
def test_a_task_of_known_prompts_runs_no_other(only: bool, tmp_path: Path):
    subject = tiny("llama")
    prompts, right = prompts_for(subject)
    special = np.zeros(prompts.token_ids.shape, dtype=bool)
    contexts = Contexts(
        prompts.token_ids, prompts.entity, special, prompts.entities, available=N, lengths=prompts.lengths, prompts=prompts
    )  # fmt: skip
    task = Task(
        "cities", 1, ("sparsity",), PromptContent(CorpusSpec("x"), ContextSpec(N, True, 0), PromptSpec(known=only))
    )
    found = with_filter(subject, contexts, task, tmp_path)
    assert found.prompts is not None
    expected = np.flatnonzero(right) if only else np.arange(N)
    assert found.document_id.tolist() == found.prompts.entity.tolist() == expected.tolist()
    assert found.prompts.about()["left_out"].get("not known", 0) == N - len(expected)
    assert (found.fingerprint() == contexts.fingerprint()) is not only
