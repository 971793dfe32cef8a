# The commands for users and developers. `make help` lists them.
#
# The environment is made on first use and kept: first torch, then llr with its native library as an
# editable install. Changed Python takes effect at once, changed C++ at the next make.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch>=2.11
ARGS ?=
# Number of processes that run tests in parallel; each takes one file at a time.
WORKERS ?= 2

BIN := $(VENV)/bin
NATIVE := setup.py pyproject.toml $(wildcard setup_native/*.py) $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)
# `make demo` installs only what the demo needs, unless the whole environment is already installed.
FOR_DEMO := $(if $(wildcard $(VENV)/.llr-dev),$(VENV)/.llr-dev,$(VENV)/.llr-demo)

.PHONY: help demo install test ops asan emulated emulated-asan emulated-tsan packaging lint type docs docs-links bench clean FORCE
.DELETE_ON_ERROR:

help:
	@echo "make demo       the rank of trained networks on real data, with figures in runs/demo"
	@echo "make test       the whole test suite, and the examples in the docstrings"
	@echo "make ops        only the tests of the native operators"
	@echo "make asan       the operators' tests under AddressSanitizer and UndefinedBehaviorSanitizer (gcc)"
	@echo "make emulated   only the tests of the CUDA kernels; they run on the CPU and need no GPU"
	@echo "make emulated-asan, make emulated-tsan   the kernels' tests under AddressSanitizer or ThreadSanitizer (gcc)"
	@echo "make packaging  the tests of the installation, with and without torch or a compiler"
	@echo "make lint       ruff: style and likely bugs"
	@echo "make type       mypy"
	@echo "make docs       the documentation site, in build/docs; runs the examples"
	@echo "make docs-links the links to other sites; needs the network"
	@echo "make bench      Jacobians, ranks, training and fits against other libraries and the limits of the machine; how often ranks and recoveries are wrong"
	@echo "make install    the environment alone"
	@echo "make clean      remove builds and caches, not the environment"
	@echo
	@echo "PYTHON=$(PYTHON)  VENV=$(VENV)  TORCH='$(TORCH)'  WORKERS=$(WORKERS)  ARGS='options for pytest or the benchmark'"

demo: $(FOR_DEMO)
	$(BIN)/llr demo

install: $(VENV)/.llr-dev

test: $(VENV)/.llr-dev
	$(BIN)/pytest tests llr --doctest-modules --ignore=tests/packaging -n $(WORKERS) --dist loadfile $(ARGS)

ops: $(VENV)/.llr-dev
	$(BIN)/pytest tests/operators $(ARGS)

asan: $(VENV)/.llr-dev
	tests/operators/sanitize.sh $(BIN)/python $(ARGS)

emulated: $(VENV)/.llr-dev
	$(BIN)/pytest tests/cuda_on_cpu $(ARGS)

emulated-asan emulated-tsan: emulated-%: $(VENV)/.llr-dev
	tests/cuda_on_cpu/sanitize.sh $* $(BIN)/python $(ARGS)

# Uses every environment that exists, to test with more than one torch.
packaging: $(VENV)/.llr-dev
	LLR_TEST_PYTHONS="$(sort $(wildcard $(BIN)/python .venv*/bin/python))" $(BIN)/pytest tests/packaging $(ARGS)

lint: $(VENV)/.llr-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml

type: $(VENV)/.llr-dev
	$(BIN)/mypy

# From clean, so that no page of something deleted stays. Warnings and unresolved references are errors.
docs: $(VENV)/.llr-docs
	rm -rf build/docs build/doctrees docs/api/generated docs/gallery
	$(BIN)/python -m sphinx -b html -W --keep-going -n -q -d build/doctrees docs build/docs

docs-links: $(VENV)/.llr-docs
	$(BIN)/python -m sphinx -b linkcheck -D plot_gallery=0 -q -d build/doctrees-links docs build/docs-links

bench: $(VENV)/.llr-dev
	$(BIN)/python benchmarks/jacobian.py $(ARGS)
	$(BIN)/python benchmarks/rank.py $(ARGS)
	$(BIN)/python benchmarks/rank_words.py $(filter --quick,$(ARGS))
	$(BIN)/python benchmarks/claims.py $(filter --quick,$(ARGS))
	$(BIN)/python benchmarks/training.py $(filter --quick,$(ARGS))
	$(BIN)/python benchmarks/recovery.py $(filter --quick,$(ARGS))

clean:
	rm -rf build dist *.egg-info llr/_C*.so llr/_build.json docs/api/generated docs/gallery
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find llr tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# If TORCH is not the torch that the environment was made with, install it.
ifneq ($(shell cat $(VENV)/.torch 2>/dev/null),$(TORCH))
$(VENV)/.torch: FORCE
endif
$(VENV)/.torch:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "There is no program $(PYTHON). Choose a Python 3.10 or newer: make PYTHON=..."; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	  { echo "llr needs Python 3.10 or newer, not $$($(PYTHON) --version 2>&1). Choose another: make PYTHON=..."; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" || \
	  { echo "$(PYTHON) cannot make environments: install its venv module (Debian: python3-venv)."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH): up to several GB and some minutes"
	$(BIN)/pip install --disable-pip-version-check "$(TORCH)" ninja
	@echo "$(TORCH)" > $@

# The library in llr/ belongs to the environment that built it last. Another environment rebuilds it, which
# takes seconds, because the objects of each torch are kept. It is also rebuilt if it is absent.
ifneq ($(shell cat build/environment 2>/dev/null) $(wildcard llr/_build.json),$(VENV) llr/_build.json)
$(VENV)/.llr-dev $(VENV)/.llr-demo $(VENV)/.llr-docs: FORCE
endif
$(VENV)/.llr-%: $(VENV)/.torch $(NATIVE)
	@echo "Installing llr[$*] and building its native library: a minute or two, most of it for the CUDA kernels if they are built"
	$(BIN)/pip install --disable-pip-version-check --quiet --no-build-isolation -e ".[$*]"
	@mkdir -p build && echo "$(VENV)" > build/environment
	@touch $@
