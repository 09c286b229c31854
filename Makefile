# `make demo` and `make test` are all the set-up a fresh machine needs: Python 3.11+ with venv, and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast lint docs docs-test bench clean

demo: .venv/installed
	$(BIN)/sa-jax run --gin_file=configs/digits.gin --workdir=runs/demo --overwrite

test: .venv/installed-dev
	$(MAKE) lint
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal

# Without the tests marked slow: under two minutes on two cores.
test-fast: .venv/installed-dev
	$(BIN)/python -m pytest -m "not slow" --numprocesses=auto --maxprocesses=8 --dist=worksteal

docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "the site is in build/site: open build/site/index.html"

docs-test: .venv/installed-dev
	$(BIN)/python -m pytest tests/test_docs.py sa_jax

bench: .venv/installed-dev
	$(BIN)/sa-jax bench --quick

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	@echo "installing JAX and the other packages into .venv, about 1 GB: a minute or two"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml
	@echo "installing what the tests need into .venv: a minute or two"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist runs
