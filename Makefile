# Everything a developer types. `make setup` makes .venv; the other targets call it when it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(if $(DATA),--data $(DATA) --out demo-real,--out demo)
# Which benchmarks: BENCH=masked_bce or BENCH='*/K13-*'; ALLOCATOR=keep, TARGET=avx2: see bench/README.md.
BENCH_OPTIONS = $(if $(BENCH),--select '$(BENCH)') $(if $(ALLOCATOR),--allocator $(ALLOCATOR)) $(if $(TARGET),--target $(TARGET))
SANITIZERS := address,undefined thread

.PHONY: help setup demo test campaign coverage lint native-test exhaustive-test bench bench-check bench-table bench-goals bench-smoke same-bits gpu-compile cuda-check gpu clean

help:
	@echo "make setup        environment in $(VENV), with the native core"
	@echo "make demo         phantoms, four trainings, report; DATA=DIR: on real CT volumes"
	@echo "make test         all tests"
	@echo "make campaign     hundreds of kills, failing disks and flipped bits: many minutes"
	@echo "make coverage     which lines they run, at least 90%"
	@echo "make lint         ruff, mypy, clang-format"
	@echo "make fuzz         the C++ core on fuzzed input, FUZZ_SECONDS=60 a kernel; needs clang"
	@echo "make fuzz-pack    after it: what fuzzing found joins the seeds in csrc/tests/fuzz/corpus"
	@echo "make native-test  the C++ core alone, under the sanitizers"
	@echo "make gpu-compile  the Triton kernels for sm_80, sm_90 and sm_100, without a GPU"
	@echo "make exhaustive-test  what takes minutes: every float32 logit"
	@echo "make same-bits    BASE=COMMIT: does HEAD compute what that commit does, bit for bit?"
	@echo "make bench        ours against their peers, recorded in bench/results; BENCH=OP: only that"
	@echo "make bench-check  the same again: is anything slower than recorded?"
	@echo "make bench-table  the recorded figures into README.md"
	@echo "make bench-goals  the recorded figures against the goals"
	@echo "make bench-smoke  whether all benchmarks run and agree, in seconds"
	@echo "make cuda-check   nvcc for sm_80 and sm_90: no kernel may spill registers"
	@echo "make gpu          on a machine with an NVIDIA GPU: build, test, sanitize, measure, in parts: PART=list; PYTHON=: whose torch is built for it"

setup: $(VENV)/.ready

