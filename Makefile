# The two commands: `make serve` runs the main job, `make test` passes all tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= serve_config.yaml

# Ray's own ports listen on all interfaces: who wants in needs the token in ~/.ray/auth_token.
export RAY_AUTH_MODE ?= token
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: serve test bench check format install clean
.DEFAULT_GOAL := serve

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

serve: install
	exec $(BIN)/python -m serve_app $(CONFIG)

# What needs no Ray runs in two processes; what does, or measures memory, has the machine to itself.
test: install
	$(BIN)/python -m pytest tests/unit tests/contracts -n 2 --dist worksteal -m "not alone"
	$(BIN)/python -m pytest -m "alone or integration"

bench: install
	$(BIN)/python -m benchmarks

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
