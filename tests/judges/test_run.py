"""`saebench run --judge`, from the command line to the record, with a small metric that asks."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

from saebench import runner
from saebench.cli import main
from saebench.judge import Calls, Request
from saebench.metric import Env, Metric, Score
from saebench.registry import installed
from saebench.results import load_records
from tests.judges.server import Coin, JudgeServer, Status

CANARY = "sk-canary-0123456789abcdef"
N = 12


class Asking(Metric):
    """How many of the first latents the judge likes."""

    name = "asking"
    needs: ClassVar[frozenset[str]] = frozenset({"latents"})
    asks = ("like@1",)

    def __init__(self, sae: Any) -> None:
        self.seen = 0

    def update(self, batch: Any) -> None:
        self.seen += len(batch.context_id)

    def merge(self, other: Any) -> None:
        self.seen += other.seen

    def scores(self, env: Env) -> list[Score]:
        assert env.judge is not None
        sha = env.sae.sha256()[:8]
        asked = [Request("Say.", f"{sha} latent {i}", {"likes": "boolean"}, "like@1", 10) for i in range(N)]
        replies = env.judge.complete_all(asked)
        likes = [reply.data["likes"] for reply in replies if reply.state == "ok"]
        return [Score.plain("liked", sum(likes) / len(likes), n=len(likes), no_interval="a test")]

    @classmethod
    def judge_calls(cls, d_sae: int) -> list[Calls]:
        return [Calls("like@1", N, 4 * d_sae, 5)]


@pytest.fixture(autouse=True)
def asking(monkeypatch, tmp_path):
    monkeypatch.setitem(installed().metrics, "asking", Asking)
    monkeypatch.setenv("SAEBENCH_CACHE", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "SAEBENCH_JUDGE_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def call(two_saes, llama, tokens, tmp_path):
    def run(*args: Any, results: str = "results", metric: str = "asking", saes: Any = two_saes) -> Result:
        flags = [part for sae in saes for part in ("--sae", str(sae))]
        fixed = ["--model", llama, "--tokens", tokens, "--results", tmp_path / results, "--metric", metric]
        return CliRunner().invoke(main, ["run", *flags, *map(str, [*fixed, *args])])

    return run


def bodies(folder: Path) -> list[dict[str, Any]]:
    """Records without what differs from run to run: their timings."""
    found = [record.to_json() for record in load_records([folder])]
    for body in found:
        for entry in body["runs"]:
            del entry["timings"]
    return found


def test_from_the_command_to_the_record_and_back(call, tmp_path):
    coin = Coin()
    with JudgeServer(coin) as server:
        url = server.url("openai")
        done = call("--judge", "openai:test-model", "--judge-url", url)
        assert done.exit_code == 0, done.stderr
        assert f"judge openai:test-model: {2 * N} calls sent (price unknown), 0 replayed" in done.stderr
        assert len(server.asked) == 2 * N
        again = call("--judge", "openai:test-model", "--judge-url", url)
        assert "already measured" in again.stderr
        assert len(server.asked) == 2 * N
    for record in load_records([tmp_path / "results"]):
        expected = [a for a in server.asked if a.user.startswith(record.sae["sha256"][:8])]
        assert record.score("liked")["value"] == sum(coin(a)["likes"] for a in expected) / N
        about = {"provider": "openai", "model": "test-model", "url": url}
        assert record.settings["judge"] == {**about, "prompts": ["like@1"]}
        judged = record.runs[0]["judged"]["asking"]
        assert judged["calls"] == N
        assert judged["states"] == {"ok": N}
        assert judged["answered_by"] == ["test-model-2026-01-01"]
        assert judged["input_tokens"] > 0
    # The server is gone; what was recorded gives the same records.
    replayed = call("--judge", "openai:test-model", "--judge-url", url, "--replay", "only", results="replayed")
    assert replayed.exit_code == 0, replayed.stderr
    assert f"0 calls sent (price unknown), {2 * N} replayed" in replayed.stderr
    assert bodies(tmp_path / "replayed") == bodies(tmp_path / "results")
    by_judge = call("--judge", "replay:openai:test-model", "--judge-url", url, results="by-judge")
    assert by_judge.exit_code == 0, by_judge.stderr
    assert bodies(tmp_path / "by-judge") == bodies(tmp_path / "results")
    miss = call("--judge", "openai:other", "--judge-url", url, "--replay", "only", results="miss")
    assert miss.exit_code == 1
    assert "judge openai:other" in miss.stderr
    assert "--judge-cache" in miss.stderr


def test_another_judge_is_another_record(call, tmp_path, two_saes):
    with JudgeServer(Coin(), models=("one",)) as server:
        for model in ("one", "two"):
            done = call("--judge", f"openai:{model}", "--judge-url", server.url("openai"), saes=two_saes[:1])
            assert done.exit_code == 0, done.stderr
    one, two = load_records([tmp_path / "results"])
    assert one.fingerprint != two.fingerprint
    compared = CliRunner().invoke(main, ["compare", str(one.path), str(two.path)])
    assert compared.exit_code == 1
    assert "they differ in judge" in compared.stderr


def test_a_metric_that_asks_nobody_has_the_record_it_always_had(call, tmp_path):
    done = call(metric="sparsity")
    assert done.exit_code == 0, done.stderr
    for record in load_records([tmp_path / "results"]):
        assert "judge" not in record.settings
        assert "judged" not in record.runs[0]


@pytest.mark.parametrize(
    ("args", "metric", "words"),
    [
        ((), "asking", "metric 'asking' asks a judge: pass --judge PROVIDER:MODEL"),
        (("--judge", "openai:m"), "sparsity", "none of the metrics asks a judge (sparsity)"),
        (("--judge", "openai:gpt-4o-mini"), "asking", "set OPENAI_API_KEY"),
        (("--judge", "anthropic:claude-haiku-4-5"), "asking", "set ANTHROPIC_API_KEY"),
        (("--judge", "opnai:m"), "asking", "unknown judge 'opnai': did you mean 'openai'?"),
        (("--judge", "openai:m", "--judge-url", "http://127.0.0.1:9/v1"), "asking", "cannot be reached"),
        (("--judge", "openai:m", "--max-cost", "1"), "asking", "the price of openai:m is unknown"),
        (("--judge", "local:smollm2-135m-instruct", "--judge-batch"), "asking", "judge local takes no batches"),
        (("--judge", "local:nothing-here"), "asking", "no model 'nothing-here'"),
        (("--judge", "openai:m", "--max-cost", "-1"), "asking", "--max-cost must be"),
    ],
)
def test_what_cannot_work_is_one_line_before_a_model_runs(call, monkeypatch, args, metric, words):
    monkeypatch.setattr(runner, "load_source", lambda *_: pytest.fail("a model was loaded"))
    done = call(*args, metric=metric)
    assert done.exit_code in (1, 2)
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_dry_run_says_what_it_costs_and_asks_nobody(call, monkeypatch):
    done = call("--judge", "openai:gpt-4o-mini", "--dry-run")
    assert done.exit_code == 0, done.stderr
    words = (
        f"judge openai:gpt-4o-mini: {2 * N} calls, about {2 * N * 64:,} tokens in and {2 * N * 5} out: about $0.0003"
    )
    assert words in done.stdout
    assert "(prices of 2026-04-30)" in done.stdout
    assert "--max-cost" not in done.stdout
    [plan] = [json.loads(call("--judge", "openai:gpt-4o-mini", "--dry-run", "--json").stdout)]
    assert plan["judge"]["cost_usd"] == pytest.approx((2 * N * 64 * 0.15 + 2 * N * 5 * 0.6) / 1e6, abs=1e-6)
    half = json.loads(call("--judge", "openai:gpt-4o-mini", "--dry-run", "--json", "--judge-batch").stdout)
    assert half["judge"]["cost_usd"] == pytest.approx(plan["judge"]["cost_usd"] / 2, abs=2e-6)
    cost = plan["judge"]["cost_usd"]
    for limit, over in ((cost * 0.99, True), (cost * 1.01, False)):
        flags = ("--judge", "openai:gpt-4o-mini", "--dry-run", "--max-cost", str(limit))
        assert (f"over --max-cost {limit:g}: about ${cost:.4f} in all" in call(*flags).stdout) is over
        as_json = call(*flags, "--json")
        assert json.loads(as_json.stdout) == plan
        assert ("over --max-cost" in as_json.stderr) is over
    unknown = call("--judge", "openai:who-knows", "--dry-run")
    assert "an unknown price" in unknown.stdout
    assert json.loads(call("--judge", "openai:m", "--dry-run", "--json").stdout)["judge"]["cost_usd"] == "unknown"


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A server that is the provider's own address, at a known price, with a key that must be seen nowhere else."""
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    (tmp_path / "prices.toml").write_text('[openai."test-model"]\ninput = 1000\noutput = 1\ndate = 2026-11-01\n')
    monkeypatch.setenv("SAEBENCH_PRICES", str(tmp_path / "prices.toml"))
    with JudgeServer(Coin()) as server:
        monkeypatch.setattr(installed().judges["openai"], "home", server.url("openai"))
        yield server


