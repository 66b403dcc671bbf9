#!/bin/sh
# Our trainer and the fastest peers' on the same activations -> results/bench/train.md and train.json.
# The peers live in an environment of their own under .bench/. Run again, it makes nothing twice.
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
BENCH_PYTHON=${BENCH_PYTHON:-.venv/bin/python}
DIR=${BENCH_DIR:-.bench}
PEER=$DIR/train-venv/bin/python
PIP="$PEER -m pip install --quiet --disable-pip-version-check"

if [ ! -f "$DIR/train-venv/.installed" ]; then
    "$PYTHON" -m venv "$DIR/train-venv"
    $PIP eai-sparsify==1.3.3 dictionary-learning==0.1.0 sae-lens==6.54.12
    # Last, and without what would not fit it: some of their dependencies take another build of torch along.
    $PIP torch==2.13.0
    "$PEER" -m pip uninstall --quiet --yes torchvision triton
    touch "$DIR/train-venv/.installed"
fi

"$BENCH_PYTHON" tests/bench/prepare_train.py "$DIR"
"$BENCH_PYTHON" tests/bench/train.py "$DIR" "$PEER" "$@"
