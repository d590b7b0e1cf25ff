# Every target builds what it needs: `make demo` and `make test` work on a fresh clone.
# Python 3.11 where it runs, else python3. Override with PYTHON=...
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The tensors of the demo and the tests are too small to gain from threads, and threads that
# share their cores with other work lose badly; benchmarks use what the machine has.
demo test test-slow coverage docs docs-check docs-links: export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow coverage lint format docs docs-check docs-links bench clean distclean

help: ## List the targets.
	@grep -E '^[.a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV): $(STAMP) ## Create the virtual environment and install the library with its dev tools.

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@

demo: $(STAMP) ## Train, convert, fine-tune and attack a small network; pictures in demo-output/.
	$(BIN)/python examples/digits.py --output demo-output

test: $(STAMP) ## Run the tests that are not marked slow.
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --durations=20

test-slow: $(STAMP) ## Run the tests marked slow.
	$(BIN)/python -m pytest -m slow

coverage: $(STAMP) ## Run the same tests once more, and print the lines that none of them reaches.
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --cov=pursuitify --cov-report=term-missing:skip-covered

lint: $(STAMP) ## Check style, format, types and the order of imports.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Format, and fix what can be fixed.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

SPHINX = $(BIN)/python -m sphinx -W --keep-going -q -c docs

$(VENV)/.docs-installed: $(STAMP)
	$(BIN)/python -m pip install -e '.[docs]'
	touch $@

docs: $(VENV)/.docs-installed ## Build the documentation site in build/site; gallery and notebooks are run.
	$(SPHINX) -d build/doctrees -b html . build/site

docs-check: $(VENV)/.docs-installed ## Build every page, where a warning is an error; gallery and notebooks are not run.
	$(SPHINX) -d build/check/doctrees -D plot_gallery=0 -D nb_execution_mode=off -b html . build/check/site

docs-links: $(VENV)/.docs-installed ## Check the links of the documentation to other sites; needs a network.
	$(SPHINX) -d build/doctrees -b linkcheck . build/links

# Not coverage.py and coverage_libraries.py, which write pages of docs: they are run by hand.
# render.py comes last, since it writes docs/performance.md from what the others measured.
BENCHMARKS := $(filter-out %/common.py %/pictures.py %/coverage.py %/coverage_libraries.py %/render.py, \
	$(wildcard benchmarks/*.py))

bench: $(STAMP) ## Run every benchmark but the coverage pages', then write docs/performance.md from them.
	@set -e; for script in $(BENCHMARKS) benchmarks/render.py; do \
		echo "== $$script"; $(BIN)/python "$$script"; \
	done

clean: ## Remove caches and outputs.
	rm -rf demo-output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -rf .import_linter_cache .coverage
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove the virtual environment too.
	rm -rf $(VENV)
