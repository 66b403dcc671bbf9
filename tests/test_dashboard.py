"""`saebench dashboard`: planted latents are found, counts are exact, and the page works in a browser without a network."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from saebench.cli import main
from saebench.corpus import Contexts
from saebench.dashboard import build
from saebench.dashboard.collect import EDGES, SAMPLED, STRONGEST, Reservoir
from saebench.errors import UsageError
from saebench.sae import ReLU
from saebench.steering import activity as activity_module
from saebench.steering import steer as steer_module
from saebench.steering.steer import Steerer
from saebench.testing import random_sae
from tests.raising import raises
from tests.test_html import chromium as chromium
from tests.test_steer import WORDS
from tests.test_steer import model as model

# The embeddings, where the token is all that there is.
HOOK = "blocks.0.hook_resid_pre"
TOKEN, PROMOTED, DEAD = 17, 42, 7


@pytest.fixture(scope="module")
def text() -> Contexts:
    ids = np.random.default_rng(0).integers(3, WORDS, (40, 16))
    ids[:, 0] = 1
    ids[::3, 6] = TOKEN
    return Contexts(ids, np.arange(40), ids == 1, tuple(map(str, range(40))), bos=True)


@pytest.fixture(scope="module")
def steerer(model: Path, text: Contexts) -> Any:
    """Latent 0 fires on one token and nothing else; latent 1 writes another token's row of the head; latent 7 is dead."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (activity_module, build):
            patch.setattr(module, "task_contexts", lambda task, tokenizer: text)
        found = random_sae(32, 64, k=None, seed=5, hook=HOOK, model=str(model))
        plain = Steerer(found)
        x = plain.lens.capture(torch.from_numpy(text.token_ids)).x.reshape(-1, 32)
        fires = torch.from_numpy(text.token_ids.reshape(-1) == TOKEN)
        direction = torch.nn.functional.normalize(x[fires][0], dim=0)
        score = x @ direction
        assert score[fires].min() > score[~fires].max(), "the planted latent separates the token"
        W_enc, b_enc, W_dec = found.W_enc.clone(), found.b_enc.clone(), found.W_dec.clone()
        W_enc[:, 0], b_enc[0] = direction, -(score[~fires].max() + score[fires].min()) / 2
        head = plain.subject.model.get_output_embeddings().weight
        W_dec[1] = head[PROMOTED] / head[PROMOTED].norm()
        b_enc[DEAD] = -1e6
        sae = replace(found, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, activation=ReLU(), subtracts_b_dec=False)
        yield Steerer(sae)


