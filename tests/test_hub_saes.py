"""SAEs and language models on a hub: found by their listing, fetched in part, pinned, retried, and read offline."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import saebench
from saebench.errors import SaebenchError, UsageError
from saebench.loading import hf
from saebench.loading.checkpoint import load_sae
from saebench.loading.hf import Address
from saebench.loading.remote import find_saes
from saebench.models import load_config, load_model, model_title
from saebench.running.names import default_names
from saebench.running.sources import expand
from saebench.testing import random_sae, tiny_llama
from tests.conftest import HOOK, write_sae
from tests.hub import Hub
from tests.raising import raises

REFERENCE = Path(__file__).parent / "formats" / "reference"


def three_saes(hub: Hub) -> Path:
    """Two SAEs and a third with a checkpoint of its training, beside a large file that none of them needs."""
    folder = hub.model("owner/saes")
    for seed, name in enumerate(["a", "b", "run"]):
        write_sae(folder / name, random_sae(seed=seed))
    write_sae(folder / "run/checkpoint_5", random_sae(seed=9))
    for name in ("a", "run"):
        (folder / name / "optimizer.pt").write_bytes(bytes(10**6))
    return folder


def found(source: str) -> tuple[list[str], list[str]]:
    said: list[str] = []
    return [str(s) for s in expand([source], None, said.append)], said


def test_a_repository_stands_for_its_saes(hub: Hub) -> None:
    folder = three_saes(hub)
    commit = hub.commit(folder)
    sources, said = found("hf:owner/saes")
    assert sources == [f"hf:owner/saes@{commit}/{name}" for name in ("a", "b", "run")]
    size = sum((folder / "a" / n).stat().st_size for n in ("cfg.json", "sae_weights.safetensors"))
    assert f"{size / 1000:.0f} kB" in said[0]
    assert default_names(sources) == ["a", "b", "run"]
    assert not hub.sent  # the listing is enough
    for source, seed in zip(sources, range(3), strict=True):
        sae = load_sae(source)
        assert torch.equal(sae.W_dec, random_sae(seed=seed).W_dec)
        assert sae.metadata.path == source
    names = {n.removeprefix("owner/saes/") for n in hub.sent}  # equal files travel once
    assert names - {f"{n}/cfg.json" for n in ["a", "b", "run"]} == {
        f"{n}/sae_weights.safetensors" for n in ["a", "b", "run"]
    }


def test_one_sae_brings_nothing_beside_it(hub: Hub) -> None:
    three_saes(hub)
    sae = load_sae("hf:owner/saes/a")
    assert sae.d_sae == 64
    assert set(hub.sent) == {"owner/saes/a/cfg.json", "owner/saes/a/sae_weights.safetensors"}


def test_too_high_a_path_fetches_nothing_and_lists_the_saes(hub: Hub) -> None:
    folder = hub.model("owner/deep")
    write_sae(folder / "layer_1/width_16k/l0_30", random_sae())
    with raises(UsageError, "hf:owner/deep", "layer_1/width_16k/l0_30", "kB"):
        load_sae("hf:owner/deep")
    assert not hub.sent
    assert found("hf:owner/deep")[0] == ["hf:owner/deep"]
    assert len(found("hf:owner/deep/layer_1")[0]) == 1
    with raises(UsageError, "layer_2", "did you mean 'layer_1'"):
        load_sae("hf:owner/deep/layer_2")
    save_file({"lm_head.weight": torch.zeros(3, 2)}, hub.model("owner/other") / "model.safetensors")
    with raises(UsageError, "hf:owner/other", "model.safetensors"):
        load_sae("hf:owner/other")


def test_configs_beside_and_above_come_along(hub: Hub) -> None:
    shutil.copytree(REFERENCE / "sparsify" / "topk", hub.model("owner/sparsify"), dirs_exist_ok=True)
    (place,) = (hub.root / "models/owner/sparsify").glob("layers.*")
    (place.parent / "config.json").write_text(json.dumps({"sae": {}, "model": "owner/llama", "ctx_len": 256}))
    sae = load_sae(f"hf:owner/sparsify/{place.name}")
    assert (sae.metadata.model, sae.metadata.context_length) == ("owner/llama", 256)
    tensors = load_file(write_sae(hub.root / "x", random_sae()) / "sae_weights.safetensors")
    folder = hub.model("owner/attention")
    for name in ("one", "two"):
        torch.save(tensors, folder / f"{name}.pt")
        about = {"act_name": "blocks.1.attn.hook_z", "model_name": "gpt2-small"}
        (folder / f"{name}_cfg.json").write_text(json.dumps(about))
    sources, _ = found("hf:owner/attention")
    assert [s.rpartition("/")[2] for s in sources] == ["one.pt", "two.pt"]
    assert load_sae(sources[0]).metadata.model == load_sae("hf:owner/attention/two.pt").metadata.model == "gpt2-small"
    transcoders = hub.model("owner/transcoders")
    save_file({**tensors, "W_enc": tensors["W_enc"].T.contiguous()}, transcoders / "layer_3.safetensors")
    (transcoders / "config.yaml").write_text('model_name: "owner/llama"\nfeature_input_hook: "mlp.hook_in"\n')
    assert load_sae("hf:owner/transcoders/layer_3.safetensors").metadata.model == "owner/llama"


def test_a_checkpoint_of_each_format_loads_from_the_hub_as_from_the_disk(hub: Hub) -> None:
    """Each format's layouts name all the files that its loader reads."""
    local = hf.Listing("r", "c", {p.relative_to(REFERENCE).as_posix(): 1 for p in REFERENCE.rglob("*") if p.is_file()})
    checked: dict[str, str] = {}
    for sae in find_saes(local):
        try:
            here = load_sae(REFERENCE / sae.path)
        except SaebenchError:
            continue
        if here.metadata.format in checked.values():
            continue
        base = (REFERENCE / sae.path).parent
        repo = f"owner/{here.metadata.format}"
        shutil.copytree(base, hub.model(repo) / base.relative_to(REFERENCE), dirs_exist_ok=True)
        there = load_sae(f"hf:{repo}/{sae.path}")
        assert there.sha256() == here.sha256(), sae.path
        assert (there.metadata.model, there.metadata.facts) == (here.metadata.model, here.metadata.facts), sae.path
        checked[sae.path] = str(here.metadata.format)
    assert len(set(checked.values())) == 11


