# make install   a virtual environment in .venv with everything
# make demo      the whole pipeline on the tabletop world, into runs/demo; installs what that needs
# make test      lint, types, import floors, then the tests
# make lint      the first part of make test
# make docs      the pages as a site with every command and key, into site/
# make torture   kill, starve and race every stage, then damage every file that a command reads (hours)
# make test-newest, make test-oldest   the tests on the newest and on the oldest packages we allow
# make clean     remove caches and builds; make distclean removes .venv too

.NOTPARALLEL:
.PHONY: install demo test lint docs torture test-newest test-oldest clean distclean

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

install: $(VENV)/.installed

demo: $(VENV)/.demo
	$(BIN)/gmail-align demo --out runs/demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes, a file of tests in each at a time: most tests use one thread.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: install
	$(PIP) install -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

torture: install
	$(BIN)/python benchmarks/torture.py
	$(BIN)/python benchmarks/fuzz.py

# Without constraints.txt, as for someone who installs the package; --pre is not wanted.
test-newest: install
	$(BIN)/python -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python -m pip --disable-pip-version-check install --upgrade -e '.[all,dev]'
	$(VENV)-newest/bin/python -m pytest

# The lower bounds of pyproject.toml. pip cannot choose the oldest versions, uv can.
test-oldest: install
	$(BIN)/python -m venv --clear $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip --disable-pip-version-check install uv
	$(VENV)-oldest/bin/uv pip install --python $(VENV)-oldest/bin/python \
	  --resolution lowest-direct -e '.[all,dev]'
	$(VENV)-oldest/bin/python -m pytest

clean:
	rm -rf dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(VENV)-newest $(VENV)-oldest

# A stamp a kind: each appears when all of its packages are there. Everything holds what the demo needs.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/.made
	@if [ ! $(VENV)/.installed -nt pyproject.toml ] || [ ! $(VENV)/.installed -nt constraints.txt ]; then \
	  $(PIP) install -c constraints.txt torch && $(PIP) install -c constraints.txt -e '.[demo]'; fi
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[all,dev]'
	@touch $@

# The pins are tested on Python 3.11, so it comes first.
$(VENV)/.made:
	@set -e; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  chosen=; old=; \
	  for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	    $$python -c 'pass' >/dev/null 2>&1 || continue; \
	    if ! $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then old=$$python; continue; fi; \
	    chosen=$$python; \
	    if $$python -c 'import ensurepip, venv' >/dev/null 2>&1; then break; fi; \
	  done; \
	  if [ -z "$$chosen" ]; then \
	    echo "gmail-align needs Python 3.11 or later, and none was found$${old:+ ($$old is older)}: install one," \
	      "or name it: make install PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	  if ! $$chosen -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	    echo "$$chosen cannot make virtual environments: install its venv package" \
	      "(on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; fi; \
	  echo "making $(VENV) with $$($$chosen --version)"; \
	  $$chosen -m venv --clear $(VENV); \
	fi
	@touch $@
