# The front door of a checkout: `make` lists what there is. Every target first brings about what it needs.

CONFIG ?= configs/sample.toml
STORE  ?=
DATA   ?=
RUN    ?=
SWEEP  ?= configs/sweep.toml
ARGS   ?=
GPU    ?=
PYTHON ?= python3
export CONFIG STORE DATA RUN SWEEP ARGS  # recipes read them as "$$DATA", so that any character may occur in a path

PY    := .venv/bin/python
FB    := .venv/bin/framebank
READY := .venv/.ready$(if $(GPU),-gpu)
LOCK  := requirements$(if $(GPU),-gpu).lock

# $${DATA:+…} is nothing if DATA is empty; the shell splits ARGS
WITH_DATA  = $${DATA:+--data.path "$$DATA"}
WITH_STORE = --config "$$CONFIG" $${STORE:+--store "$$STORE"}
TASK       = $(WITH_STORE) $(WITH_DATA) $(ARGS)

# for recipes that work on a run
NEEDS_RUN = @test -n "$$RUN" || { echo "Which run? Try: make $@ RUN=NAME, one of:" $$(cd runs 2>/dev/null && ls -d */ | tr -d /); exit 2; }

.DEFAULT_GOAL := help
.PHONY: help setup sample features train sweep leaderboard finetune predict export report info verify test soak check bench cluster-demo docs lock sbom clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
	@echo
	@echo "  CONFIG=$$CONFIG  DATA=folder, .zip or .csv  STORE=$${STORE:-stores/NAME.h5}  RUN=name  SWEEP=$$SWEEP"
	@echo '  ARGS="--train.epochs 3" overrides any setting; $(FB) train --help lists them'

setup: $(READY)  ## build .venv from requirements.lock; with GPU=1, from requirements-gpu.lock, for NVIDIA cards

$(READY): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "framebank needs Python 3.11, 3.12 or 3.13, this is $$($(PYTHON) --version). Try: make PYTHON=python3.11 …"; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "setting up .venv ($(if $(GPU),some GB more than ,about )3.9 GB, a minute or two) …"
	@$(PY) -m pip install --quiet --disable-pip-version-check --requirement $(LOCK)
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch .venv/.ready $@  # the larger environment serves every target

sample: $(READY)  ## render the sample data set (320 clips)
	@$(FB) sample --config "$$CONFIG" $(WITH_DATA) $(ARGS)

features: $(READY)  ## run the frozen trunk over every new frame, into STORE, and write its card
	@$(FB) extract --card $(TASK)

train: features  ## train from STORE and write runs with their reports
	@$(FB) train $(TASK) $${RUN:+--run "$$RUN"}

sweep: features  ## train what SWEEP lists from STORE, several runs at a time, and show the best
	@$(FB) sweep $(TASK) --sweep "$$SWEEP"

leaderboard: $(READY)  ## all runs next to the constant predictor, in runs/leaderboard.html
	@$(FB) leaderboard $(ARGS)

finetune: $(READY)  ## train RUN (default: the best on maps alone) further, on altered images
	@$(FB) finetune $${RUN:+--run "$$RUN"} $(WITH_DATA) $(ARGS)

predict: $(READY)  ## predict with RUN on DATA: a video, a folder of frames, a data set
	$(NEEDS_RUN)
	@$(FB) predict --run "$$RUN" $${DATA:+--input "$$DATA"} $(ARGS)

export: $(READY)  ## RUN as SavedModel, ONNX and LiteRT, each compared with Keras
	$(NEEDS_RUN)
	@$(FB) export --run "$$RUN" $(WITH_DATA) $(ARGS)

report: $(READY)  ## write the report of RUN again
	$(NEEDS_RUN)
	@$(FB) report --run "$$RUN"

info: $(READY)  ## what STORE holds
	@$(FB) info $(WITH_STORE)

verify: $(READY)  ## read every chunk of STORE
	@$(FB) verify $(WITH_STORE)

test: $(READY)  ## all tests but the slow ones
	@$(PY) -m pytest -m "not soak" --numprocesses auto --maxprocesses 4 --dist loadfile --max-worker-restart 0

soak: $(READY)  ## the slow tests
	@$(PY) -m pytest -m soak

check: $(READY)  ## lint, with the rules of bandit, format, types, known weaknesses of packages
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) .ci/audit.py

sbom: $(READY)  ## list all packages, with hashes, in sbom.json (CycloneDX)
	@$(PY) -m cyclonedx_py requirements requirements.lock --output-reproducible --output-file sbom.json

bench: $(READY)  ## measure; prints ratios taken within one run
	@$(PY) -m benchmarks

# a scheduler and two workers on this machine, one thread each, for an extraction and a sweep; a worker that is ended
# while it starts would wait for the scheduler for ever without a time limit
DEMO = --config configs/cluster-demo.toml --compute.backend dask --compute.workers 2

cluster-demo: $(READY)  ## extract and sweep the sample set on a Dask cluster of this machine
	@folder=$$(mktemp -d) && pids= && trap 'kill $$pids; wait; rm -rf "$$folder"' EXIT && trap 'exit 130' INT TERM && \
	export LOKY_MAX_CPU_COUNT=1 PYTHONWARNINGS=ignore && \
	{ $(PY) -m dask scheduler --host 127.0.0.1 --port 0 --scheduler-file "$$folder/dask.json" 2>"$$folder/log" & } && \
	pids="$$pids $$!" && while [ ! -s "$$folder/dask.json" ]; do sleep 0.1; done && \
	{ $(PY) -m dask worker --scheduler-file "$$folder/dask.json" --nworkers 2 --nthreads 1 --memory-limit 0 \
	  --death-timeout 30 --host 127.0.0.1 --local-directory "$$folder" 2>>"$$folder/log" & } && pids="$$pids $$!" && \
	$(FB) extract $(DEMO) --compute.scheduler "$$folder/dask.json" $(ARGS) && \
	$(FB) sweep $(DEMO) --compute.scheduler "$$folder/dask.json" --sweep configs/cluster-demo-sweep.toml $(ARGS)

docs: $(READY)  ## build the documentation into site/
	@$(PY) -m mkdocs build --quiet --strict

COMPILE = .venv/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	  --extra cpu --extra int8 --extra cluster --extra dev --extra docs --extra export --extra lite --extra search \
	  --extra tables --extra track --extra weights \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links

lock: $(READY)  ## pin the newest version of everything that pyproject.toml admits
	@$(COMPILE) --upgrade --output-file requirements.lock
	@$(COMPILE) --extra gpu --constraint requirements.lock --output-file requirements-gpu.lock

clean:  ## remove .venv, site/ and caches; data/, stores/ and runs/ stay
	rm -rf .venv site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
