"""Gains by quantile of activation, and moved highlights on tokens as rare as the right ones."""

import numpy as np
import pytest
from saebench.plugins.metrics.autointerp.asking import explanation, prompt
from saebench.plugins.metrics.autointerp.collect import JUDGE
from saebench.plugins.metrics.autointerp.examples import Pool, _twins
from saebench.plugins.metrics.autointerp.metric import _useless
from scipy.stats import rankdata

from saebench.judge import Reply, State
from saebench.testing import judge_session, score_values
from tests.autointerp.world import World, coin, env, judging, true_answer

WINDOW, TYPES = 16, 2000


def test_gains_by_quantile_are_those_of_their_own_windows() -> None:
    """Against each latent's answers counted by hand; detection's silent windows stand against every quantile."""
    world = World()
    metric = world.seen()
    noise = coin(3)
    judge = judging(
        lambda sentence, text, i: true_answer(sentence, text) ^ (noise("", text, i) and noise("x", text, i))
    )
    found = dict(score_values(metric, env(world, judge_session(judge))))
    for aspect, other in (("detection", "random"), ("fuzzing", "moved")):
        for q in (1, 2):
            gains = []
            for one in metric._judged:
                accuracy = {}
                for condition in ("real", "shuffled"):
                    items = one.items[aspect]
                    yes = [i.answers[condition] for i in items if i.kind == "positive" and i.quantile == q]
                    no = [not i.answers[condition] for i in items if i.kind == other and i.quantile in (0, q)]
                    accuracy[condition] = (np.mean(yes) + np.mean(no)) / 2
                gains.append(accuracy["real"] - accuracy["shuffled"])
            assert found[f"{aspect}_gain_by_quantile", float(q)] == pytest.approx(np.mean(gains), rel=1e-12)
        assert found[f"{aspect}_gain_top", None] == found[f"{aspect}_gain_by_quantile", 2.0]
    assert found["fuzzing_gain", None] == pytest.approx(
        (found["fuzzing_gain_by_quantile", 1.0] + found["fuzzing_gain_by_quantile", 2.0]) / 2, rel=1e-12
    ), "as many places in each quantile"


def zipf_places(n: int = 400) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Stretches around firing tokens in text with Zipf's frequencies, where the latent fires on rarer tokens than most."""
    rng = np.random.default_rng(0)
    p = 1 / np.arange(1, TYPES + 1)
    p /= p.sum()
    tokens = rng.choice(TYPES, (n, 2 * WINDOW - 1), p=p)
    peak = WINDOW - 1
    tokens[:, peak] = rng.choice(TYPES, n, p=p**0.7 / (p**0.7).sum())
    z = np.zeros(tokens.shape, np.float32)
    z[:, peak] = 1
    half = {
        "latent": np.zeros(n, np.int64), "side": np.full(n, JUDGE), "context": np.arange(n), "document": np.arange(n),
        "peak": np.full(n, 40), "start": np.full(n, 32), "hash": np.arange(n, dtype=np.uint64), "magnitude": np.ones(n),
        "tokens": tokens, "z": z, "ok": np.ones(tokens.shape, bool),
    }  # fmt: skip
    text = rng.choice(TYPES, (2000, 64), p=p)
    contexts = {
        "context": np.arange(2000), "document": np.arange(2000), "hash": np.arange(2000, dtype=np.uint64),
        "low": np.zeros(2000, np.int64), "high": np.full(2000, 64), "tokens": text, "ok": np.ones(text.shape, bool),
    }  # fmt: skip
    return half, contexts


def rarity_auroc(half: dict[str, np.ndarray], pool: Pool, rarity: Pool) -> float:
    """AUROC of a rule that ranks highlights by how rare the highlighted tokens are."""
    right, moved = [], []
    for i in range(len(half["latent"])):
        twins = _twins(half, i, 1, WINDOW, pool)
        assert twins is not None
        for mine, other in ((twins.first, twins.second), (twins.second, twins.first)):
            right.append(rarity.rarity(mine.tokens[mine.fires]).sum())
            moved.append(rarity.rarity(mine.tokens[other.fires]).sum())
    rank = rankdata(right + moved)
    n = len(right)
    return float((rank[:n].sum() - n * (n + 1) / 2) / n**2)


def test_rarity_does_not_tell_right_highlights_from_moved_ones() -> None:
    half, contexts = zipf_places()
    nothing = {name: np.zeros(0, np.int64) for name in ("latent", "context", "position")}
    pool = Pool(contexts, nothing, WINDOW, 0)

    class Blind(Pool):
        """All tokens equally rare, as if nothing were matched."""

        def rarity(self, tokens: np.ndarray) -> np.ndarray:
            return np.zeros(tokens.shape)

    before = rarity_auroc(half, Blind(contexts, nothing, WINDOW, 0), pool)
    after = rarity_auroc(half, pool, pool)
    assert before > 0.65
    assert after - 0.5 < (before - 0.5) / 3, "the rarest tokens have no match within a window"


def test_rarity_is_the_negative_log_frequency() -> None:
    _, contexts = zipf_places(4)
    nothing = {name: np.zeros(0, np.int64) for name in ("latent", "context", "position")}
    contexts["ok"][:, :8] = False
    pool = Pool(contexts, nothing, WINDOW, 0)
    seen = contexts["tokens"][:, 8:]
    for token in (0, 7, 1500):
        expected = -np.log((np.sum(seen == token) or 0.5) / seen.size)
        assert pool.rarity(np.array([token]))[0] == pytest.approx(expected, rel=1e-12)
    assert pool.rarity(np.array([-1, 10**6])) == pytest.approx(-np.log(0.5 / seen.size))


# --- explanations that are none -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["your sentence", "Your sentence.", "<your sentence>", "your sentence here", "...", "…", "", " \n", "string", "-",
     "what they mean, their form, or what stands before them", "The tokens at which the latent fires"],
)  # fmt: skip
def test_a_copy_of_the_prompt_is_no_explanation(text: str) -> None:
    assert explanation(Reply("ok", {"explanation": text})) is None


@pytest.mark.parametrize(
    "text",
    ["names of ships", "a number", "verbs before your name", "the word sentence in legal texts", "tokens", "«но»"],
)
def test_short_explanations_count(text: str) -> None:
    assert explanation(Reply("ok", {"explanation": text})) == text


def test_the_placeholder_is_the_prompts_own() -> None:
    assert '"explanation": "your sentence"' in prompt("explain@1")


# --- the advice to somebody whose judge is of no use ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "part"),
    [
        (["failed"] * 9, "run the same command again"),
        (["malformed"] + ["failed"] * 8, "run the same command again"),
        (["malformed"] * 6 + ["failed"] * 3, "run the same command again"),  # it went away at the end
        (["failed"] + ["truncated"] * 8, "--judge-thinking"),
        (["refused"] * 9, "another judge"),
    ],
)
def test_one_odd_reply_does_not_change_the_advice(states: list[State], part: str) -> None:
    message = str(_useless("answered nothing", [Reply(state, problem="why") for state in states]))
    assert part in message
    assert ("--replay live" in message) == (part != "run the same command again")
