# Every target makes the virtual environment that it needs. `make quickstart` and `make test` are the two to know.
#
#   PYTHON=python3.13 make test     another interpreter (3.11 or newer)
#   SOUL_DATA_DIR=FOLDER make test  also run what needs the public benchmark files
#
# PyTorch (only `make parity`) comes with its CUDA libraries by default on Linux; pip's own settings
# (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL) choose a smaller CPU build.

PYTHON ?= python3
VENV := .venv
PARITY_VENV := .venv-parity
WHEEL_VENV := build/wheel-check/venv
AUDIT_VENV := build/audit/venv
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# A file's tests share what it prepares, so that they stay in one process.
PYTEST_FLAGS ?= -n 2 --dist loadfile

.PHONY: quickstart test test-browser lint audit wheel wheel-check parity clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP_INSTALL) -e '.[dev]'
	touch $@

$(PARITY_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(PARITY_VENV)
	$(PARITY_VENV)/bin/python $(PIP_INSTALL) -e '.[dev,parity]'
	touch $@

quickstart: $(VENV)/.installed
	$(VENV)/bin/ditto-jax train --config configs/quickstart.yaml

test: $(VENV)/.installed
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m pytest $(PYTEST_FLAGS)

$(VENV)/.browser: $(VENV)/.installed
	$(VENV)/bin/python $(PIP_INSTALL) -e '.[browser]'
	touch $@

# Needs a Chromium of the system (Debian: apt install chromium; another one: CHROMIUM=PROGRAM); without one the tests
# skip and say so.
test-browser: $(VENV)/.browser
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m pytest tests/report/test_report_browser.py tests/judge/test_person_browser.py

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

# Known vulnerabilities of what is installed, as pypi.org tells them; --strict: what cannot be asked about is an error.
audit: $(VENV)/.installed
	rm -rf build/audit && mkdir -p build/audit
	$(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/python $(PIP_INSTALL) 'pip-audit>=2.9,<3'
	$(VENV)/bin/python -m pip freeze --exclude-editable > build/audit/installed.txt
	$(AUDIT_VENV)/bin/pip-audit --strict --disable-pip --no-deps -r build/audit/installed.txt

wheel: $(VENV)/.installed
	rm -rf dist
	$(VENV)/bin/python -m build --wheel --outdir dist .

# Imports must come from the installed wheel: the check runs in another folder, without the checkout on the path.
wheel-check: wheel
	rm -rf build/wheel-check && mkdir -p build/wheel-check
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python $(PIP_INSTALL) dist/*.whl
	outside=$$(mktemp -d) && trap 'rm -rf "$$outside"' EXIT && here=$$PWD && cd "$$outside" \
	  && env -u PYTHONPATH "$$here/$(WHEEL_VENV)/bin/python" "$$here/tests/installed_wheel.py" "$$here"

parity: $(PARITY_VENV)/.installed
	JAX_PLATFORMS=cpu $(PARITY_VENV)/bin/python -m pytest tests/parity $(PYTEST_FLAGS)

clean:
	rm -rf $(VENV) $(PARITY_VENV) build dist .pytest_cache .ruff_cache .hypothesis
