#!/bin/sh
# SAEBench's core and ours on the same tokens, the same SAE and the same machine -> results/bench/core.md and core.json.
# The peer lives in an environment of its own under .bench/, since its pins are not ours. Run again, it makes nothing twice.
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
BENCH_PYTHON=${BENCH_PYTHON:-.venv/bin/python}
DIR=${BENCH_DIR:-.bench}
PEER=$DIR/venv/bin/python

# The wheels of torch first: asked for together with the rest, pip may take a build with gigabytes of CUDA along.
if [ ! -f "$DIR/venv/.installed" ]; then
    "$PYTHON" -m venv "$DIR/venv"
    "$PEER" -m pip install --quiet --disable-pip-version-check torch==2.13.0
    "$PEER" -m pip install --quiet --disable-pip-version-check -c tests/bench/peer-constraints.txt sae-bench==0.6.0
    # transformers imports torchvision if it is there, and its usual wheel does not fit a CPU build of torch. Nothing here needs it.
    "$PEER" -c "import torchvision" 2>/dev/null || "$PEER" -m pip uninstall --quiet --yes torchvision
    touch "$DIR/venv/.installed"
fi

"$BENCH_PYTHON" tests/bench/prepare.py "$DIR"
"$BENCH_PYTHON" "tests/bench/${BENCH_SCRIPT:-core.py}" "$DIR" "$PEER" "$@"
