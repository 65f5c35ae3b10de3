# make demo   install what the demo needs and adapt a classifier to simulated scans
# make test   install everything the tests need; ruff, mypy, pytest
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OUT ?= demo-out
SEED ?= 0

.PHONY: demo test lint types clean

demo: $(VENV)/.demo
	$(BIN)/crossmost demo --out $(OUT) --seed $(SEED)

# A process a core, each on one thread: the networks of the tests are too small to share.
test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy reads the installed package from another folder: at the root, and through an editable install, it does not
# find crossmost.runtime. `build` goes first: setuptools would put modules that were since deleted into the wheel.
types: $(VENV)/.dev
	rm -rf build
	$(PIP) install --quiet --no-deps --no-build-isolation --target build/installed .
	cd build/installed && $(abspath $(BIN))/python -m mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p crossmost

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Each stamp names what it installs; either target may be the first one run.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet -e ".[cpu,train,report]" -c constraints.txt
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet -e ".[cpu,train,export,tensorrt-rtx,ros,report,tensorboard,dev]" -c constraints.txt
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info