def test_a_limit_leaves_an_error_and_a_higher_one_goes_on(call, tmp_path, home):
    done = call("--judge", "openai:test-model", "--max-cost", "1.5")
    assert done.exit_code == 1
    assert "stopped before passing --max-cost 1.5" in done.stderr
    assert 0 < len(home.asked) < 2 * N
    records = load_records([tmp_path / "results"])
    assert all("asking" in record.errors or record.score("liked") for record in records)
    sent = len(home.asked)
    done = call("--judge", "openai:test-model", "--max-cost", "100")
    assert done.exit_code == 0, done.stderr
    assert len(home.asked) == 2 * N
    assert f"{2 * N - sent} calls sent (at most $" in done.stderr
    assert not any(record.errors for record in load_records([tmp_path / "results"]))


def test_the_key_is_in_no_file_and_no_message(call, tmp_path, home):
    home.answer = lambda asked: Status(401, message=f"bad key {CANARY}") if asked.user.endswith("7") else Coin()(asked)
    shown = ""
    for args in ((), ("--debug",), ("--dry-run",), ("--json",)):
        done = call("--judge", "openai:test-model", *args)
        shown += done.output + done.stderr + repr(done.exception)
    assert "does not accept the key in OPENAI_API_KEY" in shown
    assert CANARY not in shown
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path


def test_judges_are_listed():
    done = CliRunner().invoke(main, ["list", "judges", "--json"])
    rows = {row["name"]: row["about"] for row in json.loads(done.stdout)}
    assert {"openai", "anthropic", "local", "replay"} <= set(rows)
    assert all(rows.values())
