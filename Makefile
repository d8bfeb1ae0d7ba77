# Everything that a person or CI runs. PYTHON is any Python from 3.11 on; the environment is made in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
NEWEST := .venv-newest
OLDEST := .venv-torch-oldest
# What a change of PyTorch can break.
CORE := tests/models tests/data tests/trainers tests/ssl tests/calibration tests/bundle tests/phases tests/estimate
MINER := .venv-miner
MINER_FAST := .venv-miner-fast

.PHONY: quickstart test test-wheel test-lowest test-newest test-torch-oldest test-miner faults check docs clean

quickstart: $(VENV)/installed
	$(BIN)/natix-hf run quickstart

test: $(VENV)/installed-dev
	$(BIN)/pytest -n 2 --dist loadgroup

# As a user: the built wheel in an empty environment, the whole quickstart from an empty folder with empty caches.
test-wheel:
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && set -x && \
	$(PYTHON) -m venv "$$folder/venv" && pip="$$folder/venv/bin/pip --quiet" && \
	$$pip wheel --no-deps --wheel-dir "$$folder" . && \
	$$pip install --constraint constraints.txt torch && \
	$$pip install --constraint constraints.txt "$$folder"/*.whl && \
	mkdir "$$folder/empty" && cd "$$folder/empty" && export HF_HOME="$$folder/hf" && unset PYTHONPATH && \
	"$$folder/venv/bin/natix-hf" run quickstart && "$$folder/venv/bin/natix-hf" verify outputs/quickstart/*

# The suite on the lowest versions that pyproject.toml declares.
test-lowest: $(LOWEST)/installed-dev
	$(LOWEST)/bin/pytest -n 2 --dist loadgroup

# The suite on the newest versions that the registries have, whatever pyproject.toml allows: it says what will break.
test-newest: $(NEWEST)/installed-dev
	$(NEWEST)/bin/pip list --format freeze | grep -E "^(torch|transformers|peft|datasets|accelerate|huggingface.hub)="
	$(NEWEST)/bin/pytest -n 2 --dist loadgroup

# The core of the suite on the oldest PyTorch that pyproject.toml allows, all else as it is pinned. On Linux it comes with
# CUDA 12: some 6 GB.
test-torch-oldest: $(OLDEST)/installed-dev
	$(OLDEST)/bin/pytest -n 2 --dist loadgroup $(CORE)

# Bundles in the hands of the subnet's official miner: transformers 4.45.2, which needs a Python below 3.12. Once without
# torchvision, and once with it and torch 2.6.0, as a miner runs it (5.5 GB on Linux).
test-miner: $(VENV)/installed-dev $(MINER)/installed $(MINER_FAST)/installed
	$(BIN)/pytest tests/miner

# The long forms of the fault tests, one after the other: damages, kills, full disks, hostile files. Hours on two cores.
faults: $(VENV)/installed-dev
	for script in $(filter-out tests/faults/test_%,$(wildcard tests/faults/*.py)); do \
	echo "$$script" && $(BIN)/python "$$script" || failed=1; done; test -z "$$failed"

# The pages that are generated from the code.
docs: $(VENV)/installed
	$(BIN)/python -m natix_hf.keys > docs/keys.md
	$(BIN)/python -m natix_hf.apidoc > docs/api.md

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

$(LOWEST)/installed-dev: pyproject.toml tests/packaging/lowest.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PYTHON) tests/packaging/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/constraints.txt torch
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/constraints.txt --editable ".[dev]"
	touch $@

$(NEWEST)/installed-dev: pyproject.toml
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --upgrade torch
	$(NEWEST)/bin/pip install --quiet --editable ".[dev]"
	$(NEWEST)/bin/pip install --quiet --upgrade transformers peft datasets accelerate huggingface-hub
	touch $@

$(OLDEST)/installed-dev: pyproject.toml constraints.txt tests/packaging/lowest.py
	$(PYTHON) -m venv --clear $(OLDEST)
	grep -v "^torch==" constraints.txt > $(OLDEST)/constraints.txt
	$(PYTHON) tests/packaging/lowest.py | grep "^torch==" >> $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/constraints.txt torch
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/constraints.txt --editable ".[dev]"
	touch $@

$(MINER)/installed: tests/miner/requirements.txt
$(MINER_FAST)/installed: tests/miner/requirements-fast.txt
$(MINER)/installed $(MINER_FAST)/installed:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 12))' || \
	{ echo "the official miner runs on Python 3.11: make test-miner PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --requirement $<
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(NEWEST) $(OLDEST) $(MINER) $(MINER_FAST) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
