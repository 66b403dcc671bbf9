"""Records on disk: whole or absent, validated on read, never overwritten by another variant."""

import hashlib
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saebench.board.find import find_records
from saebench.errors import SaebenchError
from saebench.results import (
    SCHEMA,
    Record,
    RecordError,
    add_to_record,
    fingerprint,
    load_records,
    read_record,
    record_path,
    slug,
    write_atomically,
)
from tests.raising import check_message, raises


def make(name: str = "an-sae", **more: Any) -> Record:
    score = {"metric": "m", "version": 1, "key": "a", "at": None, "value": 0.5, "low": 0.4, "high": 0.6, "n": 3, "unit": "",
             "direction": "higher", "no_interval": None, "num": "x", "den": "y", "offset": 0.0, "scale": 1.0}  # fmt: skip
    body: dict[str, Any] = {
        "fingerprint": fingerprint({"name": name}), "partial": False, "sae": {"name": name, "sha256": "ab" * 32},
        "model": {"id": "a/model", "sha256": "cd" * 32}, "hook": "blocks.1.hook_resid_post",
        "hook_out": "blocks.1.hook_resid_post", "task": {"name": "t", "version": 1, "sha256": "ef" * 32},
        "corpus": {"fingerprint": "00"}, "settings": {"model_dtype": "float32", "sae_dtype": "float32", "max_norm": None,
                                                     "seed": 0, "limit": None},
        "metrics": {"m": {"version": 1, "units": None}}, "scores": [score],
    }  # fmt: skip
    return Record(**(body | more))


UNITS = pd.DataFrame({"unit_id": [0, 1], "cluster_id": [0, 1], "x": [1.0, 2.0], "y": [3.0, 4.0]})


def test_round_trip(tmp_path):
    record = make()
    path = record_path(tmp_path, record)
    record.write(path, {"m": UNITS})
    again = read_record(path)
    assert again.to_json() == record.to_json()
    pd.testing.assert_frame_equal(again.units("m"), UNITS)
    assert path.relative_to(tmp_path).parts == ("a-model", "blocks.1.hook_resid_post", "an-sae-abababab", "t@1.json")


def test_units_of_another_run_are_refused(tmp_path):
    record = make()
    record.write(path := record_path(tmp_path, record), {"m": UNITS})
    UNITS.assign(x=9.0).to_parquet(path.with_name("t@1.m.parquet"))
    with raises(RecordError, "t@1.m.parquet", "--force"):
        read_record(path).units("m")
    path.with_name("t@1.m.parquet").unlink()
    with raises(RecordError, "t@1.m.parquet"):
        read_record(path).units("m")


SCORE = make().scores[0]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"schema": SCHEMA + 1}, ["schema 2"]),
        ({"schema": "1"}, ["schema '1'"]),
        ({"schema": [1] * 10**6}, ["schema"]),
        ({"extra": 1}, ["unknown key 'extra'"]),
        ({"hook_ou": "x"}, ["unknown key 'hook_ou'", "'hook_out'"]),
        ({"scores": {}}, ["scores"]),
        ({"sae": {"name": "x"}}, ["missing key 'sha256' in [sae]"]),
        ({"sae": {"name": ["x"], "sha256": "s"}}, ["sae.name", "['x']"]),
        ({"sae": {"name": "a\0b", "sha256": "s"}}, ["NUL"]),
        ({"sae": {"name": "\ud800", "sha256": "s"}}, ["surrogate"]),
        ({"sae": {"name": "x", "sha256": "s", "further": 10**400}}, ["whole number"]),
        ({"scores": [{"key": "a"}]}, ["scores.0"]),
        ({"scores": [SCORE | {"valeu": 1.0}]}, ["valeu", "'value'"]),
        ({"scores": [SCORE | {"value": 1e308}]}, ["1e+308"]),
        ({"scores": [SCORE | {"n": 2.5}]}, ["2.5"]),
        ({"scores": [SCORE | {"within": [1, 0]}]}, ["within"]),
        ({"scores": [SCORE] * 20_000}, ["scores"]),
        ({"metrics": {"m": {"version": 1}}}, ["units", "metrics.m"]),
        ({"metrics": {"m": {"version": True, "units": None}}}, ["metrics.m.version", "True"]),
        ({"settings": make().settings | {"seed": -1}}, ["settings.seed", "-1"]),
        ({"runs": [3]}, ["runs"]),
        ({"errors": {"m": ["x"]}}, ["errors"]),
        ({"calibration": {"a": "1"}}, ["calibration.a"]),
    ],
)
def test_foreign_records_are_refused_in_one_line(change, parts, tmp_path):
    path = tmp_path / "t@1.json"
    path.write_text(json.dumps(make().to_json() | change))
    with raises(RecordError, "t@1.json", *parts):
        read_record(path)