@pytest.mark.parametrize("form", ["hf:owner/saes@{}/a", "hf:owner/saes/a@{}", "https://huggingface.co/owner/saes/tree/{}/a/",
                                  "https://hf.co/owner/saes/blob/{}/a", "hf://owner/saes@{}/a"])  # fmt: skip
def test_a_revision_is_pinned_and_recorded(hub: Hub, form: str) -> None:
    commit = hub.commit(three_saes(hub))
    assert load_sae(form.format(commit)).metadata.path == f"hf:owner/saes@{commit}/a"
    assert load_sae(form.format("main")).metadata.path == f"hf:owner/saes@{commit}/a"
    with raises(UsageError, "no such revision"):
        load_sae(form.format("v7"))


@pytest.mark.parametrize(
    ("text", "repo", "revision", "path"),
    [
        ("hf:a/b", "a/b", None, ""),
        ("hf:a/b/", "a/b", None, ""),
        ("hf:a/b@refs/pr/3/x/y", "a/b", "refs/pr/3", "x/y"),
        ("hf:a/b@refs/pr/3", "a/b", "refs/pr/3", ""),
        ("hf:a/b/x@feature/one", "a/b", "feature/one", "x"),
        ("huggingface.co/a/b.c-3.2/", "a/b.c-3.2", None, ""),
        ("https://hf.co/a/b/resolve/v1/x%20y?download=true", "a/b", "v1", "x y"),
        ("gpt2", "gpt2", None, ""),
    ],
)
def test_addresses(text: str, repo: str, revision: str | None, path: str) -> None:
    assert Address.parse(text, bare=True) == Address(repo, revision, path)


@pytest.mark.parametrize("text", ["hf:", "hf:a", "hf:a/../b", "hf:a/b/../c", "hf:a/b@", "hf:/a", "hf:a//b",
                                  "https://huggingface.co/datasets/a/b", "hf:a b/c"])  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with raises(UsageError, text, "hf:OWNER/REPO/PATH"):
        Address.parse(text)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(hub: Hub, status: int) -> None:
    three_saes(hub)
    hub.fail("/api/models/owner/saes", status, times=2, Retry_After="7")
    assert load_sae("hf:owner/saes/a").d_sae == 64
    assert hub.waits == [7.0, 7.0]


def test_a_hub_that_stays_busy_is_named(hub: Hub) -> None:
    three_saes(hub)
    hub.fail("/api/models/owner/saes", 429, times=99)
    with raises(SaebenchError, "hf:owner/saes/a", "429", "HF_TOKEN") as caught:
        load_sae("hf:owner/saes/a")
    assert "network" not in str(caught.value)


