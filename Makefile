# Everything from a bare Python: the environment is made when it is not there, and made again when pyproject.toml changes.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: demo test check format docs

demo: $(VENV)/.installed-demo  ## train, judge and use a small model on bundled real data
	$(BIN)/patchform demo

test: $(VENV)/.installed-test  ## every test
	$(PYTEST)

check: $(VENV)/.installed-dev  ## what a change must pass: format, lint, types, floors, quick tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_house.py
	$(PYTEST) -q -m "not slow" --ignore=tests/test_house.py

format: $(VENV)/.installed-dev  ## put code into the house's form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed-docs  ## the site, in docs/_build/html; a warning is an error
	$(BIN)/python docs/make_reference.py --check
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html
	@echo "look at docs/_build/html/index.html"

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit('patchform needs Python 3.11 or newer; try: make PYTHON=python3.12' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	@echo "installing patchform[$*] into $(VENV) (torch is large: some minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@
