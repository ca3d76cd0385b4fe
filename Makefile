# The project's verbs; `make help` lists them. Set-up happens by itself, in .venv, and only when something changed.

# The first of these that is Python 3.11 or newer; `make PYTHON=/path/to/python ...` names another.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)

# Which build of torch: on Linux the public index serves the GPU build alone, with some 3 GB of CUDA packages. A Linux
# machine without an NVIDIA driver therefore gets torch first and by itself: the wheel that this machine's pip already
# offers without an index (find-links), else the CPU build from PyTorch's own index. The rest of the install finds it
# in place. An --extra-index-url would be shorter, but pip then asks that host about each of the other packages too,
# and waits for it where it cannot be reached. `make TORCH_INDEX=URL` names another build's index; `make TORCH_INDEX=`
# takes torch from wherever pip takes everything else.
ifeq ($(shell uname -s):$(wildcard /proc/driver/nvidia)$(shell command -v nvidia-smi),Linux:)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif

PIP_INSTALL = .venv/bin/python -m pip install -qq --disable-pip-version-check -c config/constraints.txt

.DEFAULT_GOAL := help
.PHONY: help sweep test nightly weekly docs clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s%s\n", $$1, $$2 }' Makefile

sweep: .venv/.installed ## Set up, then search: BERT with 5-fold cross-validation
	.venv/bin/hpo sweep --study bert_cv --folds 5

test: .venv/.installed-dev ## Set up with the development tools, then lint, check types and run the quick tests
	scripts/check
	scripts/test -m "not slow"

nightly: .venv/.installed-dev ## The tests that train whole studies; CI runs most of them
	scripts/test -m slow

weekly: .venv/.installed-dev ## Hours of faults in real sweeps (docs/reliability.md)
	@failed=0; export PATH="$$PWD/.venv/bin:$$PATH"; set -x; \
	python scripts/chaos || failed=1; \
	for seed in 2 3 4 5 6 7 8; do python scripts/chaos kills --seed $$seed || failed=1; done; \
	scripts/fuzz || failed=1; \
	python scripts/bench_orchestrator --workers 32 64 --shared 2000 || failed=1; \
	exit $$failed

docs: .venv/.installed ## Write docs/cli.md from --help and docs/configuration.md from the schemas
	.venv/bin/typer hpo.cli utils docs --name hpo --output docs/cli.md
	.venv/bin/python scripts/document_configuration > docs/configuration.md

clean: ## Remove .venv and caches; results in runs/ stay
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml config/constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Installing into .venv; the first time takes a few minutes."
	@test -x .venv/bin/pip || "$(PYTHON)" -m venv .venv
ifneq ($(TORCH_INDEX),)
	@$(PIP_INSTALL) --no-deps --no-index torch 2>/dev/null || \
	$(PIP_INSTALL) --no-deps --index-url "$(TORCH_INDEX)" --retries 1 --timeout 30 torch || \
	{ echo "No torch from $(TORCH_INDEX). Any build your pip finds, GPU builds included: make TORCH_INDEX= ..." >&2; exit 1; }
endif
	@$(PIP_INSTALL) -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@$(PIP_INSTALL) -e ".[dev]"
	@touch $@
