# make demo   see it work        make test   everything        make check   style, types, floors
#
# VENV and DEV_VENV say where the environments go; PYTHON which Python makes them (3.11 or newer).

PYTHON ?= python3
VENV ?= .venv
DEV_VENV ?= .venv-dev
# yolo is left out: no test needs it, and its library is AGPL-3.0.
DEV_EXTRAS ?= train,node,web,dev
WEB_VENV ?= .venv-web
BUILT = src/cspine/web/static/built/manifest.json
PYTEST_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo web assets test check format clean

help:
	@echo "make demo    a synthetic neck CT, judged: installs the light environment into $(VENV) and opens nothing"
	@echo "make web     the web application on this machine alone, in $(WEB_VENV); needs npm once"
	@echo "make test    the whole test suite, with all extras, in $(DEV_VENV)"
	@echo "make check   formatting, lint, strict types, import floors, dependency check, in $(DEV_VENV)"
	@echo "make format  let ruff format and fix what it can"
	@echo "make clean   remove what make made, environments included"

demo: $(VENV)/.cspine-base
	$(VENV)/bin/cspine demo

web: $(WEB_VENV)/.cspine-web $(BUILT)
	$(WEB_VENV)/bin/cspine web

# The scripts of its pages, built from frontend/ by npm.
assets: $(BUILT)

$(BUILT): frontend/package-lock.json frontend/build.mjs frontend/tsconfig.json $(shell find frontend/src -type f)
	cd frontend && npm ci --no-audit --no-fund && npm run build

test: $(DEV_VENV)/.cspine-dev
	$(DEV_VENV)/bin/python -m pytest $(PYTEST_FLAGS)

check: $(DEV_VENV)/.cspine-dev
	$(DEV_VENV)/bin/ruff format --check .
	$(DEV_VENV)/bin/ruff check .
	$(DEV_VENV)/bin/mypy --strict src
	$(DEV_VENV)/bin/lint-imports
	$(DEV_VENV)/bin/python -m pip check

format: $(DEV_VENV)/.cspine-dev
	$(DEV_VENV)/bin/ruff format .
	$(DEV_VENV)/bin/ruff check --fix .

# The marks are remade when a dependency changes; the package itself is installed in place.
$(VENV)/.cspine-base: pyproject.toml constraints.txt
	@sh tools/make-venv.sh "$(PYTHON)" "$(VENV)"
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(WEB_VENV)/.cspine-web: pyproject.toml constraints.txt
	@sh tools/make-venv.sh "$(PYTHON)" "$(WEB_VENV)"
	$(WEB_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[web]"
	@touch $@

$(DEV_VENV)/.cspine-dev: pyproject.toml constraints.txt
	@sh tools/make-venv.sh "$(PYTHON)" "$(DEV_VENV)"
	$(DEV_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$(DEV_EXTRAS)]"
	@touch $@

clean:
	rm -rf $(VENV) $(WEB_VENV) $(DEV_VENV) demo-output frontend/node_modules src/cspine/web/static/built dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
