"""The metric in whole runs: its contract, records and what lies beside them, replay, resuming, comparison."""

import hashlib
import itertools
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from saebench.plugins.metrics.autointerp.metric import AutoInterp, AutoInterpSmall
from saebench.plugins.metrics.autointerp.settings import Settings

import saebench
from saebench import Env, Record
from saebench.board.compare import compare
from saebench.board.leaderboard import boards
from saebench.cli import main
from saebench.judge import Reply, Request, read_reply
from saebench.results import load_records
from saebench.testing import check_metric, judge_session, random_sae, tiny_llama
from tests.autointerp.world import SIZES, WORDS, World, env, judging, tokenizer, true_answer, word
from tests.conftest import REPOSITORY, write_sae
from tests.judges.server import JudgeServer, Status
from tests.raising import raises


class Tiny(AutoInterp):
    """Sizes for `check_metric`'s twelve contexts of nine tokens."""

    settings = Settings(
        latents=6, window=3, quantiles=1, explained=1, judged=2, places=1, reservoir=4, top=2, pool=6, together=2
    )


def digest(request: Request) -> dict[str, bool | str]:
    """Answers that change with every letter of a request."""
    seen = hashlib.sha256(request.user.encode()).hexdigest()
    return {f: seen if kind == "string" else int(seen[i], 16) < 8 for i, (f, kind) in enumerate(request.fields.items())}


def test_contract() -> None:
    check_metric(Tiny, reads_text=True, env=lambda sae: Env(sae, tokenizer(), judge=judge_session(digest)))


def test_judge_calls_are_at_least_those_that_are_made() -> None:
    world = World()

    class Bound(AutoInterp):
        settings = SIZES

    session = judge_session(judging(lambda sentence, text, i: true_answer(sentence, text)))
    world.seen(Bound).scores(env(world, session))
    asked = session.judge.asked  # type: ignore[attr-defined]
    for calls in Bound.judge_calls(1000):
        mine = [r for r in asked if r.prompt == calls.prompt]
        assert 0 < len(mine) <= calls.count
        assert np.mean([len(r.system + r.user) for r in mine]) < 1.3 * calls.input_characters
    assert sum(c.count for c in AutoInterpSmall.judge_calls(100)) < sum(c.count for c in AutoInterp.judge_calls(100))
    assert AutoInterp.judge_calls(7)[0].count == 7


# --- whole runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny model with a tokenizer, a task of made-up words, two SAEs."""
    base = tmp_path_factory.mktemp("site")
    model = tiny_llama(base / "tiny", layers=2, vocabulary=len(tokenizer()))
    tokenizer().save_pretrained(model)
    rng = np.random.default_rng(0)
    texts = ["".join(word(i) for i in rng.integers(0, WORDS, 1200)) for _ in range(16)]
    pd.DataFrame({"document": [f"d{i}" for i in range(16)], "text": texts}).to_parquet(base / "text.parquet")
    sha = hashlib.sha256((base / "text.parquet").read_bytes()).hexdigest()
    (base / "task.toml").write_text(
        f'name = "words"\nversion = 1\nmetrics = ["autointerp_small"]\n[corpus]\nfile = "text.parquet"\nsha256 = "{sha}"\n'
        "[contexts]\nlength = 64\nbos = true\ncount = 288\n"
    )
    saes = [
        write_sae(base / f"sae{i}", random_sae(32, 256, k=2, seed=i), "blocks.0.hook_resid_post", str(model))
        for i in (1, 2)
    ]
    return {"task": str(base / "task.toml"), "model": str(model), "saes": saes, "base": base}


def run(site: dict[str, Any], results: Path, **options: Any) -> Record:
    [record] = saebench.run(site["saes"][0], model=site["model"], task=site["task"], results=results, **options)
    return record


def without_timings(record: Record) -> dict[str, Any]:
    body = record.to_json()
    for entry in body["runs"]:
        del entry["timings"]
    return body


def answer(asked: Any) -> dict[str, Any]:
    seen = hashlib.sha256(asked.user.encode()).digest()
    return {
        f: "a sentence" + seen.hex()[:4] if f == "explanation" else seen[i] < 128 for i, f in enumerate(asked.fields)
    }