# torch first and by its exact version: no other package may choose it.
$(VENV)/.ready: pyproject.toml export/pyproject.toml setup.py CMakeLists.txt requirements/torch.txt $(wildcard csrc/*/* csrc/*/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements/torch.txt
	$(BIN)/python -m pip install -q -e ./export -e ".[formats,test,dev]"
	touch $@

demo: setup
	$(BIN)/python -m smile_fast.demo $(DEMO)

# The Triton kernels first, in a process of their own: the interpreter is chosen before they are defined. Workers take
# whole stretches of tests (worksteal), so that most of what a file's tests share is made once.
PYTEST := SMILE_FAST_REQUIRE_NATIVE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
test: setup
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/ops/triton
	$(PYTEST)

# Hundreds of kills, failing disks and flipped bits, and every recipe: SMILE_FAST_KILLS, SMILE_FAST_ERRORS and
# SMILE_FAST_FLIPS say how many.
campaign: setup
	$(PYTEST) -m campaign

# Apart from the tests, which its tracer would slow down; what Triton compiles or a GPU runs is no part of it.
coverage: setup
	$(PYTEST) --cov=smile_fast --cov=smile_runtime --cov-report=term:skip-covered --cov-fail-under=90

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

FUZZ_SECONDS ?= 60
FUZZED := $(patsubst csrc/tests/fuzz/%_fuzz.cpp,%,$(wildcard csrc/tests/fuzz/*_fuzz.cpp))
SEEDS := $(CURDIR)/csrc/tests/fuzz/corpus

.PHONY: fuzz fuzz-build fuzz-pack
fuzz-build: setup
	$(BIN)/cmake -S . -B build/fuzz -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	    -DCMAKE_CXX_COMPILER=clang++ -DSMILE_FAST_FUZZ=ON -DSMILE_FAST_OPENMP=OFF > /dev/null
	$(BIN)/cmake --build build/fuzz

# What is found goes to build/fuzz/corpus; the seeds are unpacked beside it, from one archive an op.
fuzz: fuzz-build
	printf '%s\n' $(FUZZED) | xargs -P 2 -I OP sh -c 'cd build/fuzz && rm -rf seeds/OP && mkdir -p corpus/OP seeds/OP && \
	    tar -xzf $(SEEDS)/OP.tar.gz -C seeds/OP && ./OP_fuzz \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -len_control=0 -artifact_prefix=OP- corpus/OP seeds/OP \
	    > OP.log 2>&1 && echo "OP: $$(tail -n 1 OP.log)" || { tail -n 50 OP.log; echo "FAILED: OP, see build/fuzz"; exit 1; }'

# After `make fuzz`: what it found and what covers something new joins the seeds. The same seeds make the same bytes.
fuzz-pack: fuzz-build
	mkdir -p $(SEEDS)
	printf '%s\n' $(FUZZED) | xargs -I OP sh -c 'cd build/fuzz && ./OP_fuzz -merge=1 seeds/OP corpus/OP > OP.log 2>&1 && \
	    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=a=r,u+w --no-recursion \
	    -C seeds/OP -cf - $$(ls seeds/OP) | gzip -9n > $(SEEDS)/OP.tar.gz && echo "OP: $$(ls seeds/OP | wc -l) seeds"'

gpu-compile: setup
	$(BIN)/python -m pytest -q -n 2 tests/ops/test_triton_compile.py

# Address and undefined-behaviour sanitizer share a build. The CUDA sources are executed under the sanitizers alone: the
# plain build would compute the same numbers and see less.
native-test: setup
	for sanitizer in "" $(SANITIZERS); do \
	    $(BIN)/cmake -S . -B build/csrc-$${sanitizer%,*} -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	        -DSMILE_FAST_TESTS=ON -DSMILE_FAST_SANITIZE=$$sanitizer > /dev/null && \
	    $(BIN)/cmake --build build/csrc-$${sanitizer%,*} && \
	    $(BIN)/ctest --test-dir build/csrc-$${sanitizer%,*} -LE exhaustive --parallel $$(nproc) \
	        --output-on-failure || exit 1; \
	done

exhaustive-test: setup
	$(BIN)/cmake -S . -B build/csrc- -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DSMILE_FAST_TESTS=ON > /dev/null
	$(BIN)/cmake --build build/csrc-
	$(BIN)/ctest --test-dir build/csrc- -L exhaustive --verbose

BASE ?= origin/main
same-bits: setup
	$(BIN)/python -m tests.same_bits $(BASE)

# The peers that are no dependency of ours: the extra "bench". Whatever runs without them says who was left out.
$(VENV)/.peers: $(VENV)/.ready pyproject.toml
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"], sep="\n")' | \
	    xargs -d '\n' $(BIN)/python -m pip install -q
	touch $@

bench: $(VENV)/.peers
	$(BIN)/python -m bench run $(BENCH_OPTIONS)

bench-check: $(VENV)/.peers
	$(BIN)/python -m bench check $(BENCH_OPTIONS)

bench-table bench-goals bench-smoke: bench-%: setup
	$(BIN)/python -m bench $*

cuda-check: setup
	$(BIN)/cmake -S . -B build/csrc- -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DSMILE_FAST_TESTS=ON > /dev/null
	$(BIN)/ctest --test-dir build/csrc- -L nvcc --no-tests=error --output-on-failure

# With the machine's own Python: its torch is the one that belongs to its driver. PART=build,losses runs these parts,
# PART=list names all; COMMIT=abc names the commit where a checkout came without its history.
gpu:
	@$(PYTHON) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' || \
	    { echo "error: $(PYTHON) has no torch; name a Python whose torch is built for this GPU: make gpu PYTHON=..." >&2; exit 2; }
	PYTHONPATH=$(CURDIR):$(CURDIR)/export $(PYTHON) -m bench.gpu $(if $(PART),--part '$(PART)')

clean:
	rm -rf build dist demo demo-real *.egg-info export/*.egg-info export/build
