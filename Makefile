# Two commands do all set-up on a fresh Debian or Ubuntu machine: `make train` and `make test`.
# `make train ARGS="env=cheetah_run seed=3"` passes overrides; the last word on a key wins.

VENV ?= .venv
LOCK ?= requirements.lock
PYTHON ?= python3
ARGS ?=
BIN := $(VENV)/bin
METAWORLD := VENV=.venv-metaworld LOCK=requirements-metaworld.lock

.PHONY: train test test-slow test-cluster test-kills metaworld test-metaworld check docs docs-serve lint types lock venv gl build clean

train: gl
	$(BIN)/python -m rlearly.train agent=drm env=dog_run $(ARGS)

test: gl
	$(BIN)/python -m pytest $(ARGS)

test-slow: gl  ## minutes: whole training commands in processes of their own
	$(BIN)/python -m pytest -m slow $(ARGS)

test-cluster: gl  ## minutes, as root: a real SLURM and a real Ray; need slurmctld slurmd slurm-client munge
	$(BIN)/python -m pytest -m cluster $(ARGS)

test-kills: gl  ## minutes: hundreds of runs killed at random moments and resumed
	$(BIN)/python -m pytest -m kills $(ARGS)

metaworld:  ## a second virtual environment, with MetaWorld and the MuJoCo that it works with
	@$(MAKE) --no-print-directory gl $(METAWORLD)

test-metaworld: metaworld
	.venv-metaworld/bin/python -m pytest -m metaworld $(ARGS)

check: lint types build docs test  ## exactly what CI runs

docs: venv  ## the site in site/; a broken link or reference, or a request to another server, fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: venv  ## the site at http://127.0.0.1:8000, rebuilt as files change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/check_encodings.py

types: venv
	$(BIN)/pyright --pythonpath $(BIN)/python

build: venv  ## the wheel made from the sdist must hold every subpackage
	rm -rf build dist
	$(BIN)/python -m build --outdir dist . > dist.log 2>&1 || { cat dist.log; exit 1; }
	rm -f dist.log
	$(BIN)/python tests/check_wheel.py dist

venv: $(VENV)/.installed

$(VENV)/.installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
		echo "rlearly needs Python 3.11, 3.12 or 3.13; $(PYTHON) is `$(PYTHON) -V 2>&1`: add PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		echo "Python's venv module is not installed: sudo apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	grep -v '^metaworld==' $(LOCK) > $(VENV)/pins.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/pins.txt
	$(BIN)/python -m pip install --quiet --no-deps -r $(LOCK)
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

gl: venv  ## a GL library that draws without a screen; root installs it, others are told what to type
	@$(BIN)/python -m rlearly.doctor opengl > /dev/null 2>&1 || { \
		if [ "`id -u`" = 0 ] && command -v apt-get > /dev/null; then \
			echo "installing libegl1 libopengl0 libgl1-mesa-dri ..."; \
			apt-get update -qq && apt-get install -y -qq --no-install-recommends \
				libegl1 libopengl0 libgl1-mesa-dri > /dev/null; \
		fi; \
		$(BIN)/python -m rlearly.doctor opengl; }

lock: venv  ## pin what is installed now, but not what torch itself pins (its CUDA packages)
	$(BIN)/python -m pip freeze --exclude-editable \
		| sed 's/+cpu$$//' | grep -viE '^(nvidia-|cuda-|triton)' > requirements.lock
	{ grep -vE '^(dm_control|mujoco)==' requirements.lock; \
		grep -E '^(dm_control|mujoco|metaworld)==' requirements-metaworld.lock; } > $(VENV)/pins.txt
	mv $(VENV)/pins.txt requirements-metaworld.lock

clean:
	rm -rf $(VENV) .venv-metaworld build dist site *.egg-info
