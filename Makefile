# make demo   a simulated three-hospital federation on synthetic patients, and its report
# make federation-demo   one server and three hospitals as processes over TLS on this computer
# make test   the tests, in up to four processes; make test WORKERS=0 in one
# make check  what .ci/run checks before the tests: format, lint, import rules, types

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo
FEDERATION_DEMO ?= runs/federation-demo
# One more than there are cores: tests of deployed federations mostly wait.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')
REAL_DATA := $(realpath ../shared/data)

# Idle OpenMP threads would spin and starve whatever else runs on a small machine.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo federation-demo test check lint types clean

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else "fedglioma needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12" % v)'
	@echo 'making $(VENV) and installing: one to some minutes, most of it PyTorch'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[simulation]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[ray,baselines]' --group dev
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/fedglioma-server simulate --synthetic 150 --synthetic-overlap 0.25 \
		--preset reference --lr 0.002 --rounds 8 --out $(DEMO)

federation-demo: $(VENV)/.installed
	FEDGLIOMA_BIN=$(BIN) deploy/federation-demo.sh $(FEDERATION_DEMO)

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(if $(REAL_DATA),FEDGLIOMA_REAL_DATA='$(REAL_DATA)') \
		$(BIN)/python -m pytest -m 'not gpu' -n $(WORKERS) --maxprocesses 4

check: lint types

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
