# Everything runs in a virtual environment with pinned packages, which the first target that needs it sets up.
#   make demo   make test   make STACK=openmmlab test   make help
STACK ?= onedl
VENV  ?= $(if $(filter onedl,$(STACK)),.venv,.venv-$(STACK))
PY     = $(VENV)/bin/python
TASK  ?= det
# Shortens the demo for CI, e.g. DEMO_EPOCHS=1.
DEMO_EPOCHS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint doctor native native-cuda native-cuda-check native-none-check native-asan native-cuda-emulate native-cuda-registers clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: ## virtual environment, pinned packages, mmext's extension (STACK=onedl, openmmlab or latest)
	@tools/misc/setup_env.sh $(STACK) $(VENV)

demo: setup ## data, then train, test, deploy and draw (TASK=det, seg, sagd, inr, shape, views or surface); what is done is skipped
	@$(PY) tools/demo.py $(TASK) $(if $(DEMO_EPOCHS),--epochs $(DEMO_EPOCHS))

test: setup ## all tests
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 tests

lint: setup ## ruff, mypy, and the sentences that are hardest to read
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy mmext
	@$(PY) tools/misc/prose.py

doctor: setup ## what is installed, what works, what to do about what does not
	@$(PY) -m mmext.doctor

native: setup ## rebuild the native operators in place, for the CPU
	MMEXT_REQUIRE_NATIVE=1 MAX_JOBS=1 $(PY) setup.py build_ext --inplace --force

native-cuda: setup ## the same with the CUDA kernels (needs nvcc; about 7 minutes)
	FORCE_CUDA=1 MMEXT_REQUIRE_NATIVE=1 MAX_JOBS=1 $(PY) setup.py build_ext --inplace --force

native-cuda-check: setup ## compile and link the CUDA kernels in a copy, and run its operator tests (needs nvcc)
	@tools/misc/check_build.sh build/cuda-check $(PY) FORCE_CUDA=1 MMEXT_REQUIRE_NATIVE=1 MAX_JOBS=2

native-none-check: setup ## the same without a compiler: the references must do
	@tools/misc/check_build.sh build/none-check $(PY) CXX=none CC=none

FUZZ = $(CXX) -std=c++17 -g -Wno-psabi -Wno-ignored-attributes -Wno-unknown-pragmas
SANITIZED = -fsanitize=address,undefined -fno-sanitize-recover=all

native-asan: ## run the CPU kernels on random geometries under ASan and UBSan
	@mkdir -p build
	$(FUZZ) -O1 $(SANITIZED) cuda_ops/cpu/fuzz.cpp -o build/fuzz
	for isa in default avx2 avx512; do ATEN_CPU_CAPABILITY=$$isa build/fuzz || exit 1; done

native-cuda-emulate: ## run the CUDA kernels on random geometries as C++, without a GPU: as they are, and under ASan and UBSan
	@mkdir -p build
	$(FUZZ) -O1 cuda_ops/cuda/fuzz.cpp -o build/fuzz-cuda && build/fuzz-cuda 2000
	$(FUZZ) -O1 $(SANITIZED) cuda_ops/cuda/fuzz.cpp -o build/fuzz-cuda-asan && build/fuzz-cuda-asan 1000

native-cuda-registers: setup ## registers and spills of every form of the CUDA kernels (needs nvcc)
	@$(PY) tools/misc/cuda_registers.py

clean: ## remove builds and caches; data, work_dirs and environments stay
	rm -rf build *.egg-info mmext/.mim mmext/*.so .pytest_cache .ruff_cache .mypy_cache
