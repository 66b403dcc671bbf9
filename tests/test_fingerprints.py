"""Fingerprints and hashes of committed records and built-in tasks, computed here from the files alone: none may move."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from saebench.catalog import load_task
from saebench.results import fingerprint, load_records
from saebench.task import builtin_tasks
from tests.conftest import REPOSITORY

RECORDS = sorted((REPOSITORY / "results").rglob("*@*.json"))
# The first 12 digits of the sha256 of each released task. A changed task is a new version and a new line, never a new hash.
TASKS = {
    "autointerp-small@1": "387e3c8a0974",
    "autointerp@1": "650ea07a2d01",
    "fidelity-pile@2": "118e3386da84",
    "fidelity@1": "ebd586d66e0d",
    "probing/author@1": "70216a1ce00d",
    "probing/party@1": "b1f1471b1ab7",
    "probing/wordnet@1": "5460780034c0",
    "probing-fetched/continent@1": "094054fdaa41",
    "probing-fetched/language@1": "e0ab00e9fe6a",
    "probing-fetched/sentiment@1": "609e0918dcb6",
    "probing-fetched/spam@1": "8143edb7da18",
    "probing-hub/ag-news@1": "e166f25699e0",
    "probing-hub/amazon-category@1": "6f5cde1b010a",
    "probing-hub/amazon-sentiment@1": "98d966914487",
    "probing-hub/bias-in-bios-1@1": "267c9ea2e99d",
    "probing-hub/bias-in-bios-2@1": "69cb3df8b4ca",
    "probing-hub/bias-in-bios-3@1": "bf6a4da49382",
    "probing-hub/europarl@1": "f53e4ae6dba7",
    "probing-hub/github-code@1": "97878c26982a",
}


def body_of(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return body


def recomputed(body: dict[str, Any]) -> str:
    """The fingerprint that the record's own identity gives, without saebench's code."""
    identity = {
        "sae": body["sae"]["sha256"], "model": body["model"]["sha256"], "hook": body["hook"],
        "hook_out": body["hook_out"], "task": body["task"], "corpus": body["corpus"]["fingerprint"],
        "settings": body["settings"],
    }  # fmt: skip
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def test_every_committed_record_has_the_fingerprint_of_its_identity():
    assert len(RECORDS) >= 22  # so that a moved folder does not pass for a whole one
    for path in RECORDS:
        body = body_of(path)
        assert body["fingerprint"] == recomputed(body), path


def test_every_committed_record_names_a_task_as_it_is_now():
    now = {load_task(name).label: load_task(name).sha256() for name in builtin_tasks()}
    for path in RECORDS:
        task = body_of(path)["task"]
        assert task["sha256"] == now[f"{task['name']}@{task['version']}"], path


def test_every_file_beside_a_committed_record_is_the_one_it_names():
    for path in RECORDS:
        for entry in body_of(path)["metrics"].values():
            for beside in [entry["units"] or {}, *entry.get("files", {}).values()]:
                if beside:
                    data = path.with_name(beside["file"]).read_bytes()
                    assert hashlib.sha256(data).hexdigest() == beside["sha256"], path


def test_what_is_read_is_what_is_written():
    records = load_records(REPOSITORY / "results")
    assert [r.path for r in records] == RECORDS
    for record in records:
        assert record.path is not None
        assert record.fingerprint == fingerprint(record.identity)
        assert record.to_json() == body_of(record.path)


@pytest.mark.parametrize("part", ["sae", "model", "task", "corpus", "settings", "hook", "hook_out"])
def test_every_part_of_the_identity_moves_the_fingerprint(part: str):
    body = body_of(RECORDS[0])
    body[part] = "another" if isinstance(body[part], str) else dict.fromkeys(body[part], "another")
    assert recomputed(body) != body["fingerprint"]


@pytest.mark.parametrize("label", TASKS)
def test_no_hash_of_a_built_in_task_moves(label: str):
    task = load_task(label.partition("@")[0])
    if task.label == label:  # a raised version has another hash, and a line of its own once it is released
        assert task.sha256()[:12] == TASKS[label]
    assert task.version >= int(label.partition("@")[2])
