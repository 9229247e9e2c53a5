# Two commands matter: `make demo` and `make test`. Each sets up .venv from $(PYTHON) if needed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --durations 20

PYTHONS ?= python3.11 python3.12 python3.13
EXTRAS := envs games plot experiments test all solvers rivals cuda13 tpu

.PHONY: demo test test-all lint notebooks bench resolve clean

demo: .venv/demo.installed  ## a bed planning study on real data; ends with the path of its report
	$(BIN)/python -m experiments run icu_occupancy --preset smoke

test: .venv/test.installed  ## the suite, without the tests that take minutes
	$(PYTEST)

test-all: .venv/test.installed  ## every test, then the suite as two other processors compute, optimized
	$(PYTEST) -m "not gpu"
	XLA_FLAGS="--xla_cpu_max_isa=AVX2 --xla_backend_optimization_level=3" $(PYTEST)
	XLA_FLAGS="--xla_cpu_max_isa=SSE4_2 --xla_backend_optimization_level=3" $(PYTEST)

lint: .venv/test.installed  ## style, types, and the arrows between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

notebooks: .venv/test.installed  ## runs every notebook in place
	$(BIN)/jupyter execute --inplace experiments/notebooks/*.ipynb

bench: .venv/test.installed  ## every benchmark, rivals in the same run
	$(BIN)/python -m experiments bench

resolve:  ## whether every extra resolves on every supported Python; needs a package index
	@for python in $(PYTHONS); do \
		folder=$$(mktemp -d); $$python -m venv $$folder || exit 1; \
		for extra in $(EXTRAS); do \
			$$folder/bin/python -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed \
				--constraint constraints.txt ".[$$extra]" >/dev/null \
				|| { echo "$$python [$$extra] does not resolve"; exit 1; }; \
			echo "$$python [$$extra] resolves"; \
		done; \
		rm -rf $$folder; \
	done

clean:  ## removes the virtual environment and what the tools left behind
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache

.venv/demo.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxlab needs Python 3.11 or newer: make demo PYTHON=python3.12")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf .venv; $(PYTHON) -m venv .venv; }
	$(PIP) --editable '.[experiments]'
	touch $@

.venv/test.installed: .venv/demo.installed
	$(PIP) --editable '.[experiments,test]'
	touch $@