def test_a_run_is_resumed_and_replayed(site: dict[str, Any], tmp_path: Path) -> None:
    """A key refused in the middle: what was answered is kept, the next run sends the rest, and a replay sends nothing."""
    cache = tmp_path / "replies.sqlite"
    stop = 200
    with JudgeServer(lambda asked: answer(asked) if len(server.asked) <= stop else Status(401)) as server:
        options = {"judge": "openai:test-model", "judge_url": server.url("openai"), "judge_cache": cache}
        broken = run(site, tmp_path / "a", **options)
        assert "autointerp_small" in broken.errors
        assert not broken.scores, "no number of a run that was not finished"
        kept = len({a.user for a in server.asked[:stop]})
        before, stop = len(server.asked), 10**9
        record = run(site, tmp_path / "a", **options)
        sent = {a.user for a in server.asked[before:]}
        assert not sent & {a.user for a in server.asked[:200]}, "nothing is asked twice"
        assert kept > 150
    assert not record.errors, "the error is gone"
    assert record.runs[-1]["timings"]["resumed"], "the pass is not made again for the sake of the judge"
    assert not (tmp_path / "a" / ".state").exists(), "and what it left behind is gone when it has served"
    assert record.path is not None
    replayed = run(site, tmp_path / "b", **options, replay="only")
    first = run(site, tmp_path / "c", **options, replay="only")
    assert json.dumps(without_timings(replayed)) == json.dumps(without_timings(first))
    mine, theirs = without_timings(record), without_timings(replayed)
    assert mine.pop("runs")[-1]["judged"] == theirs.pop("runs")[-1]["judged"]
    assert mine == theirs, "byte for byte, apart from timings and the run that broke off"
    no_score = theirs["metrics"]["autointerp_small"]["details"]["no_score"]
    assert no_score["detection_auroc"] == "not available: the judge gives no log-probabilities", "in a replay too"
    assert replayed.path is not None
    for suffix in ("jsonl", "html", "parquet"):
        name = f"{record.path.stem}.autointerp_small.{suffix}"
        assert (record.path.parent / name).read_bytes() == (replayed.path.parent / name).read_bytes()


def test_a_killed_command_goes_on_and_sends_only_what_is_missing(site: dict[str, Any], tmp_path: Path) -> None:
    """SIGKILL to `saebench run` in the middle of judging: the same command then makes the record of an uninterrupted one."""
    cache = tmp_path / "replies.sqlite"
    args = [
        "run",
        "--sae",
        site["saes"][0],
        "--model",
        site["model"],
        "--task",
        site["task"],
        "--judge",
        "openai:test-model",
    ]

    def slowly(asked: Any) -> dict[str, Any]:
        time.sleep(0.02)
        return answer(asked)

    with JudgeServer(slowly) as server:
        args += ["--judge-url", server.url("openai"), "--judge-cache", cache]
        command = [sys.executable, "-m", "saebench", *args, "--results", tmp_path / "a"]
        with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, cwd=REPOSITORY) as child:
            while len(server.asked) < 100:
                time.sleep(0.01)
                assert child.poll() is None, child.communicate()
            child.kill()
        asked = {a.user for a in server.asked}
        with sqlite3.connect(cache) as db:
            kept = {row[0] for row in db.execute("SELECT json_extract(request, '$.user') FROM replies")}
        assert kept <= asked
        assert len(asked - kept) <= 8 + 1, "only what was under way is lost"
        assert not list((tmp_path / "a").rglob("words@1*.json")), "no record of half a measurement"
        server.asked.clear()
        server.answer = answer
        again = CliRunner().invoke(main, [*map(str, args), "--results", str(tmp_path / "a")])
        assert again.exit_code == 0, again.stderr
        sent = [a.user for a in server.asked]
        assert len(sent) == len(set(sent)), "nothing is asked twice"
        assert not set(sent) & kept
        assert asked - kept <= set(sent)
        assert f"{len(sent)} calls sent" in again.stderr
        assert f"{len(kept)} replayed" in again.stderr
        server.asked.clear()
        whole = run(
            site,
            tmp_path / "b",
            judge="openai:test-model",
            judge_url=server.url("openai"),
            judge_cache=tmp_path / "b.sqlite",
        )
        assert len({a.user for a in server.asked}) == len(kept) + len(sent)
    [record] = load_records([tmp_path / "a"])
    assert record.runs[0]["timings"]["resumed"]
    assert without_timings(record) == without_timings(whole)
    for suffix in ("jsonl", "html"):
        assert record.files("autointerp_small")[suffix] == whole.files("autointerp_small")[suffix]


