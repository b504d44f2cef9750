# Two commands do all their own set-up on a machine with Python 3.10+ and make:
#   make demo    train on digits for a minute, then look at what the model draws
#   make test    lint, types and every test
# Others: make docs, make test-slow, make test-faults, make bench, make release (see CONTRIBUTING.md).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow test-faults test-kills bench docs docs-serve release clean
.DEFAULT_GOAL := test

demo: $(VENV)/.demo
	@$(BIN)/k-diffusion demo

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadscope -m 'not slow and not faults'

test-slow: $(VENV)/.test
	$(BIN)/pytest -m slow

test-faults: $(VENV)/.test
	$(BIN)/pytest -m faults

# One run killed KILLS times: nothing lost, nothing left over, the end state that of a run left alone.
KILLS ?= 1000
test-kills: $(VENV)/.test
	$(BIN)/python tests/faults/kill_loop.py --kills $(KILLS)

# (growing.py wants a folder of pictures: python benchmarks/growing.py --folder ICONS;
# speedrun.py takes 20 minutes or more)
bench: $(VENV)/.test
	@for bench in $(filter-out benchmarks/_% benchmarks/growing.py benchmarks/speedrun.py,$(wildcard benchmarks/*.py)); do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

# The site, into site/. A dead link, a page without a place in the navigation or a name of the
# reference that does not exist fails.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

# sdist and wheel of the committed files, into dist/; the wheel is tested in a clean environment.
URL ?=
release: $(VENV)/.release
	$(BIN)/python tools/release.py $(if $(URL),--url $(URL))

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "k-diffusion needs Python 3.10 or later")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'python3 -m venv failed: install the package python3-venv and try again'; exit 1; }

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	@echo 'installing what the demo needs into $(VENV) (once)'
	@$(PIP) -q -e '.[train]'
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml constraints.txt
	@echo 'installing what the tests need into $(VENV) (once)'
	@$(PIP) -q -e '.[dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(BIN)/python pyproject.toml constraints.txt
	@echo 'installing what the docs need into $(VENV) (once)'
	@$(PIP) -q -e '.[train,diffusers,docs]'
	@touch $@

$(VENV)/.release: $(BIN)/python pyproject.toml constraints.txt
	@echo 'installing what a release needs into $(VENV) (once)'
	@$(PIP) -q build
	@touch $@

clean:
	rm -rf $(VENV) site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
