PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-all lint clean

# The main job on a bare clone: transition paths of alanine dipeptide, trained from scratch, with a report.
demo: .venv/core
	$(BIN)/molsamp paths alanine-dipeptide --seed 0

test: .venv/test
	$(BIN)/pytest -q -n 2 --dist worksteal

test-all: .venv/test
	$(BIN)/pytest -q -n 2 --dist worksteal -m "slow or not slow"

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,build,reactions,image,diffusers]"
	touch $@ .venv/core

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