def unreadable(folder: Path) -> list[Path]:
    """Files named like records, each hostile in another way."""
    good = make().to_json()
    made = {
        "nested": "[" * 10**6,
        "deep": json.dumps(good)[:-1] + ', "x": ' + '{"a":' * 500 + "1" + "}" * 501,
        "digits": json.dumps(good).replace("0.5", "9" * 5000),
        "power": json.dumps(good).replace("0.5", "1e400"),
        "nan": json.dumps(good).replace("0.5", "NaN"),
        "empty": "",
        "list": "[]",
    }
    for name, text in made.items():
        (folder / f"{name}@1.json").write_text(text)
    (folder / "bytes@1.json").write_bytes(b"\xff\xfe{}")
    os.mkfifo(folder / "pipe@1.json")
    (folder / "zero@1.json").symlink_to("/dev/zero")
    (folder / "nowhere@1.json").symlink_to(folder / "missing")
    (folder / "loop@1.json").symlink_to(folder / "loop@1.json")
    with (folder / "large@1.json").open("wb") as file:
        file.truncate(2**36)
    (folder / "secret@1.json").touch(mode=0)
    return sorted(p for p in folder.iterdir() if p.name != "secret@1.json" or os.geteuid())


def test_one_bad_record_costs_itself_and_one_line(tmp_path):
    bad = unreadable(tmp_path)
    for path in bad:
        with raises(RecordError, path.name):
            read_record(path)
    make("good").write(tmp_path / "good" / "t@1.json", {})
    with pytest.warns(UserWarning, match="left out") as warned:
        [record] = load_records([tmp_path], skip_damaged=True)
    assert record.sae["name"] == "good"
    lines = [str(w.message) for w in warned]
    assert len(lines) >= len(bad)
    assert all(line.count("\n") == 0 and len(line) < 1100 for line in lines)
    with pytest.raises(RecordError):
        load_records([tmp_path])
    with pytest.raises(RecordError):
        load_records(bad, skip_damaged=True)


def test_a_table_of_zeros_small_on_disk_is_refused_before_it_is_read(tmp_path):
    record = make()
    record.write(path := tmp_path / "t@1.json", {"m": UNITS})
    zeros = pa.array(np.zeros(10**7, dtype=np.int8))
    rows = pa.table({"x": pa.chunked_array([zeros] * 11)})
    pq.write_table(rows, beside := path.with_name("t@1.m.parquet"), compression="zstd")
    assert beside.stat().st_size < 2**20
    record.metrics["m"]["units"]["sha256"] = hashlib.sha256(beside.read_bytes()).hexdigest()
    with raises(RecordError, "t@1.json", "110,000,000 rows"):
        record.units("m")


@pytest.mark.parametrize(
    ("frame", "part"),
    [
        (UNITS.drop(columns="x"), "x"),
        (UNITS.assign(y=["a", "b"]), "y"),
        (UNITS.assign(x=float("nan")), "x"),
        (UNITS.assign(x=1e308), "x"),
        (UNITS.assign(z=[[1], [2]]), "z"),
        (UNITS.drop(columns="cluster_id"), "cluster_id"),
    ],
)
def test_units_without_their_numbers_are_refused(frame, part, tmp_path):
    record = make()
    record.write(tmp_path / "t@1.json", {"m": frame})
    with raises(RecordError, "t@1.json", part):
        record.units("m")


def test_a_damaged_table_is_a_record_error(tmp_path):
    record = make()
    record.write(path := tmp_path / "t@1.json", {"m": UNITS})
    data = path.with_name("t@1.m.parquet").read_bytes()
    for broken in (b"", data[:50], data[:4] + bytes(100) + data[104:], b"PAR1" * 9):
        path.with_name("t@1.m.parquet").write_bytes(broken)
        record.metrics["m"]["units"]["sha256"] = hashlib.sha256(broken).hexdigest()
        with raises(RecordError, "t@1.json"):
            record.units("m")


def test_a_misspelt_score_suggests_the_nearest_and_a_record_is_short():
    record = make(scores=[SCORE | {"key": key} for key in ("explained_variance", "kl", "l0", "dead", "cosine")])
    assert record.score("kl")["key"] == "kl"
    with pytest.raises(KeyError) as caught:
        record.score("explained_varience")
    check_message(str(caught.value), "'explained_varience'", "'explained_variance'")
    assert repr(record) == "Record(an-sae on t@1: explained_variance=0.5, kl=0.5, l0=0.5, dead=0.5, … 5 scores)"
    assert len(repr(make("x" * 5000))) < 300


def test_every_part_of_a_group_has_a_name():
    base = make().group
    settings = {"max_norm": 3.0, "sae_dtype": "float16", "bos": False, "seed": 1, "judge": {"model": "m"}}
    settings["metrics"] = {"m": {"k": 3}}
    others = [
        make(model={"id": "a/model", "sha256": "0"}),
        make(hook_out="x"),
        make(task=make().task | {"sha256": "0"}),
        make(corpus={"fingerprint": "1"}),
        *(make(settings=make().settings | {key: value}) for key, value in settings.items()),
    ]
    names = ["model_weights", "hook_point", "task_definition", "text", "max_norm", "dtypes", "bos", "seed", "judge"]
    names.append("metric_settings")
    for other, name in zip(others, names, strict=True):
        assert [part for part, a, b in zip(base._fields, base, other.group, strict=True) if a != b] == [name]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "null", '"0.5"', "true"])
