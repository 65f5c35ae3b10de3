# make demo   install what the demo needs and adapt a classifier to simulated scans
# make test   install everything the tests need; ruff, mypy, pytest
# make benchmarks DATA=... [WORK=...]         measure all that has no result yet (hours on two cores), write the tables
# make benchmarks-quick DATA=... [WORK=...]   every measurement on very little, into WORK; the tables from the results
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OUT ?= demo-out
SEED ?= 0
WORK ?= runs/benchmarks

.PHONY: demo test lint types benchmarks benchmarks-quick benchmark-data clean

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

# Accuracy first: where trainings are missing they take longest, and the others use what they leave in WORK.
ACCURACY := adaptation diagnosis baselines few_classes robustness open_set
SPEED := throughput latency
OTHERS := export_parity export_cards public_encoders
# Bases that were trained for longer: for $$epochs.
LONGER := full_card.py --data "$(DATA)" --work "$(WORK)/bases-of-$$epochs" --results benchmarks/results/bases_of_$$epochs \
	--card point-tiny --device cpu --epochs $$epochs --learning-rate 1e-3 --pairs p1-low p1-moderate \
	--rows joint fine-tuned joint-all-kept

benchmark-data:
	@test -d "$(DATA)" || { echo "expected DATA=FOLDER, the point cloud archives of benchmarks/README.md: found '$(DATA)'" >&2; exit 2; }

# Each script goes on where it stopped.
benchmarks: benchmark-data $(VENV)/.dev
	set -e; for script in adaptation option_values; do \
		$(BIN)/python benchmarks/$$script.py --data "$(DATA)" --work "$(WORK)" --jobs 2; done
	set -e; for script in $(filter-out adaptation,$(ACCURACY)) $(SPEED) $(OTHERS); do \
		$(BIN)/python benchmarks/$$script.py --data "$(DATA)" --work "$(WORK)"; done
	set -e; for epochs in 32 64; do $(BIN)/python benchmarks/$(LONGER) --jobs 2; done
	$(BIN)/python benchmarks/runtime.py --data "$(DATA)" --work "$(WORK)" --soak 100000 --install
	$(BIN)/python benchmarks/idle.py --work "$(WORK)"
	$(BIN)/python benchmarks/demo.py --work "$(WORK)"
	$(BIN)/python benchmarks/zoo_table.py

# Without the long trainings of large encoders: export and demo are tried on what is quickly made, latency and the
# runtime only where `make benchmarks` has left their run.
benchmarks-quick: benchmark-data $(VENV)/.dev
	set -e; for script in $(ACCURACY) throughput; do \
		$(BIN)/python benchmarks/$$script.py --data "$(DATA)" --work "$(WORK)" --quick; done
	$(BIN)/crossmost export "$(WORK)/adaptation-quick/p1-moderate/joint-0" --out "$(WORK)/quick.bundle" --overwrite
	set -e; for script in latency runtime; do \
		if test -f "$(WORK)/run-point-bert-64x32/report.html"; then \
		$(BIN)/python benchmarks/$$script.py --data "$(DATA)" --work "$(WORK)" --quick; \
		else echo "$$script.py: left out, no run-point-bert-64x32 in $(WORK)"; fi; done
	$(BIN)/python benchmarks/public_encoders.py --data "$(DATA)" --work "$(WORK)" --cards uni3d-ti --quick
	rm -rf "$(WORK)/demo-quick" && $(BIN)/crossmost demo --out "$(WORK)/demo-quick"
	set -e; for script in $(ACCURACY) $(SPEED); do \
		$(BIN)/python benchmarks/$$script.py --data "$(DATA)" --work "$(WORK)" --tables-only; done
	set -e; for epochs in 32 64; do $(BIN)/python benchmarks/$(LONGER) --tables-only; done
	$(BIN)/python benchmarks/zoo_table.py

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info