def test_what_a_record_keeps(site: dict[str, Any], tmp_path: Path) -> None:
    with JudgeServer(answer) as server:
        options = {"judge": "openai:test-model", "judge_url": server.url("openai"), "judge_cache": tmp_path / "replies"}
        record = run(site, tmp_path / "a", **options)
        [other] = saebench.run(
            site["saes"][1], model=site["model"], task=site["task"], results=tmp_path / "a", **options
        )
    details = record.metrics["autointerp_small"]["details"]
    assert details["sampled"] == AutoInterpSmall.settings.latents
    assert sum(details["states"]["detection"].values()) - details["states"]["detection"]["dead"] == details["sampled"]
    lines = [json.loads(line) for line in record.files("autointerp_small")["jsonl"].decode().splitlines()]
    assert details["explanations"] == {"ok": sum(line["explanation"] is not None for line in lines)}
    units = record.units("autointerp_small")
    assert units is not None
    assert [line["latent"] for line in lines] == units["unit_id"].tolist()
    for line, (_, unit) in zip(lines, units.iterrows(), strict=True):
        if unit["detection_n"]:
            said = [(w["kind"], w["answers"]["real"]) for w in line["windows"]["detection"]]
            yes = np.mean([a for k, a in said if k == "positive"])
            no = np.mean([not a for k, a in said if k == "random"])
            assert unit["detection"] == pytest.approx((yes + no) / 2)
    gain = record.score("detection_gain")
    assert gain["value"] == pytest.approx(
        record.score("detection")["value"] - record.score("detection_shuffled")["value"]
    )
    assert gain["low"] < gain["value"] < gain["high"]
    assert record.metrics["autointerp_small"]["paired"] is False
    [comparison] = compare([record, other], ["detection_gain"])
    assert not comparison.lines[0].paired
    assert comparison.lines[0].difference is not None
    assert comparison.lines[0].difference.n == 2 * details["sampled"]
    [board] = boards([record, other])
    assert not board.notes


def test_the_page_escapes_what_it_shows() -> None:
    world = World()

    def hostile(request: Request) -> dict[str, bool | str]:
        if "explanation" in request.fields:
            return {"explanation": "<script>alert(1)</script> & \u202e more"}
        return dict.fromkeys(request.fields, True)

    metric = world.seen()
    metric.scores(env(world, judge_session(hostile)))
    page = metric.files()["html"].decode()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    assert "\u202e" not in page
    assert page.count("<section>") == SIZES.latents
    assert "http" not in page, "it needs nothing else"


def test_a_reply_that_fits_no_file_loses_nothing_and_stands_last() -> None:
    """Half a surrogate pair in a key nobody asked for; and a gain of exactly 0 is a gain, before the latents without one."""
    calls = itertools.count()

    def odd(request: Request) -> Reply:
        if "explanation" not in request.fields:
            return read_reply(json.dumps(dict.fromkeys(request.fields, True)), request)
        broken = r', "\ud83d\u001b": 1' if next(calls) % 2 == 0 else ""
        return read_reply(f'{{"explanation": "x"{broken}}}', request)

    metric = World().seen()
    metric.scores(env(World(), judge_session(odd)))
    found = metric.files()
    problems = [json.loads(line)["problem"] for line in found["jsonl"].decode().splitlines()]
    assert problems[:2] == ["malformed: '' was not asked for", ""]
    sections = found["html"].decode().split("<section>")[1:]
    lost = ["no explanation" in section for section in sections]
    assert lost == sorted(lost)
    assert 0 < sum(lost) < len(lost)


def test_no_judge_and_no_tokenizer_are_said(site: dict[str, Any], tmp_path: Path) -> None:
    with raises(saebench.SaebenchError, "--judge"):
        run(site, tmp_path)
    world = World()
    with raises(saebench.SaebenchError, "tokenizer"):
        world.seen().scores(Env(world.sae, judge=judge_session(digest)))


def test_a_text_that_is_too_small_costs_nothing(site: dict[str, Any], tmp_path: Path) -> None:
    with JudgeServer(answer) as server:
        options = {"judge": "openai:test-model", "judge_url": server.url("openai"), "judge_cache": tmp_path / "replies"}
        record = run(site, tmp_path / "a", limit=4, **options)
        assert "the text is too small" in record.errors["autointerp_small"]
        assert not server.asked
