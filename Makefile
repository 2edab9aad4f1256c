VENV := .venv
PYTHON ?= python3
FRAMEWORKS ?=
# MXNet is known to contradict its own requirements; pip need not say so every time.
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts \
	--constraint constraints.txt

ifneq ($(filter-out all,$(FRAMEWORKS)),)
$(error FRAMEWORKS is either "all" or left out)
endif

.PHONY: help tour test fuzz bench
.NOTPARALLEL:

help:
	@echo "make tour                  a guided tour on this machine, with no framework installed"
	@echo "make tour FRAMEWORKS=all   the same, with PyTorch, TensorFlow, JAX and MXNet (about 3 GB)"
	@echo "make test                  lint, types, tests and doctests, with every framework"
	@echo "make fuzz                  2,000 random models on three engines, and the smallest of what fails"
	@echo "make bench                 our training steps beside every framework's, timed turn by turn"
	@echo
	@echo "Everything is installed into $(VENV). PYTHON=python3.12 chooses an interpreter."

tour: $(VENV)/tour $(FRAMEWORKS:all=$(VENV)/frameworks)
	@echo "tour: $(VENV)/bin/trivium tour"
	@$(VENV)/bin/trivium tour

test: $(VENV)/frameworks $(VENV)/dev
	@echo "lint: ruff check, ruff format --check"
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/ruff format --check --quiet .
	@echo "types: mypy --strict src"
	@$(VENV)/bin/mypy --strict --no-error-summary src
	@echo "tests: pytest -n 2"
	@$(VENV)/bin/pytest -n 2
	@echo "doctests: pytest --doctest-modules src"
	@$(VENV)/bin/pytest -n 2 --doctest-modules src

fuzz: $(VENV)/frameworks $(VENV)/dev
	@$(VENV)/bin/python -W ignore tests/fuzz.py --count 2000

bench: $(VENV)/frameworks $(VENV)/bench
	@$(VENV)/bin/python -m bench

$(VENV)/python:
	@echo "environment: $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit("Trivium needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/tour: pyproject.toml constraints.txt | $(VENV)/python
	@echo "install: trivium and what the tour uses"
	@$(PIP) --editable '.[tour]'
	@touch $@

# PyTorch goes first and alone, and what builds on it with --no-deps: a resolver with a choice takes the
# build for GPUs, gigabytes of it.
$(VENV)/frameworks: constraints.txt | $(VENV)/python
	@echo "install: PyTorch, TensorFlow with Keras, JAX with Flax, MXNet, torchvision, timm (about 3 GB)"
	@$(PIP) torch
	@$(PIP) tensorflow-cpu keras jax flax
	@$(PIP) --no-deps mxnet torchvision timm
	@$(PIP) requests pillow huggingface_hub pyyaml safetensors
	@touch $@

$(VENV)/bench: pyproject.toml constraints.txt | $(VENV)/python
	@echo "install: trivium, matplotlib"
	@$(PIP) --editable '.[bench]'
	@touch $@

$(VENV)/dev: pyproject.toml constraints.txt | $(VENV)/python
	@echo "install: trivium, ruff, mypy, pytest, hypothesis"
	@$(PIP) --editable '.[tour,onnx,dev]'
	@touch $@
