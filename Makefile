# `make demo` runs the main job, `make test` passes the tests; both install what they need first.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Two test processes with one thread each: more threads than cores would make every one of them wait.
WORKERS ?= 2

.PHONY: install demo test lint unit bench figures docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@echo "Installing into $(VENV): PyTorch and its libraries, several GB, a few minutes the first time."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@echo "Compiling the projection once, half a minute."
	$(BIN)/python -c "import torch; from analysis.representations.projection import project; project(torch.randn(40, 8), {'a': torch.randn(40, 8)}, 0)"
	touch $@

demo: install
	$(BIN)/yesterday run digit-6

test: lint unit

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m tests.benchmarks $(BENCHMARKS)

figures: install
	$(BIN)/python -m figures.gallery_index

# The theme's banner says when it ends, not what is wrong here; this is its own switch for it.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
