# framebank's front door: `make` lists what there is. Every target brings about what it needs.

CONFIG ?= configs/sample.toml
STORE  ?= stores/$(basename $(notdir $(CONFIG))).h5
DATA   ?=
RUN    ?=
SWEEP  ?= configs/sweep.toml
ARGS   ?=
PYTHON ?= python3

PY    := .venv/bin/python
READY := .venv/.ready
TASK   = --config '$(CONFIG)' --store '$(STORE)' $(if $(DATA),--data.path '$(DATA)') $(ARGS)

# for recipes that work on a run
NEEDS_RUN = @test -n '$(RUN)' || { echo 'which run? Try: make $@ RUN=NAME, one of:' $$(ls runs 2>/dev/null); exit 2; }

.DEFAULT_GOAL := help
.PHONY: help setup sample features train sweep leaderboard finetune predict export report info verify test soak check bench lock clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18
	@echo
	@echo '  CONFIG=$(CONFIG)  DATA=folder, .zip or .csv  STORE=$(STORE)  RUN=runs/name  SWEEP=$(SWEEP)'
	@echo '  ARGS="--train.epochs 3" overrides any setting; python -m stage1_extract extract --help lists them'

setup: $(READY)  ## build .venv from requirements.lock

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "framebank: needs Python 3.11 or later, got $$($(PYTHON) --version). Try: make PYTHON=python3.11 …"; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "setting up .venv (about 2 GB, a minute or two) …"
	@$(PY) -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@touch $@

sample: $(READY)  ## render the sample set (320 clips)
	@$(PY) -m stage1_extract sample --config '$(CONFIG)' $(if $(DATA),--data.path '$(DATA)') $(ARGS)

features: $(READY)  ## run the frozen trunk over every new frame, into STORE
	@$(PY) -m stage1_extract extract $(TASK)

train: features  ## train from STORE, write a run with its report
	@$(PY) -m stage2_temporal train $(TASK) $(if $(RUN),--run '$(RUN)')

sweep: features  ## train what SWEEP asks for from STORE, several runs at a time, and show the best
	@$(PY) -m stage2_temporal sweep $(TASK) --sweep '$(SWEEP)'

leaderboard: $(READY)  ## every run beside the constant predictor, in runs/leaderboard.html
	@$(PY) -m stage2_temporal leaderboard $(ARGS)

finetune: $(READY)  ## train RUN's top layers on from the images
	$(NEEDS_RUN)
	@$(PY) -m stage2_temporal finetune --run '$(RUN)' $(if $(DATA),--data.path '$(DATA)') $(ARGS)

predict: $(READY)  ## predict with RUN on DATA: a video, a folder of frames, a data set
	$(NEEDS_RUN)
	@$(PY) -m stage2_temporal predict --run '$(RUN)' $(if $(DATA),--input '$(DATA)') $(ARGS)

export: $(READY)  ## RUN as SavedModel, ONNX and LiteRT, each checked in its own runtime
	$(NEEDS_RUN)
	@$(PY) -m stage2_temporal export --run '$(RUN)' $(if $(DATA),--data.path '$(DATA)') $(ARGS)

report: $(READY)  ## write the report of RUN again
	$(NEEDS_RUN)
	@$(PY) -m stage2_temporal report --run '$(RUN)'

info: $(READY)  ## what STORE holds
	@$(PY) -m stage1_extract info --store '$(STORE)'

verify: $(READY)  ## read every chunk of STORE
	@$(PY) -m stage1_extract verify --store '$(STORE)'

test: $(READY)  ## every test but the slow ones
	@$(PY) -m pytest -m "not soak" --numprocesses auto --maxprocesses 4 --dist loadfile --max-worker-restart 0

soak: $(READY)  ## the slow tests
	@$(PY) -m pytest -m soak

check: $(READY)  ## lint, format, types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

bench: $(READY)  ## measure; prints ratios taken within one run
	@$(PY) -m benchmarks

lock: $(READY)  ## pin the newest of everything pyproject.toml admits
	@.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra dev --extra export --extra cpu --upgrade \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml --output-file requirements.lock

clean:  ## remove .venv and caches; data/, stores/ and runs/ stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
