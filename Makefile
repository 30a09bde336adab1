# Needs Python 3.11 or later, a C++ compiler and git. Everything else goes into .venv.
#   make demo        a prompt through two processes, checked against llama.cpp alone
#   make test        format, lint, types, and the tests that take minutes
#   make test-slow   the tests that wait for faults and install into fresh environments
#   make fuzz        RUNS generated inputs to whatever reads a stranger's bytes
#   PYTHON=python3.12 make ...   chooses the interpreter; CMAKE_ARGS reaches llama.cpp's build

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
BIN := .venv/bin
INSTALLED := .venv/.installed

# Engines spin at barriers: in tests, where processes share few cores, they must not.
TEST_ENVIRONMENT := OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo test test-slow fuzz check clean

demo: $(INSTALLED)
	$(BIN)/hetero demo

test: check
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -m "not slow"

test-slow: $(INSTALLED)
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -m slow

RUNS := 1000000
fuzz: $(INSTALLED)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[fuzz]'
	$(BIN)/python fuzz/run.py $(RUNS)

check: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Touched last, so that an install that was interrupted is done again.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "python: need 3.11 or later, have none; try PYTHON=/path/to/python make" >&2; exit 2; }
	@command -v $${CXX:-c++} >/dev/null || { echo "C++ compiler: need one for llama.cpp, have none; on Debian: sudo apt-get install build-essential" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[torch,rdma,dev]'
	touch $@
