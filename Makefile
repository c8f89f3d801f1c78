# make demo    the whole job on the embedded data: build, both stages, baseline, evaluation, report
# make quick   the tests that are not marked slow, with fewer drawn examples: 45 s on 2 cores
# make test    every test that this machine can run
# make gpu     what needs a GPU: its tests, then a session of measurements (JSON lines)
# make lint    ruff
# make types   mypy: all but the Triton kernels
# make hooks   lint and the import rules before every commit (pre-commit)
# make setup   what all of them begin with: the tested versions (constraints.txt); LATEST=1: the newest
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
LATEST ?=
DEMO ?=
TESTS ?=
COVERAGE ?=
BIN := $(VENV)/bin

.PHONY: setup demo quick test gpu lint types hooks clean

setup:
	@LATEST=$(LATEST) bash .ci/setup $(PYTHON) $(VENV)

demo: setup
	@$(BIN)/python -m eval.demo $(DEMO)

quick: setup
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow" --hypothesis-profile=quick $(TESTS)

test: setup
	@$(BIN)/python -m eval.oracle || echo "no clip-benchmark here: its parity tests will be skipped"
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations=15 $(COVERAGE) $(TESTS)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n $(JOBS) tests/interpreter

gpu: setup
	$(BIN)/python -m pytest tests/gpu
	$(BIN)/python tests/gpu/session.py

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: setup
	$(BIN)/python -m mypy

hooks: setup
	$(BIN)/python -m pre_commit install

clean:
	rm -rf data/demo runs/demo runs/demo-short
