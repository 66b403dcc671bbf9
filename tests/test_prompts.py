"""Tasks of prompts: positions by hand, a split by entity, a filter that belongs to a model, and tasks that plugins build."""

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from saebench import registry as registry_module
from saebench.catalog import known_tasks, load_task, load_tasks
from saebench.corpus import task_contexts
from saebench.errors import SaebenchError, UsageError
from saebench.prompts import Prompts, load_known, save_known, split_entities
from saebench.registry import Registry
from saebench.task import ContextSpec, CorpusSpec, Prompt, PromptContent, PromptSpec, Task, TaskBuilder
from tests.raising import raises

BOS = 1
CITIES = ("Paris", "Rome", "New York", "Lima", "Oslo", "Cairo")


class Encoding(dict[str, Any]):
    @property
    def input_ids(self) -> list[int]:
        return list(self["input_ids"])


class Characters:
    """Two characters a token, so that a word may end inside one."""

    bos_token_id = BOS
    all_special_ids = (BOS,)
    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012

    def __call__(self, text: str, **_: Any) -> Encoding:
        spans = [(i, min(i + 2, len(text))) for i in range(0, len(text), 2)]
        ids = [10 + sum(map(ord, text[a:b])) for a, b in spans]
        return Encoding(input_ids=ids, offset_mapping=spans)


def table(folder: Path, frame: pd.DataFrame, **prompts: Any) -> Task:
    path = folder / "cities.csv"
    frame.to_csv(path, index=False)
    corpus = CorpusSpec("cities.csv", hashlib.sha256(path.read_bytes()).hexdigest())
    content = PromptContent(corpus, ContextSpec(40, True, 1000), PromptSpec(**prompts))
    return Task("cities", 1, ("sparsity",), content, folder=folder)


def cities() -> pd.DataFrame:
    rows = [
        {
            "text": form.format(city),
            "answer": f" {city[0]}{attribute}",
            "entity": city,
            "attribute": attribute,
            "template": form,
        }
        for city in CITIES
        for attribute in ("country", "continent")
        for form in (f"{{}} is in the {attribute}", f"The {attribute} of {{}}:", f"Rome, {{}}, {attribute}?")
    ]
    return pd.DataFrame(rows)


def prompts_of(task: Task) -> Prompts:
    found = task_contexts(task, Characters()).prompts
    assert found is not None
    return found


def test_tokens_positions_and_answers_by_hand(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        [
            {"text": "ab Rome is", "answer": " x", "entity": "Rome"},  # ab| R|om|e |is: Rome ends in token 3, and BOS
            {"text": "Rome, Rome", "answer": " xyz", "entity": "Rome"},  # the last occurrence ends the prompt
            {"text": "The city", "answer": "y", "entity": "Lima"},  # not in the text: the last token
        ]
    )
    contexts = task_contexts(task := table(tmp_path, frame), Characters())
    prompts = contexts.prompts
    assert prompts is not None
    by_text = {p.text: i for i, p in enumerate(prompts.source)}
    assert [int(prompts.position[by_text[t]]) for t in frame.text] == [4, 5, 4]
    assert [len(prompts.answer[by_text[t]]) for t in frame.text] == [1, 2, 1]
    assert prompts.token_ids[:, 0].tolist() == [BOS] * 3
    for i, length in enumerate(prompts.lengths):
        assert contexts.special[i].tolist() == [j == 0 or j >= length for j in range(contexts.length)]
    assert contexts.documents == ("Lima", "Rome")
    assert contexts.document_id.tolist() == prompts.entity.tolist()
    without = task_contexts(task, Characters(), bos=False).prompts
    assert without is not None
    assert [int(without.position[by_text[t]]) for t in frame.text] == [3, 4, 3]


def test_the_focus_column_moves_the_position_and_must_be_there(tmp_path: Path) -> None:
    frame = pd.DataFrame([{"text": "ab cd ef gh", "answer": "x", "entity": e, "focus": "ab cd"} for e in CITIES])
    frame["answer"] = [f" {e}" for e in CITIES]
    assert set(prompts_of(table(tmp_path, frame, focus="focus")).position.tolist()) == {3}
    with raises(SaebenchError, "cities@1", "'zz'"):
        prompts_of(table(tmp_path, frame.assign(focus="zz"), focus="focus"))
    with raises(UsageError, "cities@1", "'fokus'", "focus"):
        prompts_of(table(tmp_path, frame, focus="fokus"))


def test_an_entity_is_on_one_side_with_all_its_prompts(tmp_path: Path) -> None:
    prompts = prompts_of(table(tmp_path, cities()))
    assert len(prompts) == 36
    sides = [set(prompts.held_out[prompts.entity == e].tolist()) for e in range(len(prompts.entities))]
    assert all(len(side) == 1 for side in sides)
    assert sum(side == {True} for side in sides) == 3
    choose, held = prompts.rows(held_out=False), prompts.rows(held_out=True)
    assert sorted([*choose, *held]) == list(range(36))
    assert not {prompts.source[i].entity for i in choose} & {prompts.source[i].entity for i in held}
    assert len(prompts.rows(attribute="country", held_out=True)) == 9
    with raises(UsageError, "contry", "country"):
        prompts.rows(attribute="contry")


