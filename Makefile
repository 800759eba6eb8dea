# The developer's verbs. `make quickstart` and `make test` install what they need first.
#
#   make quickstart   a real run on this machine's CPU, in minutes -> runs/quickstart/
#   make test         every test that needs no GPU
#   make bench        speed, in ratios taken in one run -> benchmarks/results/
#
# A Python that is there already is used with PYTHON=...; nothing is installed then.

VENV ?= .venv
VARIANT ?= cpu
UV_VERSION := 0.13.8
ifdef PYTHON
READY :=
else
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.installed
endif
# uv reads neither of pip's settings by itself. Without either, PyTorch's CPU builds come from the
# index of its own.
SOURCES := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS)) \
	$(if $(PIP_EXTRA_INDEX_URL),--extra-index-url $(PIP_EXTRA_INDEX_URL) --index-strategy unsafe-best-match)
CPU_SOURCES := $(if $(PIP_FIND_LINKS)$(PIP_EXTRA_INDEX_URL),$(SOURCES),--torch-backend cpu)
UV := $(VENV)/bin/python -m uv
# Tests of one file stay together, since they share engines.
WORKERS ?= 2
# Setting SET="iterations=5" changes the quickstart's configuration.
SET ?=

.DEFAULT_GOAL := help
.PHONY: help setup lock quickstart test test-gpu lint format types bench bench-peer simulate chaos figures staleness replicate replicate-kl

help:  ## Show these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(READY)  ## Install everything into .venv (VARIANT=gpu for NVIDIA GPUs)

$(VENV)/.installed: requirements/$(VARIANT).txt pyproject.toml
	python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12) and "selfplay needs Python 3.11 or 3.12, this is %d.%d" % sys.version_info[:2] or 0)'
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip install --quiet --compile-bytecode --python $(VENV)/bin/python --no-deps \
		$(if $(filter cpu,$(VARIANT)),$(CPU_SOURCES),$(SOURCES)) -r requirements/$(VARIANT).txt
	$(UV) pip install --quiet --python $(VENV)/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

lock: $(READY)  ## Pin requirements/*.in anew
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 $(CPU_SOURCES) --no-header --no-annotate \
		--overrides requirements/overrides.txt requirements/cpu.in | grep -v "'never'" > requirements/cpu.txt
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate \
		requirements/gpu.in > requirements/gpu.txt
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 $(CPU_SOURCES) --no-header --no-annotate \
		requirements/peer.in > requirements/peer.txt

quickstart: $(READY)  ## Train the playground's model by self-play on this CPU
	$(PYTHON) -m cluster train configs/quickstart.yaml $(SET)

test: $(READY)  ## Run the tests
	$(PYTHON) -m pytest -m "not gpu" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST)

test-gpu: $(READY)  ## Run the tests that need a GPU
	$(PYTHON) -m pytest -m gpu $(PYTEST)

lint: $(READY)  ## Check style and format
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format: $(READY)  ## Format the code
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

types: $(READY)  ## Check types
	$(PYTHON) -m basedpyright --level error

bench: $(READY)  ## Measure speed against the bare libraries, on a GPU if there is one (BENCH="--only ...")
	$(PYTHON) -m benchmarks.bench $(BENCH)

bench-peer: $(READY) .venv-peer/.installed  ## Measure speed against TRL's GRPOTrainer
	$(PYTHON) -m benchmarks.peer --peer-python .venv-peer/bin/python

simulate: $(READY)  ## The game on 8 to 1,024 simulated engines, and the driver's own cost
	$(PYTHON) -m benchmarks.simulate

chaos: $(READY)  ## A hundred faults on real runs, then their ledgers (an hour and a half, as root)
	$(PYTHON) -m benchmarks.chaos

figures: $(READY)  ## Play the quickstart for three seeds, with two rewards (about an hour)
	$(PYTHON) -m benchmarks.selfplay

staleness: $(READY)  ## Play the quickstart at staleness 0 and 1 (about a quarter of an hour)
	$(PYTHON) -m benchmarks.staleness

replicate: $(READY)  ## Play the paper's table in miniature, five seeds (two hours on 2 cores); goes on where it stopped
	$(PYTHON) -m benchmarks.replicate

replicate-kl: $(READY)  ## Play the paper's KL term against three others, three seeds (an hour, less after replicate)
	$(PYTHON) -m benchmarks.replicate --kl

.venv-peer/.installed: requirements/peer.txt | $(VENV)/.installed
	python3 -m venv .venv-peer
	$(UV) pip install --quiet --python .venv-peer/bin/python --no-deps $(CPU_SOURCES) -r $<
	@touch $@
