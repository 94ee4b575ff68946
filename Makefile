# `make run` and `make test` need Python 3.11 or newer, git and make; they install everything else into $(VENV).
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
ARGS ?=

export PATH := $(abspath $(VENV))/bin:$(PATH)
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install run test test-all lint doctor up dvc clean

help:
	@echo "make run      install, run the default pipeline, say where the report is"
	@echo "make test     install, run the tests (ARGS='tests/flows -k cancel' for some of them)"
	@echo "make test-all those too that take minutes each: stories of the docs, a team's servers, crashes, races with peers"
	@echo "make up       the Prefect UI, the MLflow UI and the pipelines   http://127.0.0.1:4200 and :5000"
	@echo "make dvc      experiments, metrics and plots, as DVC has them"
	@echo "make doctor   check this machine, and say how to mend what is missing"
	@echo "make lint     check style"
	@echo "make clean    remove outputs; the cache, the tracking and $(VENV) stay"

run: install
	@$(PY) -m flows.cli run $(ARGS)

test: install
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: install
	@$(PYTEST) $(ARGS)

lint: install
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

doctor: install
	@$(PY) -m flows.cli doctor --ray

up: install
	@exec $(PY) -m flows.cli up $(ARGS)

dvc: install
	@$(PY) -m dvc exp show --no-pager --only-changed
	@$(PY) -m dvc metrics diff
	@$(PY) -m dvc plots show

clean:
	rm -rf artifacts reports .fedloom/worktrees

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) cannot make virtual environments (ensurepip is missing)."; \
		echo "On Debian or Ubuntu: sudo apt install python3-venv; or name another Python: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Installing into $(VENV): about 2 GB, which takes some minutes the first time."
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