def test_the_order_of_the_table_changes_nothing_and_the_seed_moves_entities(tmp_path: Path) -> None:
    task = table(tmp_path, cities())
    shuffled = cities().sample(frac=1, random_state=3)
    assert (
        task_contexts(table(tmp_path, shuffled), Characters()).fingerprint()
        == task_contexts(table(tmp_path, cities()), Characters()).fingerprint()
    )
    names = [f"city {i}" for i in range(200)]
    first = split_entities(names, 0.3, 0)
    assert first.sum() == 60
    assert 0.15 < np.mean(split_entities(names, 0.3, 1)[first]) < 0.45  # another seed is another split
    order = random.Random(0).sample(range(200), 200)
    assert split_entities([names[i] for i in order], 0.3, 0).tolist() == first[order].tolist()
    assert split_entities(["a", "b"], 0.01, 0).sum() == split_entities(["a", "b"], 0.99, 0).sum() == 1
    assert task.sha256() != table(tmp_path, cities(), seed=1).sha256()


def test_left_out_prompts_are_counted(tmp_path: Path) -> None:
    frame = pd.concat([cities(), cities().head(2), cities().tail(1).assign(answer=None)])
    frame.loc[len(frame)] = {"text": "Paris " * 30, "answer": " x", "entity": "Paris"}
    contexts = task_contexts(table(tmp_path, frame), Characters())
    assert len(contexts) == 36
    assert contexts.left_out == {"incomplete": 1, "repeated": 2, "too long": 1, "beyond the task's count": 0}
    assert contexts.prompts is not None
    about = contexts.prompts.about()
    assert about["entities"] == {"choose": 3, "held_out": 3}
    assert about["attributes"] == {"continent": 18, "country": 18}
    json.dumps(about, allow_nan=False)


def test_the_knowledge_filter_is_cached_for_its_model_and_prompts(tmp_path: Path) -> None:
    prompts = prompts_of(table(tmp_path, cities()))
    assert load_known(tmp_path, prompts, "model") is None
    known = np.arange(len(prompts)) % 3 == 0
    save_known(tmp_path, prompts.with_known(known), "model")
    found = load_known(tmp_path, prompts, "model")
    assert found is not None
    assert found.rows().tolist() == np.flatnonzero(known).tolist()
    assert len(found.rows(known=False)) == len(prompts)
    assert found.about()["known"] == 12
    assert found.digest() == prompts.digest()
    assert load_known(tmp_path, prompts, "another") is None
    assert load_known(tmp_path, prompts.take(np.arange(9)), "model") is None


def test_every_part_of_a_prompt_task_moves_its_hash(tmp_path: Path) -> None:
    base = table(tmp_path, cities())
    parts = [{"text": "t"}, {"answer": "a"}, {"entity": "e"}, {"attribute": "x"}, {"template": "y"}, {"focus": "f"},
             {"held_out": 0.4}, {"seed": 3}, {"known": True}]  # fmt: skip
    rows = (Prompt("a", "b", "c"), Prompt("a", "b", "d"))
    others = [table(tmp_path, cities(), **part) for part in parts]
    others += [
        base.with_content(rows=rows),
        base.with_content(rows=rows[::-1]),
        base.with_content(rows=(replace(rows[0], focus="a"),)),
    ]
    assert len({task.sha256() for task in [base, *others]}) == len(others) + 1


# --- tasks that plugins bring ----------------------------------------------------------------------------------------


class Letters:
    """A task whose words depend on the tokenizer."""

    name, version, metrics = "mine/letters", 2, ("sparsity",)

    def build(self, tokenizer: Any) -> Task:
        ids = [tokenizer(f" {city}").input_ids for city in CITIES]
        rows = tuple(Prompt(f"{city} begins with", f" {city[0]}", city) for city, _ in zip(CITIES, ids, strict=True))
        return Task(
            self.name, self.version, self.metrics, PromptContent(CorpusSpec(), ContextSpec(40, True, 100), rows=rows)
        )


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> Registry:
    found = Registry(tasks={"mine/letters": Letters()})
    monkeypatch.setattr(registry_module, "installed", lambda: found)
    return found


def test_a_plugin_s_task_is_found_announced_and_built(brought: Registry) -> None:
    [task] = load_tasks("mine")
    assert (task.label, task.kind, task.metrics) == ("mine/letters@2", "prompts", ("sparsity",))
    assert known_tasks()["mine/letters"].label == task.label
    built = task.build(Characters())
    assert built.build(None) is built
    contexts = task_contexts(task, Characters())
    assert contexts.fingerprint() == task_contexts(built, Characters()).fingerprint()
    assert contexts.documents == tuple(sorted(CITIES))
    with raises(UsageError, "mine/letters", "version 2"):
        load_task("mine/letters@1")
    with raises(UsageError, "mine/leters", "mine/letters"):
        load_task("mine/leters")


@pytest.mark.parametrize(
    ("build", "parts"),
    [
        (lambda _: 1 / 0, ("ZeroDivisionError", "mine/letters@2")),
        (lambda _: None, ("NoneType", "mine/letters@2")),
        (lambda _: load_task("fidelity"), ("fidelity@1", "mine/letters@2")),
    ],
)
def test_a_task_that_cannot_be_built_is_one_line(
    build: Any, parts: tuple[str, ...], brought: Registry, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Letters, "build", lambda self, tokenizer: build(tokenizer))
    with raises(SaebenchError, *parts):
        task_contexts(load_task("mine/letters"), Characters())


def test_a_task_is_its_own_builder() -> None:
    task = load_task("fidelity")
    assert isinstance(task, TaskBuilder)
    assert task.build(None) is task
