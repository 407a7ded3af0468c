# make demo     a report on the bundled pipelines, in demo-report/
# make test     the tests
# make check    format, lint, types, import layers
# make format   rewrite the files in the project's format
#
# Each sets up .venv first; once that is done, only a change of pyproject.toml, constraints.txt or
# the set-up script does it again. PYTHON picks the interpreter, JOBS the number of test processes.

PYTHON ?= python3
JOBS ?= 2

BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test check format
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/setup
	@PYTHON=$(PYTHON) bash scripts/setup
	@touch $@

demo: setup
	$(BIN)/viditq demo --out demo-report --overwrite

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
