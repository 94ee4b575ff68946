# `make run` and `make test` need Python 3.11 or newer, git and make; they install everything else into $(VENV).
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
PY := $(VENV)/bin/python
PORT ?= 5000
ARGS ?=

export PATH := $(abspath $(VENV))/bin:$(PATH)
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install run test lint doctor prefect mlflow dvc clean

help:
	@echo "make run      install, run the default pipeline, say where the report is"
	@echo "make test     install, run the tests (ARGS='tests/flows -k cancel' for some of them)"
	@echo "make prefect  the Prefect UI: start, schedule and watch pipelines   http://127.0.0.1:4200"
	@echo "make mlflow   the MLflow UI: compare runs and models                http://127.0.0.1:$(PORT)"
	@echo "make dvc      experiments, metrics and plots, as DVC has them"
	@echo "make doctor   check this machine, and say how to mend what is missing"
	@echo "make lint     check style"
	@echo "make clean    remove outputs; the cache, the tracking and $(VENV) stay"

run: install
	@$(PY) -m flows.cli run $(ARGS)

test: install
	@$(PY) -m pytest $(ARGS)

lint: install
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

doctor: install
	@$(PY) -m flows.cli doctor --ray

prefect: install
	@$(PY) -m flows.cli serve $(ARGS)

# Without job execution the server is 2 processes and 0.4 GB, with it 10 and 1.8 GB.
mlflow: install
	@echo "MLflow UI: http://127.0.0.1:$(PORT)/#/experiments/1/runs?workflowType=machine_learning"
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(VENV)/bin/mlflow server --workers 1 --host 127.0.0.1 --port $(PORT) \
		--backend-store-uri sqlite:///$(CURDIR)/mlflow.db --default-artifact-root $(CURDIR)/mlartifacts

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