def test_what_is_not_a_number_is_refused(value, tmp_path):
    path = tmp_path / "t@1.json"
    path.write_text(json.dumps(make().to_json()).replace('"value": 0.5', f'"value": {value}'))
    with pytest.raises(RecordError):
        read_record(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1}', "[" * 100_000])
def test_foreign_json_is_refused(text, tmp_path):
    (tmp_path / "t@1.json").write_text(text)
    with pytest.raises(RecordError):
        load_records([tmp_path])


def test_a_different_fingerprint_takes_another_name(tmp_path):
    first, second = make(), make(fingerprint="f" * 64)
    first.write(record_path(tmp_path, first), {})
    path = record_path(tmp_path, second)
    assert path.name == "t@1-ffffffff.json"
    assert record_path(tmp_path, first).name == "t@1.json"


def test_a_foreign_file_is_never_overwritten(tmp_path):
    record = make()
    path = record_path(tmp_path, record)
    path.parent.mkdir(parents=True)
    path.write_text("somebody's notes")
    assert record_path(tmp_path, record) != path


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    record = make()
    path = record_path(tmp_path, record)
    record.write(path, {})
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with raises(SaebenchError, "No space left", "free some space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["t@1.json"]


def test_what_is_not_a_full_disk_is_not_called_one(tmp_path):
    (tmp_path / "file").write_text("")
    with raises(SaebenchError, str(tmp_path / "file" / "inside")) as caught:
        write_atomically(tmp_path / "file" / "inside", b"new")
    assert "space" not in str(caught.value)


@given(st.text(max_size=200))
def test_a_slug_is_always_one_harmless_component(name):
    found = slug(name)
    assert found
    assert Path(found).name == found
    assert not found.startswith(".")
    assert len(found) <= 80


def test_find_records_by_name(tmp_path):
    for name, sha in (("one", "11"), ("two", "22")):
        record = make(name, sae={"name": name, "sha256": sha * 32})
        record.write(record_path(tmp_path, record), {})
    assert [r.sae["name"] for r in find_records(["two", "one-11111111"], tmp_path)] == ["two", "one"]
    with raises(SaebenchError, "'tow'", "'two'"):
        find_records(["tow", "one"], tmp_path)
    with raises(RecordError, "nowhere"):
        find_records(["one"], tmp_path / "nowhere")


# --- several writers -------------------------------------------------------------------------------------------------

ROUNDS = 12


def with_metric(record: Record, name: str, value: float) -> Record:
    """The record as a run leaves it that measured one metric more."""
    record.metrics[name] = {"version": 1, "units": None}
    record.scores.append(make().scores[0] | {"metric": name, "value": value})
    record.runs.append({"metrics": [name]})
    return record


def _writer(who: int, results: Path, ready: Any) -> None:
    """Read the record, wait until the other has read it too, add a metric of one's own; many times."""
    for i in range(ROUNDS):
        name = f"m{who}_{i}"
        seen = with_metric(read_record(record_path(results, make())), name, float(i))
        ready.wait(60)
        add_to_record(results, seen, [name], {name: UNITS.assign(x=float(i))})
        ready.wait(60)


def test_two_runs_that_add_to_one_record_lose_nothing(tmp_path):
    make().write(record_path(tmp_path, make()), {"m": UNITS})
    fork = multiprocessing.get_context("fork")
    ready = fork.Barrier(2)
    writers = [fork.Process(target=_writer, args=(who, tmp_path, ready)) for who in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    [record] = load_records([tmp_path])
    theirs = {f"m{who}_{i}": float(i) for who in range(2) for i in range(ROUNDS)}
    assert {row["metric"]: row["value"] for row in record.scores} == theirs | {"m": 0.5}
    assert sorted(run["metrics"][0] for run in record.runs) == sorted(theirs)
    for name, value in theirs.items():
        assert record.units(name)["x"].tolist() == [value, value]
    pd.testing.assert_frame_equal(record.units("m"), UNITS)


def test_what_is_measured_again_replaces_itself_alone(tmp_path):
    first = make(errors={"m.b": "zero", "other": "failed"})
    first.metrics["other"] = {"version": 1, "units": None}
    first.write(path := record_path(tmp_path, first), {"m": UNITS})
    again = make(runs=[{"metrics": ["m"]}], corpus={"fingerprint": "00", "tokens": {"scored": 3}})
    again.scores[0]["value"] = 0.25
    record = add_to_record(tmp_path, again, ["m"], {"m": UNITS.assign(x=9.0)})
    assert record.to_json() == read_record(path).to_json()
    assert record.errors == {"other": "failed"}
    assert set(record.metrics) == {"m", "other"}
    assert [row["value"] for row in record.scores] == [0.25]
    assert record.corpus == {"fingerprint": "00", "tokens": {"scored": 3}}
    assert record.units("m")["x"].tolist() == [9.0, 9.0]


def test_a_results_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    found = make(runs=[{}])
    with raises(SaebenchError, str(tmp_path / "file"), "--results"):
        add_to_record(tmp_path / "file", found, ["m"], {})