@pytest.fixture(scope="module")
def body(steerer: Steerer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return build.dashboard(steerer, "some/sae", results=tmp_path_factory.mktemp("none"))


def test_a_latent_that_fires_on_a_token_shows_it_in_every_window(body: dict[str, Any], text: Contexts) -> None:
    row, word = body["latents"][0], body["words"].index(f"w{TOKEN}")
    assert row["n"] == (text.token_ids == TOKEN).sum()
    windows = [one for found in row["windows"].values() for one in found]
    assert len(row["windows"]["strongest"]) == STRONGEST
    assert {"random", "fifth 5 of 5", "fifth 1 of 5"} <= set(row["windows"])
    for context, tokens, z in windows:
        assert word in tokens
        assert [t == word for t in tokens] == [value > 0 for value in z]
        assert [body["words"][t] for t in tokens] == [
            "<s>" if t == 1 else f"w{t}" for t in text.token_ids[context].tolist()
        ]


def test_a_row_of_the_head_promotes_its_token(body: dict[str, Any]) -> None:
    top, bottom = body["latents"][1]["top"], body["latents"][1]["bottom"]
    assert body["words"][top[0][0]] == f"w{PROMOTED}"
    assert len(top) == len(bottom) == 10
    assert top[-1][1] > bottom[-1][1] > bottom[0][1]


def test_counts_and_correlations_are_exact(body: dict[str, Any], steerer: Steerer, text: Contexts) -> None:
    x = steerer.lens.capture(torch.from_numpy(text.token_ids)).x
    z = steerer.sae.encode(x).dense()[torch.from_numpy(~text.special)].numpy()
    assert body["tokens"] == len(z) == 40 * 15
    pearson = np.nan_to_num(np.corrcoef(z[:, z.std(0) > 0].T))
    alive = np.flatnonzero(z.std(0) > 0)
    for row in body["latents"]:
        own = z[:, row["latent"]]
        assert row["n"] == (own > 0).sum() == sum(count for _, count in row["histogram"])
        for b, count in row["histogram"]:
            low, high = 0 if b == 0 else EDGES[b], np.inf if b == len(EDGES) - 2 else EDGES[b + 1]
            assert count == ((own > 0) & (own >= low) & (own < high)).sum()
        for other, value in row["correlated"]:
            expected = pearson[np.searchsorted(alive, row["latent"]), np.searchsorted(alive, other)]
            assert value == pytest.approx(expected, abs=2e-3)
        strongest = row["windows"].get("strongest", [])
        assert [max(w[2]) for w in strongest] == pytest.approx(
            sorted((np.where(text.special, 0, zs)[i].max() for i, zs in peaks(z, text, row["latent"])), reverse=True)[
                : len(strongest)
            ],
            rel=1e-2,
        )
    assert (body["latents"][DEAD]["n"], body["latents"][DEAD]["windows"]) == (0, {})


def peaks(z: np.ndarray, text: Contexts, latent: int) -> list[tuple[int, np.ndarray]]:
    """A latent's activations [contexts, T], with each context's number."""
    whole = np.zeros(text.token_ids.shape)
    whole[~text.special] = z[:, latent]
    return [(i, whole) for i in range(len(whole))]


def test_a_reservoir_keeps_the_smallest_keys_whatever_the_batches() -> None:
    rng = np.random.default_rng(0)
    latent, key = rng.integers(0, 5, 400), rng.permutation(400)
    whole, parts = Reservoir(SAMPLED), Reservoir(SAMPLED)
    whole.add(latent=latent, key=key)
    for some in np.array_split(np.arange(400), 7):
        parts.add(latent=latent[some], key=key[some])
    for i in range(5):
        expected = np.sort(key[latent == i])[:SAMPLED]
        assert whole.of(i)["key"].tolist() == parts.of(i)["key"].tolist() == expected.tolist()


def test_latents_are_named_or_spread(steerer: Steerer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = build.dashboard(steerer, "x", latents=[9, 0, 9], results=tmp_path)
    assert [row["latent"] for row in few["latents"]] == [0, 9]
    with raises(UsageError, "--latent", 64):
        build.dashboard(steerer, "x", latents=[64], results=tmp_path)
    monkeypatch.setattr(build, "LATENTS", 4)
    assert [row["latent"] for row in build.dashboard(steerer, "x", results=tmp_path)["latents"]] == [0, 21, 42, 63]


def test_a_browser_searches_and_hovers_offline(body: dict[str, Any], tmp_path: Path, chromium: Any) -> None:
    evil = json.loads(json.dumps(body))
    evil["latents"][2]["explanation"] = "<script>alert(1)</script> ships"
    evil["latents"][2]["scores"] = {"detection": 0.75}
    file = tmp_path / "latents.html"
    file.write_text(build.page(evil), encoding="utf-8")
    problems: list[str] = []
    for width in (1440, 390):
        tab = chromium.new_page(viewport={"width": width, "height": 900})
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("dialog", lambda dialog: (problems.append("alert"), dialog.dismiss()))
        tab.on("request", lambda request: request.url.startswith(("file:", "data:")) or problems.append(request.url))
        tab.goto(f"{file.as_uri()}#0")
        tab.wait_for_selector("body[data-ready]")
        assert tab.locator("#latent h2").inner_text() == "Latent 0"
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        heights = tab.eval_on_selector_all("svg.bars rect", "bars => bars.map(bar => +bar.dataset.count)")
        assert sum(heights) == body["latents"][0]["n"], "histogram mass = density · n"
        tab.locator(".window span.peak").first.hover()
        assert tab.locator("#tip").inner_text().startswith("z = ")
        assert tab.locator(".window span.peak").all_inner_texts() == [f"w{TOKEN}"] * tab.locator(".window").count()
        tab.locator("#search").fill("ships")
        tab.locator("#list button").first.focus()
        tab.keyboard.press("Enter")
        assert tab.locator("#latent h2").inner_text() == "Latent 2"
        assert "detection 0.75" in tab.locator("#latent").inner_text()
        assert "--latent 2 " in tab.locator("#latent code").inner_text()
    assert problems == []


def test_the_command_writes_a_page_and_neuronpedia(
    steerer: Steerer, text: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "task_contexts", lambda task, tokenizer: text)
    monkeypatch.setattr(steer_module, "Steerer", lambda path: steerer)
    for format_, name in (("html", "page.html"), ("neuronpedia", "batch.json")):
        call = ["dashboard", "--sae", "some/sae", "--output", str(tmp_path / name), "--format", format_,
                "--latent", "0,1", "--results", str(tmp_path / "none")]  # fmt: skip
        done = CliRunner().invoke(main, call)
        assert done.exit_code == 0, done.stderr
    found = json.loads((tmp_path / "batch.json").read_text())
    assert [feature["feature_index"] for feature in found["features"]] == [0, 1]
    first = found["features"][0]["activations"][0]
    assert first["tokens"][first["qualifying_token_index"]] == f"w{TOKEN}"
    assert found["features"][1]["pos_str"][0] == f"w{PROMOTED}"
    done = CliRunner().invoke(main, ["dashboard", "--sae", "x", "--output", "y", "--latent", "a"])
    assert done.exit_code == 2
    assert "--latent a" in done.stderr
