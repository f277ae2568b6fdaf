# Every target works from a fresh clone: it makes .venv, installs what it needs within constraints.txt, and runs.

PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
DEMO_SECONDS ?= 60
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint typecheck bench clean

help:  ## show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

demo: $(VENV)/.installed-demo  ## train a dense and an MoE model for a minute each, analyse and compare them
	rm -rf $(RUNS)/demo-dense $(RUNS)/demo-moe
	$(BIN)/python examples/train_demo.py --model dense --seconds $(DEMO_SECONDS) --run-dir $(RUNS)/demo-dense
	$(BIN)/python examples/train_demo.py --model moe --seconds $(DEMO_SECONDS) --run-dir $(RUNS)/demo-moe
	$(BIN)/effprof analyze $(RUNS)/demo-dense
	$(BIN)/effprof analyze $(RUNS)/demo-moe
	$(BIN)/effprof compare $(RUNS)/demo-dense $(RUNS)/demo-moe
	@echo
	@echo "The runs stay in $(RUNS)/demo-dense and $(RUNS)/demo-moe; again: $(BIN)/effprof analyze $(RUNS)/demo-moe --markdown"

# One thread per test process: the tests share two cores with the trainings they start.
test: lint typecheck  ## run every check that CI runs: lint, types, tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.installed-dev  ## mypy --strict on the package
	$(BIN)/mypy

bench: $(VENV)/.installed-dev  ## the benchmarks of benchmarks/README.md that need no GPU (about 40 minutes)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/kill.py --times 20
	$(BIN)/python benchmarks/overhead.py

clean:  ## remove what the other targets made, runs excepted
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "effprof needs Python 3.10 or newer; name one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "$(PYTHON) has no venv module with pip: install your system's python3-venv package," \
		"or name another Python: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch comes first, so that no other package's dependency picks a different build of it.
$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(VENV)/.created
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e '.[lightning]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.created
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed-demo
