# make demo: set everything up and compare the methods on an example subject.
# make test: set everything up and run lint, types and tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test lint setup setup-dev clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install -c constraints.txt -e '.[dev,clay,heic]'
	touch $@

setup: $(VENV)/installed
setup-dev: $(VENV)/installed-dev

demo: setup
	$(BIN)/finetune compare configs/clay/compare.yaml output=runs/demo --overwrite
	@echo "Open runs/demo/report.html"

test: setup-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs dist
