# What people type. Each target makes what it needs: .venv from the hash-locked requirements, once per lock file.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# A stamp's name holds the content of what it stands for: an old one never fits a changed lock file.
content = $(shell cat requirements/$(1).txt pyproject.toml | cksum | tr -d ' ')
RUN := $(VENV)/.run-embedded-$(call content,run-embedded)
DEV := $(VENV)/.dev-$(call content,dev)

.PHONY: up demo worker test histories check fix lock bench
.DEFAULT_GOAL := up

up: $(RUN)
	@exec $(BIN)/orchestra up

# For another machine: PREFECT_API_URL and PREFECT_API_AUTH_STRING say where Prefect is.
worker: $(RUN)
	@exec $(BIN)/orchestra worker $(ARGS)

demo: $(RUN)
	@exec $(BIN)/orchestra demo

# ARGS="-k supervisor" and the like go to pytest.
test: $(DEV)
	@$(BIN)/python -m pytest $(ARGS)

# Random histories of the whole product with faults. SEEDS=200 says how many, SEED=123 replays one, ARGS=--help the rest.
histories: $(DEV)
	@$(BIN)/python -m tests.histories $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--count $(SEEDS)) $(ARGS)

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DEV)
	@$(BIN)/python -m benchmarks $(ARGS)

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml

lock: $(DEV)
	$(COMPILE) --extra build -o requirements/run.txt
	$(COMPILE) --extra build --extra embedded-model -c requirements/run.txt -o requirements/run-embedded.txt
	$(COMPILE) --all-extras -c requirements/run-embedded.txt -o requirements/dev.txt

PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "Python 3.11 or newer is needed, $(PYTHON) is older or missing; name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
@echo "installing requirements/$(1).txt into $(VENV)"
@$(PIP) --require-hashes --requirement requirements/$(1).txt
@$(PIP) --no-deps --no-build-isolation --editable .
@$(BIN)/python -c 'import xllamacpp' 2>/dev/null || \
	echo "the embedded model can't be loaded here; on Debian and Ubuntu: apt-get install libgomp1" >&2
@rm -f $(VENV)/.$(1)-*
@touch $@
endef

$(RUN):
	$(call install,run-embedded)

# The development set holds the other one with the same versions.
$(DEV):
	$(call install,dev)
	@rm -f $(VENV)/.run-embedded-*
	@touch $(RUN)
