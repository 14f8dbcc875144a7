# `make demo` and `make test` need nothing but Python 3.11+ and make: each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip must never swap the pinned torch for a newer build that brings gigabytes of CUDA libraries.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test check format proto soak bench bench-quick audit clean

demo: $(VENV)/runtime
	@$(BIN)/tidings demo --draws 20 --out demo-out

# One process per core of the smallest machine that this is promised for; the tests of a file stay together.
WORKERS ?= 2
test: $(VENV)/dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

check: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory proto OUT=build/pb
	diff -r -x __init__.py -x __pycache__ build/pb node/pb

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The generated module is imported as node.pb.tidings_pb2; protoc only knows how to write `import tidings_pb2`.
OUT ?= node/pb
proto: $(VENV)/dev
	mkdir -p $(OUT)
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=$(OUT) --pyi_out=$(OUT) --grpc_python_out=$(OUT) proto/tidings.proto
	sed -i.orig 's/^import tidings_pb2 as/from node.pb import tidings_pb2 as/' $(OUT)/tidings_pb2_grpc.py && rm $(OUT)/tidings_pb2_grpc.py.orig

# Long runs: hundreds of kills, larger swarms. Not part of CI.
soak: $(VENV)/dev
	$(BIN)/python -m pytest -m soak --timeout 3600

bench: $(VENV)/dev
	$(BIN)/python -m benchmarks

# The same code on less, under five minutes on two cores; writes build/bench, not RESULTS.md.
bench-quick: $(VENV)/dev
	$(BIN)/python -m benchmarks --quick

# Known vulnerabilities of what is locked. Asks the network, so it is no part of `check`; docs/dependencies.md.
audit:
	@test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/python -m pip --quiet install pip-audit; }
	build/audit/bin/pip-audit --no-deps --disable-pip -r requirements.lock -r requirements-dev.lock

$(VENV)/runtime: pyproject.toml requirements.lock
	@echo "Setting up $(VENV) (a few minutes the first time)..."
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Tidings needs Python 3.11 or newer"'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -r requirements.lock
	@$(PIP) install --no-deps --editable .
	@touch $@

$(VENV)/dev: $(VENV)/runtime requirements-dev.lock
	@echo "Adding what checks and tests need to $(VENV)..."
	@$(PIP) install -r requirements-dev.lock
	@touch $@

clean:
	rm -rf build demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis
