# Two commands: `make demo` (fresh clone -> report) and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
export HF_HUB_OFFLINE := 1
export DVC_NO_ANALYTICS := 1

.PHONY: demo test setup lint

demo: $(VENV)/installed
	dvc repro
	im2speech times

test: $(VENV)/installed lint
	pytest

lint: $(VENV)/installed
	ruff check .
	ruff format --check .
	mypy

setup: $(VENV)/installed

# Torch first, by its pin: a CPU build that pip finds is kept by everything after it.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
