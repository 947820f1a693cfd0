# Every target works with no arguments; a target that misses the environment builds it first.
PYTHON  ?= $(shell command -v python3.11 || command -v python3)
VENV    ?= .venv
PY      := $(VENV)/bin/python
STAMP   := $(VENV)/.installed
CONFIG  ?= configs/pretrain/aimv2_nano_scenes.yaml
ARGS    ?=
SEEDS   ?= 3

.DEFAULT_GOAL := help
.PHONY: help env pretrain report-pretrain bench test lint format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP) ## build the environment in .venv (every other target does it when needed)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v == (3, 11) or sys.exit(f"Python 3.11 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

pretrain: $(STAMP) ## pre-train an encoder [CONFIG=configs/pretrain/NAME.yaml] [ARGS="--trainer.max_steps=100"]
	$(PY) -m pretrain fit --config $(CONFIG) $(ARGS)

test: $(STAMP) ## run the tests [ARGS="-k name"]
	$(PY) -m pytest $(ARGS)

lint: $(STAMP) ## check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(STAMP) ## format the code and fix what ruff can fix
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(STAMP) ## time the training step against the machine's matrix-product rate [ARGS="--sizes nano"]
	$(PY) -m benchmarks.throughput $(ARGS)

clean: ## remove the environment and caches (runs stay)
	rm -rf $(VENV) .ruff_cache .pytest_cache *.egg-info
