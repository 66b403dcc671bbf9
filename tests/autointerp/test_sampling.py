"""What is shown to whom: no document on both sides, silent means 0, the same windows whatever the order, and bounded memory."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from saebench.plugins.metrics.autointerp import collect
from saebench.plugins.metrics.autointerp.asking import Item, in_requests
from saebench.plugins.metrics.autointerp.examples import Examples, Pool, Window
from saebench.plugins.metrics.autointerp.hashing import Purpose, hashed
from saebench.plugins.metrics.autointerp.text import runs
from scipy import stats

from saebench.errors import SaebenchError
from saebench.metric import get_state, set_state
from tests.autointerp.world import LATENTS, LENGTH, SIZES, Small, World
from tests.raising import raises


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def examples(world: World) -> list[Examples]:
    return world.seen()._examples()


def truth(world: World, latent: int, w: Window) -> np.ndarray:
    """The latent's activations in a window, from the world itself."""
    found: np.ndarray = world.z[w.context, w.start : w.start + len(w.tokens), latent]
    return found


def shown(e: Examples) -> list[Window]:
    """Everything that the judge may see."""
    return [*e.judged, *e.random, *e.hard, *e.silent, *(w for t in e.twins for w in (t.first, t.second))]


def test_no_document_serves_explainer_and_judge(examples: list[Examples]) -> None:
    """delphi draws both from one pool with one seed: 20 of 50 test windows had been shown to the explainer."""
    explained = {w.document for e in examples for w in e.explained}
    judged = {w.document for e in examples for w in shown(e)}
    assert explained
    assert judged
    assert not explained & judged


def test_every_window_is_what_it_says(world: World, examples: list[Examples]) -> None:
    """SAEBench takes windows as negatives without looking at their activations; here they are exactly 0, and seen to be."""
    for e in examples:
        for w in [*e.explained, *e.top, *shown(e)]:
            assert np.array_equal(w.z, truth(world, e.latent, w))
            assert len(w.tokens) == SIZES.window
        for w in (*e.random, *e.hard, *e.silent):
            assert not w.z.any()
            assert not truth(world, e.latent, w).any()
        for w in (*e.explained, *e.judged):
            assert w.z.any()
        assert len(e.explained) == SIZES.explained
        assert len(e.judged) == len(e.random) + len(e.hard) == SIZES.judged
        assert len(e.hard) == SIZES.judged // 2
        assert len({w.context for w in e.random + e.hard}) == SIZES.judged, "one silent window a context"


def test_each_hard_negative_has_its_activating_window(examples: list[Examples]) -> None:
    """The token at which that one peaks stands in it too, as far from its beginning: which token it is tells nothing."""
    for e in examples:
        assert len(e.hard) == len(set(e.matched)) == SIZES.judged // 2
        assert {e.judged[i].quantile for i in e.matched} == {1, 2}, "of every quantile"
        for i, w in zip(e.matched, e.hard, strict=True):
            peak = int(np.abs(e.judged[i].z).argmax())
            assert w.tokens[peak] == e.judged[i].tokens[peak]


def test_hard_negatives_of_a_rare_token() -> None:
    """Tokens of very unequal frequency: there is one as long as the token stands in a context that is not taken."""
    rng = np.random.default_rng(0)
    tokens = rng.choice(5, (400, LENGTH), p=[0.9, 0.05, 0.03, 0.019, 0.001])
    n, full = len(tokens), np.full(400, LENGTH)
    contexts = {"context": np.arange(n), "document": np.arange(n), "tokens": tokens,
                "ok": np.ones_like(tokens, bool), "low": 0 * full, "high": full}  # fmt: skip
    none = {name: np.zeros(0, np.int64) for name in ("latent", "context", "position")}
    pool = Pool(contexts, none, SIZES.window, seed=3)
    taken: set[int] = set()
    for offset in (8, 3):
        rare = np.flatnonzero((tokens[:, offset : LENGTH - SIZES.window + offset + 1] == 4).any(1))
        while (w := pool.hard(0, pool.fires(0), 4, offset, taken)) is not None:
            assert w.tokens[offset] == 4
            assert w.context in set(rare) - taken
            taken.add(w.context)
        assert set(rare) <= taken
    assert len(taken) > 10
    assert pool.hard(0, pool.fires(0), 7, 8, set()) is None, "it stands nowhere"


