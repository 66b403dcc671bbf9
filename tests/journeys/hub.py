"""The hub's journey from end to end, with the command line and the real clients against the stand-in hub of tests/hub.py.

    python -m tests.journeys.hub

An SAE repository at a pinned revision and a language model are fetched, text is streamed, and records name the commit. A second
run finds its records without the hub, and a forced one computes the same numbers offline. Not part of `make test`: some minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saebench.testing import random_sae, tiny_llama
from tests.conftest import HOOK, write_sae
from tests.hub import Hub, serving

TASK = """
name = "journey"
version = 1
metrics = ["sparsity", "fidelity"]
[corpus]
hub = "owner/text"
revision = "{revision}"
documents = 40
[contexts]
length = 16
bos = true
count = 24
"""


def build(hub: Hub, folder: Path) -> dict[str, str]:
    """A model with its tokenizer, two SAEs below one folder, and a data set; returns their commits."""
    model = tiny_llama(hub.model("owner/tiny"))
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", unk_token="w0").save_pretrained(model)
    saes = hub.model("owner/saes")
    for seed, name in enumerate(("small", "large")):
        write_sae(saes / "layer1" / name, random_sae(seed=seed), model="owner/tiny")
    (saes / "layer9").mkdir()
    (saes / "layer9" / "optimizer.pt").write_bytes(bytes(10**6))  # nothing reads it, so nothing may fetch it
    data = hub.dataset("owner/text")
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(3, 97, 40)) for _ in range(60)]
    (data / "data").mkdir()
    pd.DataFrame({"text": texts}).to_parquet(data / "data" / "train-00000.parquet")
    commits = {folder.name: hub.commit(folder) for folder in (model, saes, data)}
    (folder / "journey.toml").write_text(TASK.format(revision=commits["text"]))
    return commits


def command(hub: Hub, folder: Path, *arguments: str, offline: bool = False, status: int = 0) -> str:
    """Run the command line with clients of its own; returns what it printed."""
    home = str(folder / "home")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SAEBENCH_"))}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1", "SAEBENCH_CACHE": f"{home}/saebench"}
    env |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    done = subprocess.run(
        [sys.executable, "-m", "saebench", *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == status, output
    return output


def records(folder: Path) -> dict[str, dict[str, object]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.rglob("journey@1*.json"))}


def scores(record: dict[str, object]) -> object:
    return record["scores"]


def step(text: str) -> None:
    print(f"ok  {text}", flush=True)  # noqa: T201  # a script's report


def main() -> None:
    with tempfile.TemporaryDirectory() as name, serving(Path(name) / "root") as hub:
        folder = Path(name)
        commits = build(hub, folder)
        run = ["run", "--sae", f"hf:owner/saes/layer1@{commits['saes']}", "--task", "journey.toml", "--results", "r"]
        hub.fail("/api/models/owner/saes", 503, Retry_After="0")
        output = command(hub, folder, *run)
        assert "2 SAEs" in output, output
        first = records(folder / "r")
        assert len(first) == 2
        for record in first.values():
            assert commits["saes"] in record["sae"]["path"], record["sae"]["path"]  # type: ignore[index]
            assert record["model"]["revision"] == commits["tiny"], record["model"]  # type: ignore[index]
        step("two SAEs at a pinned revision are measured, a busy hub is asked again, and records name both commits")
        assert not any("optimizer" in path for path in hub.sent), hub.sent
        step("no file is fetched that no format reads")
        before = len(hub.requests)
        assert command(hub, folder, *run, offline=True).count("already measured") == 2
        command(hub, folder, *run[:-1], "again", offline=True)
        assert len(hub.requests) == before
        again = records(folder / "again")
        assert {k: scores(v) for k, v in again.items()} == {k: scores(v) for k, v in first.items()}
        step("offline, the records are found, and computed again they are the same to the last bit")
        gated = write_sae(hub.model("owner/gated-sae"), random_sae(), model="owner/tiny")
        assert gated.is_dir()
        output = command(hub, folder, "inspect", "hf:owner/gated-sae", status=1)
        assert "network" not in output, output
        step("a gated repository is no fault of the network")
        train = f'model = "owner/tiny"\nhook = "{HOOK}"\ntokens = 400\nbatch_size = 64\ncontext_length = 16\n' + (
            f'[corpus]\nhub = "owner/text"\nrevision = "{commits["text"]}"\n[[saes]]\nrecipe = "topk"\nwidth = 64\nk = 4\n'
        )
        (folder / "train.toml").write_text(train)
        command(hub, folder, "train", "train.toml", "--out", "first")
        before = len(hub.requests)
        command(hub, folder, "train", "train.toml", "--out", "second", offline=True)
        assert len(hub.requests) == before
        [a], [b] = (list((folder / out).rglob("sae_weights.safetensors")) for out in ("first", "second"))
        assert a.read_bytes() == b.read_bytes()
        step("training text is streamed once; the second run is offline and gives the same weights")


if __name__ == "__main__":
    main()
