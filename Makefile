# Everything sets itself up: a fresh clone needs only Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Without this, torch's threads collapse as soon as another process computes.
export OMP_WAIT_POLICY ?= PASSIVE

# On Linux, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu avoids the CUDA libraries.
.PHONY: install demo test test-all check docs

install: $(STAMP)

# pip reads dependency groups since 25.1; the constraints name the pip to take.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("consort needs Python 3.11 or newer: make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt 'pip>=25.1'
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[local,serve,deciding,plots]' --group dev
	touch $(STAMP)

demo: install
	$(BIN)/consort demo

# Two processes, a file's tests in one: what they share is made once.
test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-all: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'slow or not slow'

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

docs: install
	$(BIN)/python docs/build_reference.py