def test_quantiles_order_the_peaks(examples: list[Examples]) -> None:
    for e in examples:
        for windows, each in ((e.explained, SIZES.explained), (e.judged, SIZES.judged)):
            peaks = [(w.quantile, float(w.z.max())) for w in windows]
            low = [p for q, p in peaks if q == 1]
            high = [p for q, p in peaks if q == 2]
            assert len(low) == len(high) == each // 2
            assert max(low) <= min(high)


def test_wrong_highlights_are_the_right_ones_moved_onto_silent_tokens(world: World, examples: list[Examples]) -> None:
    for e in examples:
        assert len(e.twins) == SIZES.places
        for t in e.twins:
            assert (t.first.context, t.first.document) == (t.second.context, t.second.document)
            assert t.first.start != t.second.start
            for own, other in ((t.first, t.second), (t.second, t.first)):
                fires = truth(world, e.latent, own) != 0
                assert fires.any()
                assert not (fires & other.fires).any(), "a wrong highlight stands where the latent fires"
                lengths = [b - a for a, b in runs(own.fires)]
                assert [b - a for a, b in runs(other.fires)] == lengths


def test_highlights_have_one_distribution_in_right_and_wrong_windows(examples: list[Examples]) -> None:
    """delphi's wrong highlights all stand at the same positions. Counts, run lengths and positions: equal, and by chi² too."""
    right: Counter[Any] = Counter()
    wrong: Counter[Any] = Counter()
    for e in examples:
        for t in e.twins:
            for into, pairs in (
                (right, ((t.first, t.first), (t.second, t.second))),
                (wrong, ((t.first, t.second), (t.second, t.first))),
            ):
                for _, marks in pairs:
                    into["count", int(marks.fires.sum())] += 1
                    into.update(("run", b - a) for a, b in runs(marks.fires))
                    into.update(("position", int(p)) for p in np.flatnonzero(marks.fires))
    assert right == wrong
    positions = [k for k in right if k[0] == "position"]
    assert len(positions) == SIZES.window, "highlights stand everywhere, not only in the middle"
    table = np.array([[right[k] for k in positions], [wrong[k] for k in positions]])
    assert stats.chi2_contingency(table).pvalue > 0.99


def test_each_text_comes_once_with_right_and_once_with_wrong_highlights(examples: list[Examples]) -> None:
    """So a judge that knows the explanation and ignores the highlights has a half, exactly."""
    from saebench.plugins.metrics.autointerp.asking import fuzzing_items
    from saebench.plugins.metrics.autointerp.text import Decoder

    from tests.autointerp.world import tokenizer

    for e in examples:
        items = fuzzing_items(e, Decoder(tokenizer()))
        plain = {
            kind: sorted(i.text.replace("<<", "").replace(">>", "") for i in items if i.kind == kind)
            for kind in ("positive", "moved")
        }
        assert plain["positive"] == plain["moved"]
        patterns = {k: sorted(i.marks.tolist() for i in items if i.kind == k) for k in ("positive", "moved", "silent")}
        assert patterns["positive"] == patterns["moved"] == patterns["silent"]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=7), st.integers(1, 5), st.integers(0, 3))