def test_no_right_is_not_the_network(hub: Hub) -> None:
    write_sae(hub.model("owner/gated-saes") / "a", random_sae())
    with raises(SaebenchError, "gated", "HF_TOKEN", "Access to model owner/gated-saes is restricted") as gated:
        load_sae("hf:owner/gated-saes/a")
    with raises(UsageError, "hf:owner/none/a", "401", "HF_TOKEN") as private:
        load_sae("hf:owner/none/a")
    assert "network" not in f"{gated.value}{private.value}"


def test_what_was_fetched_once_needs_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    three_saes(hub)
    sources, _ = found("hf:owner/saes")
    first = load_sae("hf:owner/saes/a")
    monkeypatch.setattr(constants, "ENDPOINT", constants.ENDPOINT)  # the cache is per hub
    before = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_sae("hf:owner/saes/a").sha256() == first.sha256()
    assert found("hf:owner/saes")[0] == sources
    assert load_sae("hf:owner/saes/a").metadata.path == first.metadata.path
    with raises(SaebenchError, "hf:owner/saes/b", "network"):
        load_sae("hf:owner/saes/b")
    assert len(hub.requests) == before


# --- language models --------------------------------------------------------------------------------------------------


def test_weights_follow_the_index(hub: Hub, tmp_path: Path) -> None:
    plain = tiny_llama(tmp_path / "plain")
    folder = hub.model("owner/Llama-3.2-1B")
    tensors = load_file(plain / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for part, own in parts.items():
        save_file({n: tensors[n] for n in own}, folder / part, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: part for part, own in parts.items() for n in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(plain / "config.json", folder)
    alone = load_model("owner/Llama-3.2-1B/")
    assert (alone.id, alone.revision) == ("owner/Llama-3.2-1B", hub.commit(folder))
    for second_copy in ("consolidated.safetensors", "original/model.safetensors", "pytorch_model.bin"):
        (folder / second_copy).parent.mkdir(exist_ok=True)
        (folder / second_copy).write_bytes(bytes(10**6))
    both = load_model("https://huggingface.co/owner/Llama-3.2-1B")
    assert (both.id, both.sha256) == (alone.id, alone.sha256)
    assert not {name for name in hub.sent if "consolidated" in name or "original" in name or ".bin" in name}
    assert load_model(str(folder)).sha256 == alone.sha256
    (folder / "model-00002-of-00002.safetensors").unlink()
    with raises(UsageError, "model.safetensors.index.json", "model-00002-of-00002.safetensors"):
        load_model("owner/Llama-3.2-1B")


def test_pickled_weights_alone_will_do(hub: Hub, tmp_path: Path) -> None:
    plain = tiny_llama(tmp_path / "plain")
    folder = hub.model("owner/old")
    torch.save(load_file(plain / "model.safetensors"), folder / "pytorch_model.bin")
    shutil.copy(plain / "config.json", folder)
    assert load_config("owner/old").num_hidden_layers == 4
    assert not any(name.endswith(".bin") for name in hub.sent)
    loaded = load_model("owner/old")
    assert torch.equal(loaded.model.lm_head.weight, load_model(str(plain)).model.lm_head.weight)


def test_a_model_that_is_none_is_one_line(hub: Hub) -> None:
    three_saes(hub)
    with raises(UsageError, "owner/saes", "config.json"):
        load_model("owner/saes")
    with raises(UsageError, "owner/none", "401"):
        load_model("owner/none")
    with raises(UsageError, "smolllm2", "smollm2-135m-instruct"):
        load_model("smolllm2")
    assert model_title("https://hf.co/owner/x/") == "owner/x"


def test_a_run_from_the_hub_records_its_commits(hub: Hub, tokens: Path, tmp_path: Path) -> None:
    sae = hub.commit(three_saes(hub))
    model = hub.model("owner/Llama-3.2-1B")
    tiny_llama(model)
    outcome = saebench.run(
        saes="hf:owner/saes/a", model="owner/Llama-3.2-1B", hook=HOOK, tokens=tokens, metrics=["sparsity"],
        results=tmp_path / "results",
    )  # fmt: skip
    record = outcome[0] if isinstance(outcome, list) else outcome.records[0]
    assert record.sae["path"] == f"hf:owner/saes@{sae}/a"
    assert record.model["revision"] == hub.commit(model)
    assert record.model["id"] == "owner/Llama-3.2-1B"
