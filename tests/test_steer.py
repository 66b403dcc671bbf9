"""`saebench steer`: continuations against a plain hooked model, latents found by three ways, bad input in one line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saebench import steer
from saebench.cli import main
from saebench.corpus import Contexts
from saebench.sae import SAE, ReLU
from saebench.steering import activity as activity_module
from saebench.steering.find import Found, find
from saebench.steering.steer import Steerer
from saebench.testing import random_sae
from tests.conftest import HOOK
from tests.raising import check_message
from tests.tiny_models import hooked

WORDS = 90
DEAD = 7


@pytest.fixture(scope="module")
def model(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a tokenizer of whole words."""
    folder = tmp_path_factory.mktemp("worded") / "tiny-llama"
    folder.mkdir()
    for file in llama.iterdir():
        (folder / file.name).symlink_to(file)
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sae(model: Path) -> SAE:
    found = random_sae(32, 64, k=None, seed=5, hook=HOOK, model=str(model))
    b_enc = found.b_enc.clone()
    b_enc[DEAD] = -1e6
    return replace(found, b_enc=b_enc)


@pytest.fixture(autouse=True)
def text(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Random contexts in place of the task's text."""
    ids = np.random.default_rng(0).integers(3, WORDS, (12, 16))
    contexts = Contexts(ids, np.arange(12), np.zeros_like(ids, dtype=bool), tuple(map(str, range(12))))
    monkeypatch.setattr(activity_module, "task_contexts", lambda task, tokenizer: contexts)
    return ids


def test_continuations_are_those_of_a_plain_hooked_model(sae, model, text):
    steerer = Steerer(sae)
    x = steerer.lens.capture(torch.from_numpy(text)).x.reshape(-1, 32)
    z = sae.encode(x).dense()
    for latent in (3, 11):
        fires = z[:, latent][z[:, latent] > 0] * sae.W_dec[latent].norm()
        assert float(steerer.activity.strength[latent]) == pytest.approx(float(torch.quantile(fires, 0.999)), rel=1e-5)
        assert float(steerer.activity.share[latent]) == pytest.approx(len(fires) / len(x))
    vector = sum(steerer.activity.strength[i] * sae.W_dec[i] / sae.W_dec[i].norm() for i in (3, 11))
    found = steer(sae, "w5 w9 w40", latents=[3, 11], strengths=[2.0, -30.0], tokens=8)
    assert [c.strength for c in found] == [0, 2, -30]
    ids = steerer.token_ids("w5 w9 w40")
    for continuation in found:
        own = list(ids)
        for _ in range(8):
            with hooked(steerer.subject, 1, ("", "out"), lambda h, f=continuation.strength: h + f * vector):
                logits = steerer.subject.model(input_ids=torch.tensor([own]), use_cache=False).logits
            own.append(int(logits[0, -1].argmax()))
            if own[-1] == 2:
                break
        assert continuation.text == steerer.subject.loaded.tokenizer.decode(own[len(ids) :], skip_special_tokens=True)
    assert len({c.text for c in found}) == 3
    sampled = steer(sae, "w5 w9 w40", latents=[3], tokens=8, temperature=1.0, seed=4)
    assert sampled == steer(sae, "w5 w9 w40", latents=[3], tokens=8, temperature=1.0, seed=4)
    assert sampled != steer(sae, "w5 w9 w40", latents=[3], tokens=8, temperature=1.0, seed=5)


def test_decoder_scale_cancels(sae):
    scale = torch.ones(64)
    scale[3] = 10
    scaled = replace(sae, W_enc=sae.W_enc / scale, b_enc=sae.b_enc / scale, W_dec=sae.W_dec * scale[:, None])
    assert isinstance(scaled.activation, ReLU)
    arguments = {"latents": [3], "strengths": [5.0], "tokens": 8}
    assert steer(scaled, "w5 w9", **arguments) == steer(sae, "w5 w9", **arguments)


def test_latents_are_found_by_explanation_text_and_promoted_tokens(sae, model, tmp_path, monkeypatch):
    steerer = Steerer(sae)
    monkeypatch.setattr("saebench.steering.find._CARRIERS", ("w5 w6", "w7"))
    fires = []
    for carrier in ("w5 w6", "w7"):
        ids = steerer.token_ids(f"{carrier} w33")
        fires.append(sae.encode(steerer.lens.capture([ids]).x[0, -1:]).dense()[0] > 0)
    found = find(steerer, "w33", tmp_path / "none", count=3)
    by_text = [f.latent for f in found if f.by == "activating text"]
    assert len(by_text) == 3
    assert all(fires[0][latent] or fires[1][latent] for latent in by_text)
    # A latent whose decoder row is a token's unembedding row promotes that token most.
    norm = steerer.subject.model.model.norm.weight
    row = steerer.subject.model.get_output_embeddings().weight[33] / norm
    planted = Steerer(replace(sae, W_dec=torch.cat([sae.W_dec[:20], row[None], sae.W_dec[21:]])))
    assert next(f for f in find(planted, "w33", tmp_path, count=3) if f.by == "promoted tokens").latent == 20
    monkeypatch.setattr(
        "saebench.steering.find.explanations",
        lambda sha, results: iter([(4, "Music and w33", {}), (5, "law", {}), (6, "w33", {})]),
    )
    found = find(steerer, "W33 music", tmp_path, count=3)
    assert found[0] == Found(4, "explanation", "Music and w33")
    assert sum(f.by == "explanation" for f in found) == 1


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, ["steer", *map(str, args)])


