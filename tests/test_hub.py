"""Labelled sets of the hub, read from local folders of the same shape: columns, subsets, files, labels, balance, groups."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saebench.catalog import load_task
from saebench.corpus import _labelled_table
from saebench.errors import SaebenchError, UsageError
from saebench.labels import LabelledTexts, labelled_texts
from saebench.loading.hub import full_commit, hub_table
from saebench.task import CorpusSpec, LabelSpec, Task, builtin_tasks
from tests.raising import raises

HUB_TASKS = [name for name in builtin_tasks() if name.startswith("probing-hub/")]
PAIRS = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}


def bios(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"hard_text": f"{i} works as {i % 28}", "profession": i % 28, "gender": int(rng.random() < 0.3)}
            for i in range(3000)]  # fmt: skip
    save(folder / "data" / "train-00000-of-00001-0ab6.parquet", rows)


def amazon(folder: Path) -> None:
    rows = [{"text": f"review {i}", "category": i % 7, "rating": 5.0 if i % 3 else 1.0} for i in range(1500)]
    save(folder / "data" / "train-00000-of-00001.parquet", rows)


def news(folder: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    names = ["World", "Sports", "Business", "Sci/Tech"]
    rows = {"text": [f"news {i}" for i in range(400)], "label": [i % 4 for i in range(400)]}
    (folder / "data").mkdir(parents=True)
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / "train-00000-of-00001.parquet")


def europarl(folder: Path) -> None:
    card = "---\nconfigs:\n"
    for pair in PAIRS.values():
        one, other = pair.split("-")
        rows = [{"translation": {one: f"{one} {i}", other: f"{other} {i}"}} for i in range(80)]
        save(folder / pair / "train-00000-of-00001.parquet", rows)
        card += f"- config_name: {pair}\n  data_files:\n  - split: train\n    path: {pair}/train-*\n"
    (folder / "README.md").write_text(card + "---\n")


def code(folder: Path) -> None:
    endings = [".c", ".h", ".py", ".html", ".java", ".php", ".rb", ""]
    rows = [{"content": f"{'/' * 150}code {i}", "repo_name": f"repo {i % 90}", "path": f"src/file{endings[i % 8]}",
             "license": "mit", "size": 9} for i in range(1600)]  # fmt: skip
    save(folder / "data" / "train-00000-of-01126.parquet", rows)
    (folder / "github-code.py").write_text("raise SystemExit('a loading script must not run')\n")


def save(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path, index=False)


SHAPES: dict[str, Callable[[Path], None]] = {
    "bias-in-bios-1": bios, "bias-in-bios-2": bios, "bias-in-bios-3": bios, "amazon-category": amazon,
    "amazon-sentiment": amazon, "ag-news": news, "europarl": europarl, "github-code": code,
}  # fmt: skip


def read(task: Task, folder: Path, per_class: int) -> tuple[LabelledTexts, LabelSpec]:
    assert task.labels is not None
    labels = replace(task.labels, per_class=per_class)
    return _labelled_table(task.with_content(corpus=replace(task.corpus, hub=str(folder))), labels), labels


@pytest.mark.parametrize("name", HUB_TASKS)
def test_saebenchs_eight(name: str, tmp_path: Path) -> None:
    SHAPES[name.partition("/")[2]](tmp_path)
    found, labels = read(load_task(name), tmp_path, 40)
    names = tuple(sorted(set((labels.classes or PAIRS).values() if labels.classes else PAIRS)))
    assert found.labels.classes == names
    counts = np.bincount(found.labels.label, minlength=len(names))
    assert (counts == (30 if name.endswith("bios") else counts[0])).all()
    assert 20 <= counts[0] <= 40
    for c in range(len(names)):
        assert 0.1 < found.labels.test[found.labels.label == c].mean() < 0.35
    again, _ = read(load_task(name), tmp_path, 40)
    assert again.texts == found.texts


def test_balance_takes_as_many_of_each_value(tmp_path: Path) -> None:
    bios(tmp_path)
    task = load_task("probing-hub/bias-in-bios-1")
    found, _ = read(task, tmp_path, 40)
    rows = pd.read_parquet(next(tmp_path.rglob("*.parquet"))).set_index("hard_text")
    gender = rows.gender[found.texts].to_numpy()
    profession = rows.profession[found.texts].to_numpy()
    for value in (0, 1, 2, 6, 9):
        of_it = gender[profession == value]
        assert (of_it == 0).sum() == (of_it == 1).sum() == 20
    assert set(profession) == {0, 1, 2, 6, 9}
    assert found.dropped["of other labels"] == (~rows.profession.isin([0, 1, 2, 6, 9])).sum()
    few = rows[(rows.profession == 2) & (rows.gender == 1)].index[11:]
    rows.drop(few).reset_index().to_parquet(next(tmp_path.rglob("*.parquet")))
    rarer, _ = read(task, tmp_path, 40)
    attorneys = rarer.labels.label == rarer.labels.classes.index("attorney")
    assert attorneys.sum() == 22
    assert (rarer.labels.label == rarer.labels.classes.index("dentist")).sum() == 40
    rows[(rows.profession != 2) | (rows.gender == 0)].reset_index().to_parquet(next(tmp_path.rglob("*.parquet")))
    with raises(UsageError, "attorney", "balance"):
        read(task, tmp_path, 40)


def test_code_is_split_by_repository_without_its_licence(tmp_path: Path) -> None:
    code(tmp_path)
    found, _ = read(load_task("probing-hub/github-code"), tmp_path, 1000)
    assert all(text.startswith("code ") for text in found.texts)
    sides: dict[str, set[bool]] = {}
    for group, test in zip(found.groups, found.labels.test.tolist(), strict=True):
        sides.setdefault(group, set()).add(test)
    assert {len(s) for s in sides.values()} == {1}
    assert (np.bincount(found.labels.label)[list(found.labels.classes).index("C")]) == 400  # .c and .h


def test_europarl_labels_are_subsets(tmp_path: Path) -> None:
    europarl(tmp_path)
    found, _ = read(load_task("probing-hub/europarl"), tmp_path, 1000)
    assert {
        (text.split()[0], found.labels.classes[c]) for text, c in zip(found.texts, found.labels.label, strict=True)
    } == {(name, name) for name in PAIRS}


def test_what_a_hub_set_lacks_is_one_line(tmp_path: Path) -> None:
    news(tmp_path)
    spec = CorpusSpec(hub=str(tmp_path), documents=50)
    with raises(SaebenchError, "could not be read", "did you mean 'label'"):
        hub_table(spec, LabelSpec(label="lable"))
    with raises(SaebenchError, "could not be read") as caught:
        hub_table(replace(spec, split="dev"), LabelSpec())
    assert "\n" not in str(caught.value)
    frame, columns = hub_table(spec, LabelSpec(classes={"9": "none"}))
    assert len(frame) == 50
    with raises(UsageError, "0 classes"):
        labelled_texts(frame, columns, "t")


def test_a_commit_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Api:
        def list_repo_commits(self, repo: str, repo_type: str) -> list[object]:
            assert (repo, repo_type) == ("a/b", "dataset")
            return [type("Commit", (), {"commit_id": c * 40})() for c in "abb"]

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert full_commit(CorpusSpec(hub="a/b", revision="aaaaaaa")) == "a" * 40
    assert full_commit(CorpusSpec(hub="a/b", revision="c" * 40)) == "c" * 40
    for start, n in (("bbbbbbb", 2), ("ccccccc", 0)):
        with raises(SaebenchError, f"has {n} commits"):
            full_commit(CorpusSpec(hub="a/b", revision=start))
