# The two commands: `make train` (the whole road on this machine) and `make test`. Both set up all they need.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# A CPU build of torch needs no CUDA libraries; where pip offers one for this machine it is taken from the range.
TORCH ?= torch>=2.9,<2.14
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh') setup.py pyproject.toml

.PHONY: help train test test-main test-triton test-cuda lint format error-table bench gates gpu-proof triton-golden build clean
help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/bin/activate:
	@echo "== making the virtual environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip "setuptools>=77" wheel "pybind11>=2.13"
	@echo "== installing torch (the largest part, once)"
	$(PY) -m pip install --quiet "$(TORCH)"

$(VENV)/.built: $(VENV)/bin/activate $(SOURCES)
	@echo "== building the kernels and installing pyengine"
	$(PY) -m pip install --quiet --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.built
	@echo "== installing what the tests need"
	$(PY) -m pip install --quiet --group test --group lint
	@touch $@

build: $(VENV)/.built  ## environment and compiled kernels

train: $(VENV)/.built  ## the whole road: crawl, train, teach, reinforce, report
	$(PY) -m pyengine.train $(ARGS)

test: $(VENV)/.test  ## the tests, in minutes
	@echo "== the tests, as many parts at once as there are processors; each part tells its outcome when it ends"
	$(MAKE) --no-print-directory --jobs=$$(nproc) --output-sync=line test-main test-triton test-cuda

test-main: $(VENV)/.test  ## the tests but for those of GPU kernels
	$(PY) -m pytest tests -m "not slow" $(ARGS)

# Triton's interpreter must be switched on before Triton is imported, and Triton 3.6 needs numpy < 2.4: an
# environment of its own beside the first, sharing its packages.
$(VENV)-triton/.ready: $(VENV)/.test
	@echo "== an environment for Triton's interpreter"
	$(PYTHON) -m venv $(VENV)-triton
	echo "import site; site.addsitedir('$(CURDIR)/$(VENV)/lib/$$(ls $(VENV)/lib)/site-packages')" \
	  > $(VENV)-triton/lib/$$(ls $(VENV)-triton/lib)/site-packages/shared.pth
	$(VENV)-triton/bin/python -m pip install --quiet --no-deps "triton==3.6.0" "numpy>=2,<2.4"
	@touch $@

# The newest version beside it, for its machine code alone.
$(VENV)-triton-new/.ready: $(VENV)-triton/.ready
	$(VENV)-triton/bin/python -m pip install --quiet --no-deps --target $(VENV)-triton-new "triton==3.9.0"
	@touch $@

triton-golden: $(VENV)-triton-new/.ready  ## long: compile every Triton kernel and write down its machine code's counts
	$(VENV)-triton/bin/python -m tests.triton_proof --write
	PYTHONPATH=$(VENV)-triton-new $(VENV)-triton/bin/python -m tests.triton_proof --write

TRITON_TESTS := TRITON_INTERPRET=1 $(VENV)-triton/bin/python -m pytest tests/kernels -m "not slow"
test-triton: $(VENV)-triton/.ready  ## the Triton kernels under the interpreter, in their own process: the quick part
	$(TRITON_TESTS) -k "(triton and (rmsnorm or cross_entropy or as_good) and (not 2304 or Q4_1)) or reference_does" $(ARGS)
	$(VENV)-triton/bin/python -m pytest tests/kernels/test_triton_compiles.py tests/kernels/test_triton_decoding.py -k "90 or waits" $(ARGS)
	$(VENV)-triton/bin/python -m pytest tests/kernels/test_cuda_compiles.py tests/bench/test_gpu_suite.py -m "not slow" $(ARGS)

# The CUDA kernels, compiled for the CPU: results first, then under AddressSanitizer, then with real threads under
# ThreadSanitizer (a small case: every CUDA thread is a thread of the system).
SHIM_TESTS := $(PY) -m pytest tests/kernels -m "not slow"
SHIM := PYENGINE_CUDA_SHIM=$$($(PY) -m tests.cuda_shim build/shim
ASAN := ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD=$$($(CXX) -print-file-name=libasan.so)
TSAN := TSAN_OPTIONS=ignore_noninstrumented_modules=1:exitcode=66 LD_PRELOAD=$$($(CXX) -print-file-name=libtsan.so)
test-cuda: $(VENV)/.test  ## the CUDA kernels on the host shim, with sanitizers: the quick part
	$(SHIM)) $(SHIM_TESTS) -k "shim and (rmsnorm or bpe or decoder or hopper or (attention and (races or (as_good and 33))) or (reference_bits and not anywhere and (63 or 64)))"
	$(SHIM) asan) $(ASAN) $(SHIM_TESTS) -k "shim and ((rmsnorm and not extremes) or (bpe and random_bytes) or ((attention or decoder or hopper) and races))"
	$(SHIM) tsan) $(TSAN) $(SHIM_TESTS) -k "shim and races"

gpu-proof: $(VENV)-triton-new/.ready  ## long: all that can be proven of the GPU kernels without a GPU
	$(TRITON_TESTS) -k "triton or reference_does"
	$(VENV)-triton/bin/python -m pytest tests/kernels/test_triton_compiles.py tests/kernels/test_triton_decoding.py
	PYTHONPATH=$(VENV)-triton-new $(VENV)-triton/bin/python -m pytest tests/kernels/test_triton_compiles.py
	$(VENV)-triton/bin/python -m pytest tests/kernels/test_cuda_compiles.py
	$(SHIM)) $(SHIM_TESTS) -k "shim"
	$(SHIM) asan) $(ASAN) $(SHIM_TESTS) -k "shim and not extremes and not anywhere"
	$(SHIM) tsan) $(TSAN) $(SHIM_TESTS) -k "shim and races"

lint: $(VENV)/.test  ## ruff, clang-format, mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.h' 'tests/*.cpp')
	$(VENV)/bin/mypy pyengine kernels

format:  ## rewrite in the project's style
	$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.h' 'tests/*.cpp')

error-table: $(VENV)/.test  ## measure every kernel's error and write the table into docs/numerics.md
	PYENGINE_ERROR_TABLE=build/errors.md $(PY) -m pytest tests/kernels -m "not slow" -k "torch or extremes"
	sed -i '/^| op |/,$$d' docs/numerics.md && cat build/errors.md >> docs/numerics.md

bench: $(VENV)/.test  ## all benches, as ratios against peers
	$(PY) -m bench $(ARGS)

gates: $(VENV)/.test  ## long: the default run at three seeds, every gate held
	$(PY) -m pytest tests -m slow $(ARGS)

clean:  ## remove what was built (runs stay)
	rm -rf build $(VENV) $(VENV)-triton $(VENV)-triton-new *.egg-info kernels/*.so
