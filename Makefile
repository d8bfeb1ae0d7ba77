# Everything that a person or CI runs. PYTHON is any Python from 3.11 on; the environment is made in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test check clean

quickstart: $(VENV)/installed
	$(BIN)/natix-hf run quickstart

test: $(VENV)/installed-dev
	$(BIN)/pytest -n 2 --dist loadgroup

# Lint and types.
check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

# torch first, by its pinned version, so that no other dependency chooses one.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
