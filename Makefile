# Everything a fresh machine needs is set up by the targets themselves; each can be run again at any time.
# The engine comes first: where none can be had, that is said before minutes are spent on the rest.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
ARCH := $(patsubst arm64,aarch64,$(patsubst amd64,x86_64,$(shell uname -m)))
GUEST := sandbox/guest/bin/guest-$(ARCH)
export PYTHONUNBUFFERED := 1

.PHONY: help
help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

.PHONY: selftest
selftest: engine guest images  ## run real episodes in real containers, check by check
	$(BIN)/python -m sandbox.selftest $(ARGS)

.PHONY: test
test: engine lint guest images  ## the linters and every test; ARGS go to pytest
	$(BIN)/python -m pytest --ignore=tests/faults --ignore=tests/test_inside.py $(ARGS)

.PHONY: test-faults
test-faults: guest engine images  ## engines and controllers killed for real; wants the machine for itself
	$(BIN)/python -m pytest tests/faults tests/test_inside.py $(ARGS)

.PHONY: test-model
test-model: guest  ## the tests with a real small model on the CPU; installs torch the first time
	@$(BIN)/python -m scripts.setup_model
	$(BIN)/python -m pytest -m model $(ARGS)

.PHONY: lint
lint: venv  ## ruff, mypy, and the C compiler's warnings as errors
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python sandbox/guest/build.py --out .setup/guest-lint

.PHONY: bench
bench: engine guest images  ## the measured table, on this machine
	$(BIN)/python -m sandbox.bench $(ARGS)

.PHONY: venv
venv:  ## .venv with everything that constraints.txt pins
	@$(PYTHON) -m scripts.setup_venv

.PHONY: guest
guest: $(GUEST)  ## the program that is PID 1 of every sandbox, for this machine

$(GUEST): $(wildcard sandbox/guest/*.c sandbox/guest/*.h) sandbox/guest/build.py | venv
	$(BIN)/python sandbox/guest/build.py --out $@

.PHONY: engine
engine:  ## see that a container engine answers; install and start one where that is possible
	@$(PYTHON) -m scripts.setup_engine

.PHONY: engine-stop
engine-stop:  ## stop the engine, if it was `make engine` in this tree that started it
	@$(PYTHON) -m scripts.setup_engine stop

.PHONY: images
images: venv engine  ## the minimal image
	@$(BIN)/python -m scripts.setup_images minimal

.PHONY: images-debian
images-debian: venv engine  ## debian:bookworm-slim
	@$(BIN)/python -m scripts.setup_images debian

.PHONY: wheel
wheel: venv  ## dist/*.whl with the guest for every architecture, the same bytes each time
	@$(PYTHON) -m scripts.release

.PHONY: constraints
constraints:  ## pin the newest of everything into constraints.txt
	@$(PYTHON) -m scripts.freeze

.PHONY: clean
clean:  ## remove what was made here, but for an engine that runs
	rm -rf .venv dist build sandbox/guest/bin .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
