# For those who work on the project; each target makes .venv first if need be. `make` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)

export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help app test slow lint format figures tables licences lock audit clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

app: .venv/ready  ## open the page on http://127.0.0.1:7860
	$(BIN)/python app.py

test: .venv/ready  ## what `pytest` runs
	$(BIN)/pytest

slow: .venv/ready  ## the tests that take minutes
	$(BIN)/pytest -m 'slow and not gpu'

lint: .venv/ready  ## style, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/ready  ## put the code in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

figures: .venv/ready  ## draw the pictures of the README and of docs/ anew
	$(BIN)/python examples/figure6.py --tokens 0,1,2,9,10,11,12,13 --out docs/figure6.png
	$(BIN)/python examples/figure4.py --out docs/figure4.png

tables: .venv/ready  ## write the tables of the README, the ablations and faithfulness anew
	$(BIN)/python docs/models.py
	$(BIN)/python docs/ablations.py
	$(BIN)/python docs/faithfulness.py

licences:  ## list the licences of what requirements.lock brings anew (needs Python 3.11)
	$(PYTHON) -m venv --clear .locked
	.locked/bin/python -m pip install --quiet --require-hashes -r requirements.lock
	.locked/bin/python docs/licences.py

lock:  ## choose the newest versions within requirements.txt for requirements.lock (needs uv)
	@{ echo '# What requirements.txt brings on Linux, x86-64, Python 3.11: versions, and hashes of their files. Written by'; \
	  echo '# `make lock` (uv pip compile). Exactly these: pip install --require-hashes -r requirements.lock'; \
	  uv pip compile --quiet --upgrade --generate-hashes --no-header --no-annotate --python-version 3.11 \
	    --python-platform x86_64-manylinux_2_28 requirements.txt; } > .requirements.lock
	@mv .requirements.lock requirements.lock

audit:  ## ask for known flaws of the versions in requirements.lock (needs a network)
	$(PYTHON) -m venv .audit
	.audit/bin/pip install --quiet pip-audit
	.audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

clean:  ## remove what was built, .venv too
	rm -rf .venv .audit .locked .*_cache .hypothesis .gradio build dist *.egg-info out

.venv/ready: $(wildcard requirements*.txt)
ifdef UV
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip install --quiet --python $(BIN)/python -r requirements-dev.txt
else
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
endif
	@touch $@
