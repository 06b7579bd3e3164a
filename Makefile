# make setup | demo | demo-trl | evidence-quick | test | test-quick | lint | bench | clean
#
# setup installs from whatever package index pip is configured for (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf).
# Where the default index holds CUDA builds of torch, put torch's index of CPU builds into PIP_EXTRA_INDEX_URL.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-trl evidence-quick test test-quick lint bench seal-hosts trl-hosts seal-matrix clean

VENV := .venv/bin
# Tests and demos ask nothing of the network and report nothing to it.
export RAY_USAGE_STATS_ENABLED := 0
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1

help:
	@echo "make setup   build .venv once (2.6 GB, a few minutes, no GPU needed)"
	@echo "make demo    train a small model to confess, on the CPU"
	@echo "make demo-trl  the same in TRL's GRPOTrainer"
	@echo "make evidence-quick  the reports world, stock and with confessions, one seed (6 minutes)"
	@echo "make test    all tests; ARGS='-k seal' for some"
	@echo "make test-quick  those that take seconds each: no whole runs, the seal without its matrix"
	@echo "make lint    ruff and mypy"
	@echo "make bench   the benchmarks, one after the other: more than an hour"
	@echo "make clean   remove .venv and everything else that was built"

setup:
	@requirements/setup.sh

demo: setup
	@PATH="$(CURDIR)/$(VENV):$$PATH" bash examples/loophole/run.sh

demo-trl: setup
	@PATH="$(CURDIR)/$(VENV):$$PATH" bash examples/loophole/run_trl.sh

evidence-quick: setup
	@$(VENV)/python benchmarks/evidence/quick.py

test: setup
	@$(VENV)/python -m pytest -p no:cacheprovider $(ARGS)

# Units, the judge on real sockets, the seal without its matrix; nothing that is marked slow.  Two minutes of CPU time.
SEAL := integration_tests/seal/test_seal.py
test-quick: setup
	@$(VENV)/python -m pytest -p no:cacheprovider -q -m "not e2e and not slow" --deselect $(SEAL)::test_matrix \
	  integration_tests/unit integration_tests/judge $(SEAL) $(ARGS)

lint: setup
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy

bench: setup
	@for file in benchmarks/*.py; do echo "== $$file"; $(VENV)/python "$$file" || exit 1; done

clean:
	rm -rf .venv build dist runs *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The seal on every tested version of the host, each installed beside the pinned set.
HOSTS := 0.11.0 0.11.1 0.11.2
seal-hosts: setup
	@for version in $(HOSTS); do \
	  [ -d build/hosts/$$version ] || \
	    $(VENV)/python -m pip install --quiet --no-deps --target build/hosts/$$version openrlhf==$$version || exit 1; \
	  PYTHONPATH=build/hosts/$$version $(VENV)/python -m pytest -p no:cacheprovider -q \
	    integration_tests/seal/test_seal_hosts.py $(ARGS) || exit 1; \
	done

# TRL's adapter on every tested version of TRL before the pinned one.
TRL_HOSTS := 1.9.0
trl-hosts: setup
	@for version in $(TRL_HOSTS); do \
	  [ -d build/trl/$$version ] || \
	    $(VENV)/python -m pip install --quiet --no-deps --target build/trl/$$version trl==$$version || exit 1; \
	  PYTHONPATH=build/trl/$$version $(VENV)/python -m pytest -p no:cacheprovider -q integration_tests/trl $(ARGS) || exit 1; \
	done

# Every combination of the seal's matrix: about five hours of CPU time.
seal-matrix: setup
	@CONFESSION_SEAL_MATRIX=full $(VENV)/python -m pytest -p no:cacheprovider -q -s \
	  integration_tests/seal/test_seal.py -k "matrix"