def test_no_request_holds_two_windows_of_one_latent(sizes: list[int], together: int, seed: int) -> None:
    """Each window is asked about once, in as few requests as can be."""
    nothing = Window(0, 0, 0, np.zeros(0), np.zeros(0))
    items = {7 * x: [Item(f"{x}.{i}", "random", nothing, np.zeros(0)) for i in range(n)] for x, n in enumerate(sizes)}
    groups = in_requests(items, together, seed)
    assert all(0 < len(group) <= together for group in groups)
    assert all(len({latent for latent, _ in group}) == len(group) for group in groups)
    assert sorted(item.text for group in groups for _, item in group) == sorted(
        i.text for mine in items.values() for i in mine
    )
    assert all(item in items[latent] for group in groups for latent, item in group)
    turns = [sum(n > turn for n in sizes) for turn in range(max(sizes))]
    assert len(groups) == sum(-(-n // together) for n in turns)
    backwards = dict(reversed(items.items()))
    texts = [[item.text for _, item in group] for group in groups]
    assert texts == [[item.text for _, item in group] for group in in_requests(backwards, together, seed)]


# --- independence of order ---------------------------------------------------------------------------------------------


def same(a: list[Examples], b: list[Examples]) -> bool:
    return repr(a) == repr(b)


def test_order_batches_ranks_and_restoring_change_nothing(world: World, examples: list[Examples]) -> None:
    whole = Small(world.sae)
    whole.update(world.batch(np.arange(len(world.words))))
    assert same(examples, whole._examples())
    rows = np.random.default_rng(1).permutation(len(world.words))
    parts = [Small(world.sae) for _ in range(3)]
    for i, chunk in enumerate(np.array_split(rows, 20)):
        parts[i % 3].update(world.batch(chunk))
        if i == 9:
            fresh = Small(world.sae)
            set_state(fresh, get_state(parts[0]))
            parts[0] = fresh
    for other in parts[1:]:
        parts[0].merge(other)
    assert same(examples, parts[0]._examples())


def test_another_seed_is_another_sample(world: World, examples: list[Examples]) -> None:
    other = world.seen(seed=1)._examples()
    assert [e.latent for e in other] != [e.latent for e in examples]
    assert {w.document for e in other for w in e.explained} != {w.document for e in examples for w in e.explained}


def test_the_sample_is_live_latents_in_the_order_of_their_hashes(world: World, examples: list[Examples]) -> None:
    order = np.argsort(hashed(0, Purpose.LATENT, np.arange(LATENTS)))
    live = [i for i in order.tolist() if world.z[..., i].any()]
    assert [e.latent for e in examples] == live[: SIZES.latents]
    assert not {LATENTS - 1, LATENTS - 2} & {e.latent for e in examples}


def test_latents_are_chosen_uniformly() -> None:
    """Over 400 seeds each of 50 latents is in a sample of 10 as often as chance allows."""
    live = np.ones(50, dtype=bool)
    counts = np.zeros(50)
    for seed in range(400):
        counts[collect.sampled(collect.latent_order(seed, 50), live, 10)] += 1
    assert stats.chisquare(counts).pvalue > 1e-3
    sides = collect.side(3, np.arange(10_000))
    assert abs(sides.mean() - 0.5) < 0.02


def test_memory_does_not_grow_with_the_text(world: World) -> None:
    made = Small(world.sae)
    sizes = []
    for _ in range(4):  # the same contexts under new numbers: as much new text
        for begin in range(0, len(world.words), 40):
            rows = np.arange(begin, begin + 40)
            ids = rows + 1000 * len(sizes)
            made.update(replace(world.batch(rows), context_id=ids, document_id=ids // 4))
        state = get_state(made)
        chunks = (c for name in ("windows", "contexts", "firings") for c in state[name])
        sizes.append(sum(a.nbytes for c in chunks for a in c.values()))
    most = SIZES.latents * (2 * SIZES.reservoir + SIZES.top) * (31 * 9 + 60) + SIZES.pool * LENGTH * 30
    assert max(sizes) < 3 * most
    assert sizes[-1] < 1.3 * sizes[1]


def test_tokens_that_are_not_scored_are_in_no_window() -> None:
    world = World(outliers=0.01)
    for e in world.seen()._examples():
        for w in [*e.explained, *e.top, *shown(e)]:
            assert not world.outlier[w.context, w.start : w.start + SIZES.window].any()
            assert w.start >= 1, "BOS is in no window"


# --- too little ----------------------------------------------------------------------------------------------------------


def test_too_little_text_is_said_before_anybody_is_asked(world: World) -> None:
    few = Small(world.sae)
    few.update(world.batch(np.arange(8)))
    with raises(SaebenchError, "0 of 16"):
        few._examples()
    with raises(SaebenchError, "no text"):
        Small(world.sae)._examples()
    mute = World(contexts=8)
    mute.z[...] = 0
    with raises(SaebenchError, "0 of 24"):
        mute.seen()._examples()


def test_a_latent_without_enough_windows_says_so(world: World) -> None:
    """One latent fires in one document only, one everywhere: neither can be asked about, the others can."""
    rare = World()
    order = [e.latent for e in world.seen()._examples()]
    rare.z[4:, :, order[0]] = 0
    rare.z[..., order[1]] = 1.0
    found = {e.latent: e for e in rare.seen()._examples()}
    assert "activating windows" in found[order[0]].lacks["detection"]
    assert "silent windows" in found[order[1]].lacks["detection"]
    assert "highlights can be moved" in found[order[1]].lacks["fuzzing"]
    assert not found[order[2]].lacks
