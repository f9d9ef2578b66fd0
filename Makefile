# Everything a developer types. `make setup` makes .venv; the other targets call it when it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_FLAGS := $(if $(DATA),--data $(DATA) --out demo-real,--out demo)

.PHONY: help setup demo test lint layers bench clean

help:
	@echo "make setup   environment in $(VENV), with the native core"
	@echo "make demo    phantoms, four trainings, report (DATA=DIR: on real CT volumes)"
	@echo "make test    all tests"
	@echo "make lint    ruff, mypy, clang-format"
	@echo "make bench   benchmarks of the kernels against their peers"

setup: $(VENV)/.ready

# torch first and by its exact version: a CPU build where the index has one, and no other package may choose it.
$(VENV)/.ready: pyproject.toml export/pyproject.toml setup.py CMakeLists.txt requirements/torch.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -r requirements/torch.txt
	$(BIN)/python -m pip install -q -e ./export -e ".[test,dev]"
	touch $@

demo: setup
	$(BIN)/python -m smile_fast.demo $(DEMO_FLAGS)

test: setup
	SMILE_FAST_REQUIRE_NATIVE=1 $(BIN)/python -m pytest -n 2 --cov --cov-report=term --cov-fail-under=90
	$(BIN)/cmake --version > /dev/null 2>&1 || true

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

clean:
	rm -rf build dist demo demo-real *.egg-info export/*.egg-info export/build
