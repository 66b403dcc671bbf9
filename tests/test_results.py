"""Records on disk: whole or absent, validated on read, never overwritten by another variant."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saebench.errors import SaebenchError
from saebench.results import (
    SCHEMA,
    Record,
    RecordError,
    add_to_record,
    find_records,
    fingerprint,
    load_records,
    read_record,
    record_path,
    slug,
    write_atomically,
)


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
    with pytest.raises(RecordError, match="not the units"):
        read_record(path).units("m")
    path.with_name("t@1.m.parquet").unlink()
    with pytest.raises(RecordError, match="cannot be read"):
        read_record(path).units("m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": SCHEMA + 1}, "schema"),
        ({"schema": "1"}, "schema"),
        ({"extra": 1}, "extra"),
        ({"scores": {}}, "should be list"),
        ({"sae": {"name": "x"}}, "lacks 'sha256'"),
        ({"scores": [{"key": "a"}]}, "keys of a score"),
    ],
)
def test_foreign_records_are_refused_in_one_line(change, message, tmp_path):
    path = tmp_path / "t@1.json"
    path.write_text(json.dumps(make().to_json() | change))
    with pytest.raises(RecordError, match=message) as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


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
    with pytest.raises(SaebenchError, match=r"No space left.*free some space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["t@1.json"]


def test_what_is_not_a_full_disk_is_not_called_one(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaebenchError, match="may be written to") as caught:
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
    with pytest.raises(SaebenchError, match="did you mean 'two'"):
        find_records(["tow", "one"], tmp_path)
    with pytest.raises(RecordError, match="no such file"):
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
    with pytest.raises(SaebenchError, match="could not be written"):
        add_to_record(tmp_path / "file", found, ["m"], {})
