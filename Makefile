# Everything a developer types. `make setup` makes .venv; the other targets call it when it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(if $(DATA),--data $(DATA) --out demo-real,--out demo)
SANITIZERS := address undefined thread

.PHONY: help setup demo test lint gpu-compile native-test exhaustive-test bench clean

help:
	@echo "make setup        environment in $(VENV), with the native core"
	@echo "make demo         phantoms, four trainings, report; DATA=DIR: on real CT volumes"
	@echo "make test         all tests"
	@echo "make lint         ruff, mypy, clang-format"
	@echo "make gpu-compile  the Triton kernels for sm_80 and sm_90, without a GPU"
	@echo "make native-test  the C++ core alone, under the sanitizers"
	@echo "make exhaustive-test  what takes minutes: every float32 logit"
	@echo "make bench        the kernel against its peers"

setup: $(VENV)/.ready

# torch first and by its exact version: no other package may choose it.
$(VENV)/.ready: pyproject.toml export/pyproject.toml setup.py CMakeLists.txt requirements/torch.txt $(wildcard csrc/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements/torch.txt
	$(BIN)/python -m pip install -q -e ./export -e ".[test,dev]"
	touch $@

demo: setup
	$(BIN)/python -m smile_fast.demo $(DEMO)

# The Triton kernels first, in a process of their own: the interpreter is chosen before they are defined.
test: setup
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 tests/ops/triton \
	    --cov=smile_fast --cov-report=
	SMILE_FAST_REQUIRE_NATIVE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 \
	    --cov-append --cov=smile_fast --cov=smile_runtime --cov-report=term:skip-covered --cov-fail-under=90

gpu-compile: setup
	$(BIN)/python -m pytest -q -n 2 tests/ops/test_triton_compile.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

native-# The Triton kernels first, in a process of their own: the interpreter is chosen before they are defined.
test: setup
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 tests/ops/triton \
	    --cov=smile_fast --cov-report=
	for sanitizer in "" $(SANITIZERS); do \
	    $(BIN)/cmake -S . -B build/csrc-$$sanitizer -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	        -DSMILE_FAST_TESTS=ON -DSMILE_FAST_SANITIZE=$$sanitizer > /dev/null && \
	    $(BIN)/cmake --build build/csrc-$$sanitizer && \
	    $(BIN)/ctest --test-dir build/csrc-$$sanitizer -LE exhaustive --output-on-failure || exit 1; \
	done

exhaustive-# The Triton kernels first, in a process of their own: the interpreter is chosen before they are defined.
test: setup
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 tests/ops/triton \
	    --cov=smile_fast --cov-report=
	$(BIN)/cmake -S . -B build/csrc- -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DSMILE_FAST_TESTS=ON > /dev/null
	$(BIN)/cmake --build build/csrc-
	$(BIN)/ctest --test-dir build/csrc- -L exhaustive --verbose

bench: setup
	$(BIN)/python -m pytest bench -q -p no:xdist --benchmark-json=bench/results/latest.json

clean:
	rm -rf build dist demo demo-real *.egg-info export/*.egg-info export/build
