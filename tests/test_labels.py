"""Labelled tables: what is left out is counted, no group is on both sides, and tasks of them run end to end."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import saebench
from saebench.board.leaderboard import boards
from saebench.board.plots import plots
from saebench.catalog import load_task, load_tasks
from saebench.cli import main
from saebench.corpus import task_contexts
from saebench.errors import UsageError
from saebench.labels import labelled_texts, read_table, split_by_group
from saebench.models import load_model
from saebench.running.dry_run import dry_runs
from saebench.running.request import Request
from saebench.task import LabelSpec, builtin_tasks
from saebench.testing import random_sae
from tests.conftest import HOOK
from tests.raising import raises

WORDS = [f"w{i}" for i in range(90)]


def table(groups: int = 12, each: int = 5, classes: int = 2, seed: int = 0) -> pd.DataFrame:
    """Groups of documents with one label each; a document is a few words, the first of which says its label."""
    rng = np.random.default_rng(seed)
    rows = []
    for g in range(groups):
        for _ in range(each):
            words = [WORDS[g % classes], *rng.choice(WORDS[10:], rng.integers(1, 9))]
            rows.append({"text": " ".join(words), "label": f"c{g % classes}", "group": f"g{g}"})
    return pd.DataFrame(rows).drop_duplicates("text", ignore_index=True)


BY_GROUP = LabelSpec(group="group")


def sides(frame: pd.DataFrame, spec: LabelSpec) -> dict[str, bool]:
    found = labelled_texts(frame, spec, "t")
    return dict(zip(found.texts, found.labels.test.tolist(), strict=True))


def test_no_group_is_on_both_sides() -> None:
    """Fails if the split is by row: then both sides would hold every group of five."""
    frame = table()
    side = sides(frame, BY_GROUP)
    per_group = frame.assign(side=frame.text.map(side)).groupby("group").side.nunique()
    assert (per_group == 1).all()
    per_label = frame.assign(side=frame.text.map(side)).groupby("label").side.nunique()
    assert (per_label == 2).all()
    by_row = sides(frame, LabelSpec())
    assert (frame.assign(side=frame.text.map(by_row)).groupby("group").side.nunique() == 2).any()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=2, max_size=30), st.floats(0.1, 0.6))
def test_every_label_with_two_groups_has_both_sides(groups: list[tuple[int, int]], share: float) -> None:
    label = np.concatenate([np.full(n, c) for c, n in groups])
    group = np.concatenate([np.full(n, g) for g, (_, n) in enumerate(groups)])
    test = split_by_group(label, group, [str(g) for g in range(len(groups))], share)
    for g in range(len(groups)):
        assert len(set(test[group == g])) == 1
    for c in set(label.tolist()):
        if len(set(group[label == c].tolist())) > 1:
            assert 0 < test[label == c].sum() < (label == c).sum()


def test_order_of_the_file_changes_nothing() -> None:
    frame = table()
    frame = pd.concat([frame, frame.head(3).assign(group=["g8", "g10", "g2"])], ignore_index=True)  # copies elsewhere
    a = labelled_texts(frame, BY_GROUP, "t")
    b = labelled_texts(frame.sample(frac=1, random_state=1), BY_GROUP, "t")
    assert (a.texts, a.groups) == (b.texts, b.groups)
    assert a.labels.digest() == b.labels.digest()


def test_the_shares_of_the_vendored_sets() -> None:
    for name, presidents in (("probing/party", 14), ("probing/wordnet", 1977)):
        task = load_task(name)
        assert task.labels is not None
        found = labelled_texts(read_table(task.folder / str(task.corpus.file)), task.labels, name)
        assert sum(found.dropped.values()) == 0
        assert len(set(found.labels.group.tolist())) == presidents
        assert not set(found.labels.group[found.labels.test]) & set(found.labels.group[~found.labels.test])
        for c in range(len(found.labels.classes)):
            assert 0.2 < found.labels.test[found.labels.label == c].mean() < 0.4


def test_what_is_left_out_is_counted() -> None:
    frame = table()
    extra = [
        {"text": "", "label": "c0", "group": "g0"},
        {"text": None, "label": "c0", "group": "g0"},
        {"text": "w1 w2 w3 w1", "label": None, "group": "g0"},
        {"text": "w1 w2 w3", "label": "c0", "group": None},
        {"text": f" {frame.text[0]} ", "label": frame.label[0], "group": "g7"},
        {"text": "w5 w5 w5", "label": "c0", "group": "g0"},
        {"text": "w5 w5 w5", "label": "c1", "group": "g1"},
    ]
    found = labelled_texts(pd.concat([frame, pd.DataFrame(extra)], ignore_index=True), BY_GROUP, "t")
    assert found.dropped == {
        "without text": 2, "without label": 1, "without group": 1, "under several labels": 2, "repeated": 1,
    }  # fmt: skip
    assert len(found.texts) == len(frame)


def test_a_label_column_of_numbers_with_a_gap() -> None:
    frame = table().assign(label=lambda f: (f.label == "c1").astype(float))
    frame.loc[0, "label"] = np.nan
    found = labelled_texts(frame, BY_GROUP, "t")
    assert found.labels.classes == ("0", "1")
    assert found.dropped["without label"] == 1


def test_na_is_a_label(tmp_path: Path) -> None:
    frame = table().assign(label=lambda f: f.label.map({"c0": "NA", "c1": "None"}))
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert labelled_texts(read_table(tmp_path / "t.csv"), BY_GROUP, "t").labels.classes == ("NA", "None")


def test_bad_tables_are_one_line_errors(tmp_path: Path) -> None:
    frame = table()
    with raises(UsageError, "'lable'", "'label'"):
        labelled_texts(frame, LabelSpec(label="lable"), "t")
    with raises(UsageError, "t", "1 class"):
        labelled_texts(frame.assign(label="x"), BY_GROUP, "t")
    with raises(UsageError, "'c0'", "one group"):
        labelled_texts(frame.assign(group=frame.label), BY_GROUP, "t")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("text,label\ncaf\xe9,a\n".encode("latin-1"))
    with raises(UsageError, "latin.csv", "UTF-8"):
        read_table(latin)
    with raises(UsageError, "none.csv"):
        read_table(tmp_path / "none.csv")


# --- end to end, on a tiny model with a tokenizer --------------------------------------------------------------------


@pytest.fixture(scope="module")
def speaker(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("speaker") / "speaker"
    shutil.copytree(llama, folder)
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {w: i + 3 for i, w in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def task_file(folder: Path, frame: pd.DataFrame, name: str = "mine", length: int = 6, count: int = 1000) -> str:
    import hashlib

    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.parquet"
    frame.to_parquet(data, index=False)
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    path = folder / f"{name}.toml"
    path.write_text(
        f'name = "{name}"\nversion = 1\nmetrics = ["probing"]\n[corpus]\nfile = "{name}.parquet"\nsha256 = "{digest}"\n'
        f'[labels]\ngroup = "group"\n[contexts]\nlength = {length}\nbos = true\ncount = {count}\n'
    )
    return str(path)


def test_documents_become_padded_contexts(speaker: Path, tmp_path: Path) -> None:
    frame = table()
    contexts = task_contexts(load_task(task_file(tmp_path, frame)), load_model(str(speaker)).tokenizer)
    assert len(contexts) == len(frame)
    assert contexts.lengths is not None
    words = {
        " ".join(WORDS[i - 3] for i in row[1:n]) for row, n in zip(contexts.token_ids, contexts.lengths, strict=True)
    }
    assert words == {" ".join(t.split()[:5]) for t in frame.text}
    assert contexts.left_out["cut"] == sum(len(t.split()) > 5 for t in frame.text)
    assert contexts.dropped_tokens == sum(max(0, len(t.split()) - 5) for t in frame.text)
    for row, special, n in zip(contexts.token_ids, contexts.special, contexts.lengths, strict=True):
        assert special.tolist() == [True, *[False] * (n - 1), *[True] * (len(row) - n)]
    some = contexts.take(np.array([3, 1]))
    assert contexts.labels is not None
    assert some.labels is not None
    assert some.labels.label.tolist() == contexts.labels.label[[3, 1]].tolist()


def test_pooled_activations_are_those_of_each_document_alone(speaker: Path, tmp_path: Path, monkeypatch) -> None:
    """Padding and company change nothing: every document run alone by transformers gives the same mean and maximum."""
    seen = {}
    from saebench.plugins.metrics.probing import metric as probing

    monkeypatch.setattr(probing.Probing, "scores", lambda self, env: seen.update(rows=self.rows) or [])
    task = task_file(tmp_path, table(6, 4))
    sae = saebench.testing.random_sae(seed=3)
    saebench.run(
        sae, model=str(speaker), hook="blocks.1.hook_resid_post", task=task, results=tmp_path / "r", batch_size=5
    )
    contexts = task_contexts(load_task(task), load_model(str(speaker)).tokenizer)
    rows = {int(u): (r["x"]["mean"][i], r["x"]["max"][i]) for r in seen["rows"] for i, u in enumerate(r["unit_id"])}
    assert sorted(rows) == list(range(len(contexts)))
    widths = [r["x"]["mean"].shape for r in seen["rows"]]
    assert len(widths) == -(-len(contexts) // 5)
    model = load_model(str(speaker)).model
    for i, n in enumerate(contexts.lengths):
        with torch.no_grad():
            x = model(torch.from_numpy(contexts.token_ids[i : i + 1, :n]), output_hidden_states=True).hidden_states[2][
                0, 1:
            ]
        assert rows[i][0] == pytest.approx(x.double().mean(0).numpy(), abs=1e-4)
        assert rows[i][1] == pytest.approx(x.amax(0).numpy(), abs=1e-4)


def test_a_labelled_run_makes_a_record(speaker: Path, two_saes: list[Path], tmp_path: Path) -> None:
    task = task_file(tmp_path, table(12, 12))
    records = saebench.run(two_saes, model=str(speaker), task=task, results=tmp_path / "r")
    for record in records:
        assert record.errors == {}
        assert record.corpus["labels"]["groups"] == {"train": 8, "test": 4}
        assert record.corpus["tokens"]["special"] == record.corpus["contexts"]  # BOS; padding is not counted
        units = record.units("probing")
        assert units is not None
        assert len(units) == sum(c["test"] for c in record.corpus["labels"]["classes"].values())
        gap = record.score("gap_to_random_sae")
        assert gap["no_interval"] in ((None,) if gap["low"] is not None else ("no variance in 4 clusters",))
        assert record.score("dense_accuracy")["value"] > 0.8
        assert record.metrics["probing"]["details"]["probes"]
        assert json.loads(record.path.read_text())
    assert any(record.score("gap_to_random_sae")["low"] is not None for record in records)
    [board] = boards(records)
    assert {"curve-mean_sae_accuracy", "curve-max_sae_accuracy"} <= set(plots(board))
    assert records[0].score("dense_accuracy")["value"] == records[1].score("dense_accuracy")["value"]
    alone = saebench.run(two_saes[1], model=str(speaker), task=task, results=tmp_path / "alone", batch_size=7)[0]
    for row, other in zip(records[1].scores, alone.scores, strict=True):
        assert row["value"] == pytest.approx(other["value"], abs=1e-9), row["key"]


def test_a_table_of_ones_own(speaker: Path, two_saes: list[Path], tmp_path: Path) -> None:
    """From the command line: a CSV with columns of other names; an error is one line."""
    frame = table(12, 12).rename(columns={"text": "review", "label": "stars"})
    frame.to_csv(tmp_path / "my.csv", index=False)
    base = ["run", "--sae", str(two_saes[0]), "--model", str(speaker), "--metric", "sparsity", "--json"]
    base += ["--results", str(tmp_path / "r"), "--data", str(tmp_path / "my.csv"), "--text-column", "review"]
    done = CliRunner().invoke(main, [*base, "--label-column", "stars", "--group-column", "group"])
    assert done.exit_code == 0, done.stderr
    [record] = json.loads(done.stdout)
    assert record["task"]["name"] == "data/my"
    assert set(record["corpus"]["labels"]["classes"]) == {"c0", "c1"}
    wrong = CliRunner().invoke(main, [*base, "--label-column", "star"])
    assert wrong.exit_code in (1, 2)
    [line] = [text for text in wrong.stderr.splitlines() if text.startswith("error")]
    assert "did you mean 'stars'" in line


def test_a_run_killed_while_probes_are_fitted_does_not_run_the_model_again(
    speaker: Path, two_saes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was pooled is kept, under all that changes it: another task, or another metric version, starts anew."""
    from saebench.plugins.metrics.probing.metric import Probing

    from saebench.subject import Subject

    task = task_file(tmp_path, table(12, 12))
    passes: list[int] = []
    capture = Subject.capture
    monkeypatch.setattr(Subject, "capture", lambda s, ids, *a: (passes.append(len(ids)), capture(s, ids, *a))[1])

    def run() -> list[saebench.Record]:
        passes.clear()
        return saebench.run(two_saes[0], model=str(speaker), task=task, results=tmp_path / "r")

    def killed(self: Probing, env: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Probing, "scores", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert sum(passes) > 100
    records = run()
    assert sum(passes) <= 2  # a look at whether the model can be hooked there
    assert records[0].runs[-1]["timings"]["resumed"]
    whole = saebench.run(two_saes[0], model=str(speaker), task=task, results=tmp_path / "whole")
    for record, other in zip(records, whole, strict=True):
        assert [row["value"] for row in record.scores] == [row["value"] for row in other.scores]


def test_eight_saes_share_one_run_of_the_model(speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model sees as many batches for eight SAEs as for one, and never runs above the hook point."""
    from saebench.subject import Subject

    task = task_file(tmp_path, table(12, 12))
    rows: list[int] = []
    capture = Subject.capture
    monkeypatch.setattr(Subject, "capture", lambda s, ids, *a: (rows.append(len(ids)), capture(s, ids, *a))[1])
    monkeypatch.setattr(Subject, "fork", None)
    saes = [saebench.testing.random_sae(seed=seed) for seed in range(8)]
    seen = []
    for some in (saes[:1], saes):
        rows.clear()
        names = [f"s{i}" for i in range(len(some))]
        saebench.run(some, names=names, model=str(speaker), hook="blocks.1.hook_resid_post", task=task, metrics=["sparsity"],
                     results=tmp_path / str(len(some)))  # fmt: skip
        seen.append(list(rows))
    calibration = len(seen[0]) - len(seen[1])  # cached by then
    assert seen[0][calibration:] == seen[1]


def test_a_dry_run_counts_labelled_texts_at_their_length(speaker: Path, two_saes: list[Path], tmp_path: Path) -> None:
    frame = table(12, 12)
    task = task_file(tmp_path, frame)
    [plan] = dry_runs(Request([two_saes[0]], model=str(speaker), task=task, results=tmp_path / "r"))
    tokens = sum(1 + min(5, len(text.split())) for text in frame.text)
    assert plan.to_json()["groups"][0]["tokens"] == tokens
    assert (plan.text.contexts, plan.text.length) == (len(frame), 6)
    assert f"{len(frame)} contexts of {tokens / len(frame):.1f} tokens on average (at most 6)" in plan.lines()[0]
    assert not (tmp_path / "r").exists()


def test_metrics_and_tasks_must_fit(speaker: Path, two_saes: list[Path], tokens: Path, tmp_path: Path) -> None:
    task = task_file(tmp_path, table())
    with raises(UsageError, "'fidelity'", "token_losses", "labels"):
        saebench.run(two_saes[0], model=str(speaker), task=task, metrics=["fidelity"], results=tmp_path)
    with raises(UsageError, "'probing'", "labels", "fidelity@"):
        saebench.run(two_saes[0], model=str(speaker), metrics=["probing"], results=tmp_path)
    [record] = saebench.run(two_saes[0], model=str(speaker), task=task, metrics=["sparsity"], results=tmp_path)
    assert record.score("l0")["value"] == 8


def test_too_few_documents_leave_an_error(speaker: Path, two_saes: list[Path], tmp_path: Path) -> None:
    task = task_file(tmp_path, table(12, 12))
    [record] = saebench.run(two_saes[0], model=str(speaker), task=task, limit=1, results=tmp_path)
    assert "fewer than two classes" in record.errors["probing"]
    assert record.scores == []


def test_a_suite_is_every_task_of_its_folder() -> None:
    assert [t.name for t in load_tasks("probing")] == [n for n in builtin_tasks() if n.startswith("probing/")]
    assert [t.name for t in load_tasks("probing/wordnet@1")] == ["probing/wordnet"]
    with raises(UsageError, "'probng'", "'probing'"):
        load_tasks("probng")


def test_a_table_of_ones_own_with_everything_wrong_with_it(speaker: Path, two_saes: list[Path], tmp_path: Path) -> None:
    """Nothing is dropped in silence: the record counts every row that is not there, and what was cut."""
    frame = table(12, 12).assign(group="")
    bad = [
        ("", "c0"),
        ("w1 w2", None),
        (frame.text[0], frame.label[0]),
        ("w7 " * 200, "c1"),
        ("w8 w9", "c0"),
        ("w8 w9", "c1"),
    ]
    pd.concat([frame, pd.DataFrame(bad, columns=["text", "label"])]).to_csv(tmp_path / "my.csv", index=False)
    [record] = saebench.run(two_saes[0], model=str(speaker), data=tmp_path / "my.csv", results=tmp_path / "r")
    assert record.corpus["left_out"] == {
        "without text": 1, "without label": 1, "without group": 0, "under several labels": 2, "repeated": 1,
        "without tokens": 0, "beyond the task's count": 0, "cut": 1,
    }  # fmt: skip
    assert record.corpus["dropped_tokens"] == 200 - 127
    assert record.corpus["contexts"] == len(frame) + 1
    assert record.score("accuracy")["n"] == sum(c["test"] for c in record.corpus["labels"]["classes"].values())


def test_a_suite_may_be_named_with_its_folder() -> None:
    assert {t.name for t in load_tasks("probing-hub")} == {n for n in builtin_tasks() if n.startswith("probing-hub/")}
    assert len(load_tasks("probing-hub")) == 8


def test_hashes_of_text_tasks_are_what_they_were() -> None:
    """A labelled task has a key more; the identity of every other must not change with that."""
    assert load_task("fidelity").sha256().startswith("ebd586d66e0d")


def test_a_model_without_bos_runs_a_task_with_it_and_no_bos_is_recorded(speaker: Path, tmp_path: Path) -> None:
    without = shutil.copytree(speaker, tmp_path / "without")
    config = json.loads((without / "tokenizer_config.json").read_text())
    del config["bos_token"]
    (without / "tokenizer_config.json").write_text(json.dumps(config))
    task = task_file(tmp_path, table())

    def measure(model: Path, **options: Any) -> Any:
        [record] = saebench.run(
            random_sae(seed=1),
            model=str(model),
            hook=HOOK,
            task=task,
            metrics=["sparsity"],
            results=tmp_path / "results",
            **options,
        )
        return record

    plain, asked, none = measure(speaker), measure(speaker, no_bos=True), measure(without)
    assert "bos" not in plain.settings
    assert asked.settings["bos"] is none.settings["bos"] is False
    assert plain.task == asked.task == none.task
    assert plain.fingerprint != asked.fingerprint
    assert (plain.group.bos, asked.group.bos) == ("as the task", "False")
    assert asked.corpus["tokens"]["scored"] == none.corpus["tokens"]["scored"]
    assert asked.score("l0")["value"] == none.score("l0")["value"]
