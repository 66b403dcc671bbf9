"""Shared fixtures: a tiny random Llama for logic, the real model for a few end-to-end tests."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

from saebench.sae import SAE, TopK
from saebench.testing import random_sae, tiny_llama
from tests.hub import Hub, point_clients_at, serving

REPOSITORY = Path(__file__).resolve().parent.parent
BUNDLED = REPOSITORY / "results" / "baselines" / "smollm2-135m-layer15-topk-k32"
EXAMPLE = REPOSITORY / "tests" / "example_plugin"
HOOK = "blocks.1.hook_resid_post"

settings.register_profile("suite", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("suite")
torch.set_num_threads(int(os.environ.get("SAEBENCH_TEST_THREADS", "1")))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of tiny models stay out of the user's; the dequantised real model is worth keeping, so it is linked in."""
    from saebench.cache import cache_folder

    real = cache_folder()
    own = tmp_path_factory.mktemp("cache")
    (real / "models").mkdir(parents=True, exist_ok=True)
    (own / "models").symlink_to(real / "models")
    os.environ["SAEBENCH_CACHE"] = str(own)
    return own


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 contexts of 16 token ids for the tiny Llama, none of them special."""
    path = tmp_path_factory.mktemp("tokens") / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(3, 97, (24, 16)))
    return path


def write_sae(folder: Path, sae: SAE, hook: str = HOOK, model: str = "tiny") -> Path:
    """An SAE as a SAELens v6 folder, written by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in sae.tensors()}, folder / "sae_weights.safetensors")
    assert isinstance(sae.activation, TopK)
    cfg = {
        "architecture": "topk",
        "k": sae.activation.k,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtracts_b_dec,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {"hook_name": hook, "model_name": model},
    }
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


@pytest.fixture(scope="session")
def two_saes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two random TopK SAEs for the tiny Llama, on disk."""
    base = tmp_path_factory.mktemp("saes")
    return [write_sae(base / name, random_sae(seed=seed)) for name, seed in (("first", 1), ("second", 2))]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip really installed the example, with a broken distribution beside it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "README.md", "saebench_example_plugin.py"):
        (source / name).write_bytes((EXAMPLE / name).read_bytes())  # building leaves files behind
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
         "--disable-pip-version-check", "--target", target, source], check=True, timeout=120,
    )  # fmt: skip
    (target / "broken_example.py").write_text("import a_module_that_nobody_has\n")
    info = target / "broken_example-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-example\nVersion: 9.9\n")
    (info / "entry_points.txt").write_text("[saebench]\nbroken = broken_example\n")
    return target


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty stand-in hub that the real clients of this process use; they do not wait between attempts."""
    with serving(tmp_path / "root") as running:
        monkeypatch.setattr("time.sleep", running.waits.append)
        point_clients_at(running.url, tmp_path / "home", monkeypatch)
        yield running
