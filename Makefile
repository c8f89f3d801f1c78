# make demo    the whole job on the embedded data: build, both stages, baseline, evaluation, report
# make test    every test that this machine can run
# make gpu     what needs a GPU: its tests, then a session of measurements (JSON lines)
# make lint    ruff
# make setup   what all of them begin with: the tested versions (constraints.txt); LATEST=1: the newest
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
LATEST ?=
DEMO ?=
TESTS ?=
BIN := $(VENV)/bin

.PHONY: setup demo test gpu lint clean

setup:
	@LATEST=$(LATEST) bash .ci/setup $(PYTHON) $(VENV)

demo: setup
	@$(BIN)/python -m eval.demo $(DEMO)

test: setup
	@$(BIN)/python -m eval.oracle || echo "no clip-benchmark here: its parity tests will be skipped"
	$(BIN)/python -m pytest -n $(JOBS) $(TESTS)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n $(JOBS) tests/interpreter

gpu: setup
	$(BIN)/python -m pytest tests/gpu
	$(BIN)/python tests/gpu/session.py

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

clean:
	rm -rf data/demo runs/demo runs/demo-short
