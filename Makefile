# Works on a machine with python3 (>= 3.10), its venv module and make; everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
COST_ARGS ?= --data ../shared/data --page docs/cost.md
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DELETE_ON_ERROR:
.PHONY: demo cost test lint clean

# Phantom data, corrupted labels, three trainers, stock prediction, a table and a picture, all under demo/.
demo: $(INSTALLED)
	$(BIN)/python benchmarks/demo/run_demo.py --folder demo

# Seconds and memory of a training step on four configurations, into docs/cost.md: keep the machine free of other work.
# Goes on where it was interrupted; begin anew with: make cost COST_ARGS='--data ... --page docs/cost.md --again'
cost: $(INSTALLED)
	$(BIN)/python benchmarks/step_cost.py --work cost $(COST_ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The virtual environment stays; remove it by hand to install afresh.
clean:
	rm -rf demo build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find nnunetv2_metadcseg noise_tools tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp keeps pip from running again until pyproject.toml changes. pip chooses the build of torch.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and "error: found Python %d.%d, expected 3.10 or newer; name one: make PYTHON=python3.12" % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@
