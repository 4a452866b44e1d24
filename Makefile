# Needs python3 (3.11 or 3.12), pip, venv, make and git. Every target makes .venv first, from requirements.lock, and only when
# that or pyproject.toml changed.
#
#   make demo                a faulty web on this machine, cleaned to shards: the funnel in two minutes
#   make test                the test suite (ARGS="-k download" for a part of it)
#   make test-slow           the tests that take longer than 10 seconds each, and those in a browser
#   make lint types          ruff; mypy --strict on curate/ and train/
#   make bench [ONLY=name]   benchmarks against the neighbours, into runs/bench.json
#   make docs                the generated pages of docs/ anew: commands, steps, settings
#   make lock                requirements.lock anew from pyproject.toml (ARGS=--upgrade for the newest of everything)
#   make clean               remove what make made; runs/ stays
#
# PYTHON=python3.12 chooses the interpreter of a new .venv.

PYTHON ?= python3
PY     := .venv/bin/python
UV     := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
READY  := .venv/.ready

# Two test processes: each test is small, and the few that use more cores are the slow ones. A file's tests share what it sets up.
TEST_WORKERS ?= 2

define python-fits
$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
    { echo "make: needs Python 3.11 or 3.12, but $(PYTHON) is $$($(PYTHON) --version 2>&1); say make PYTHON=python3.12" >&2; exit 2; }
endef

# The system's certificates, so that a machine behind its own authority works; and never a Python from elsewhere.
UV_SYSTEM_CERTS     ?= 1
UV_PYTHON_DOWNLOADS ?= never
# Bytecode once, here: a training starts in 8 seconds instead of 22 where nobody may write it later.
UV_COMPILE_BYTECODE ?= 1
export UV_SYSTEM_CERTS UV_PYTHON_DOWNLOADS UV_COMPILE_BYTECODE

# A library of a library asks the network for its own newest version at import.
export NO_ALBUMENTATIONS_UPDATE = 1

.DEFAULT_GOAL := test
.DELETE_ON_ERROR:
.PHONY: setup demo test test-slow browser lint types bench docs lock clean

setup: $(READY)

demo: setup
	$(PY) -m tests.site.demo

test: setup
	$(PY) -m pytest -n $(TEST_WORKERS) --dist loadfile --durations=15 $(ARGS)

test-slow: setup browser
	$(PY) -m pytest -n $(TEST_WORKERS) --dist loadfile -m "(slow or browser) and not long" --timeout 600 --durations=15 $(ARGS) || [ $$? -eq 5 ]  # 5: there is none

# Debian's chromium, where it can be had; where not, the tests that need it skip and say so.
browser:
	@[ -x /usr/bin/chromium ] || { command -v apt-get && [ "$$(id -u)" = 0 ] && apt-get install --yes --quiet chromium; } >/dev/null 2>&1 \
	    || { apt-get update && apt-get install --yes --quiet chromium; } >/dev/null 2>&1 \
	    || echo "make: no /usr/bin/chromium, and it cannot be installed here; browser tests skip"

lint: setup
	.venv/bin/ruff check .

types: setup
	.venv/bin/mypy

bench: setup
	$(PY) -m tests.benchmarks $(if $(ONLY),--only $(ONLY))

docs: setup
	$(PY) -m tests.docs

lock: $(UV)
	$(UV) pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 --group dev pyproject.toml \
	    -o requirements.lock --quiet $(ARGS)

clean:
	rm -rf .venv .uv .bench build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find curate train tests -name __pycache__ -type d -prune -exec rm -rf {} +

# `uv pip sync` removes what is not in the lock, this project included, so the project comes after it.
$(READY): requirements.lock pyproject.toml | .venv/bin/python $(UV)
	$(UV) pip sync --quiet --require-hashes --python $(PY) requirements.lock
	$(UV) pip install --quiet --offline --no-deps --no-build-isolation --python $(PY) --editable .
	@touch $@

.venv/bin/python: | $(UV)
	@$(python-fits)
	$(UV) venv --quiet --clear --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv

.uv/bin/uv:
	@$(python-fits)
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
