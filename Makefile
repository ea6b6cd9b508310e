# Everything a checkout needs: each target makes .venv if it is missing, and reuses it otherwise.
#   make check   what CI and a commit have to pass: format, lint, types, imports and all tests
#   make train   train on the embedded corpus            make test       all tests
#   make lint    format, lint, types and imports         make test-fast  unit tests of a moment each
#   make hooks   run the fast part before every commit   make coverage   what the unit tests do not reach
#   make docs    the site of the documents, in site/
#   make bench   the benchmarks as one table, a quarter of an hour; all of them: make bench ARGS="--data DIR"
# Settings go through ARGS:  make train ARGS="--train.epochs 1 --run.dir runs/first"

PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 3
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
# PyTorch's own index of CPU builds: used where there is no NVIDIA driver and the index answers.
CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: check train test test-fast lint format docs hooks coverage bench

check: lint docs test

train: .venv/run-ready
	$(BIN)/python launcher/train.py --config configs/quickstart.toml $(ARGS)

# More workers than cores: tests of launchers, nodes and Slurm wait most of the time.
test: .venv/dev-ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder --durations=10 $(ARGS)

test-fast: .venv/dev-ready
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow" tests/unit $(ARGS)

lint: .venv/dev-ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Strict: a link that leads nowhere, or a page without a place, fails.
docs: .venv/dev-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)

hooks: .venv/dev-ready
	$(BIN)/pre-commit install

coverage: .venv/dev-ready
	$(BIN)/python -m pytest -n 2 --dist loadscope tests/unit --cov --cov-report=term-missing:skip-covered $(ARGS)

format: .venv/dev-ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/dev-ready
	$(BIN)/python benchmarks/bench.py $(or $(ARGS),--quick)

.venv/run-ready: pyproject.toml constraints.txt
	@echo "setting up .venv (a minute or two, once)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@if ! command -v nvidia-smi >/dev/null && curl -sfI --max-time 3 $(CPU_INDEX)/torch/ >/dev/null 2>&1; then \
		$(INSTALL) --index-url $(CPU_INDEX) torch; fi
	$(INSTALL) --editable '.[minilm]'
	touch $@

.venv/dev-ready: .venv/run-ready
	$(INSTALL) --editable '.[dev]'
	touch $@