def test_the_command_prints_both_texts_and_json(sae, model, tmp_path):
    from saebench.loading.checkpoint import save_sae

    folder = tmp_path / "sae"
    save_sae(sae, folder, format="saelens")
    command = (
        "--sae",
        folder,
        "--model",
        model,
        "--hook",
        HOOK,
        "--latent",
        "3,11",
        "--strength",
        "2,-30",
        "--tokens",
        8,
    )
    found = invoke(*command, "--json", "w5 w9 w40")
    assert found.exit_code == 0, found.output
    body = json.loads(found.stdout)
    expected = steer(sae, "w5 w9 w40", latents=[3, 11], strengths=[2.0, -30.0], tokens=8)
    assert body["continuations"] == [{"strength": c.strength, "text": c.text} for c in expected]
    shown = invoke(*command, "w5 w9 w40")
    assert shown.exit_code == 0
    for part in ("without", "strength 2", "strength -30"):
        assert part in shown.stdout

    def refused(code: int, *args: object, parts: tuple[object, ...]) -> None:
        result = invoke("--sae", folder, "--model", model, "--hook", HOOK, *args)
        assert result.exit_code == code, result.output
        check_message(result.stderr.removeprefix("error: ").strip(), *parts)

    refused(2, "--latent", 64, "w5", parts=(64, "0 to 63"))
    refused(2, "--latent", DEAD, "w5", parts=(DEAD, "--latent", "--find"))
    refused(1, "--latent", 3, "--strength", "2,1e38", "w5", parts=("1e+38", "--strength"))
    refused(2, "--latent", 3, "--strength", "nan", "w5", parts=("nan", "--strength"))
    refused(2, "--latent", "x", "w5", parts=("--latent x",))
    refused(2, "--latent", 3, "w5 " * 100, parts=(101, 48, 128))
    refused(2, "--latent", 3, " ", parts=("empty",))
    refused(2, "w5", parts=("--latent", "--find"))
    refused(2, parts=("PROMPT", "--find"))
    refused(2, "--latent", 3, "--chat", "w5", parts=("chat template", "--chat"))
    refused(2, "--latent", 3, "--tokens", 0, "w5", parts=("--tokens",))
    refused(2, "--find", " ", parts=("--find",))
