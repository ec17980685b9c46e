# Everything runs in .venv, made by the first Python >= 3.11 on PATH that can make one (PYTHON=... chooses another).

export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

SUITABLE := import sys, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python3.14; do \
	for path in $$(which -a $$name 2>/dev/null); do \
	$$path -c '$(SUITABLE)' 2>/dev/null && echo $$path && exit; done; done)
BIN := .venv/bin

.PHONY: help venv demo test chaos docs servers bench-quick bench clean

help:
	@echo 'make demo         a grid of real experiments on SQLite, with a table and a plot (about a minute, installation included up to two)'
	@echo 'make test         format, lint, types, imports, and all tests on SQLite, PostgreSQL and MariaDB'
	@echo 'make chaos        killed workers, restarted servers, cut links: 10 minutes on each database, and an audit'
	@echo 'make bench-quick  asyncexp against the bare drivers and other queues, in about a minute; make bench takes half an hour'
	@echo 'make docs         docs/cli.md from the commands themselves, and the pictures of their screens'
	@echo 'make venv         only the environment; make clean removes it'

venv: .venv/dev.installed

.venv/bin/python:
	@test -n '$(PYTHON)' || { \
	echo 'No Python 3.11 or newer that can make environments was found on PATH.' >&2; \
	echo 'On Debian or Ubuntu: apt-get install python3 python3-venv' >&2; exit 1; }
	'$(PYTHON)' -m venv .venv

.venv/%.installed: pyproject.toml | .venv/bin/python
	@echo 'Installing asyncexp[$*] into .venv'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[$*]'
	@touch $@

demo: .venv/demo.installed
	@$(BIN)/python examples/svm/run.py

test: .venv/dev.installed servers
	$(BIN)/ruff format --check . --exclude '*.md'
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.legacy
	$(BIN)/python -m pytest -n 2 -p no:asyncio

# CHAOS='--seconds 60 --database mysql --seed 7' for a shorter storm, or one that there was.
chaos: .venv/dev.installed servers
	@$(BIN)/python -m tests.chaos $(CHAOS)

docs: .venv/dev.installed
	@$(BIN)/python -m docs.cli_screens
	@$(BIN)/python -m docs.cli_page

# The tests start private servers of their own, and workers with another clock; only the programs have to be there.
servers:
	@missing=''; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || missing="$$missing postgresql"; \
	command -v mariadbd >/dev/null || missing="$$missing mariadb-server"; \
	command -v sshd >/dev/null || missing="$$missing openssh-server"; \
	command -v pgbouncer >/dev/null || missing="$$missing pgbouncer"; \
	ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || missing="$$missing faketime"; \
	test -z "$$missing" && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing$$missing"; export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; \
	else \
		echo "The tests need$$missing. On Debian or Ubuntu: sudo apt-get install$$missing" >&2; exit 1; \
	fi

bench-quick: .venv/bench.installed servers
	@$(BIN)/python -m benchmarks --quick

bench: .venv/bench.installed servers
	@$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .venv-legacy .venv-legacy.log build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
