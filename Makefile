# make app    opens the app             make lint   reads the code (ruff, pyright)
# make test   runs the tests (ARGS=…)   make fix    lets ruff repair and format it
# make bench  prints the figures
# Each does its own set-up, once per change of the requirements. TORCH=… names another build of PyTorch for a new environment.

TORCH ?= torch==2.13.0
PYTHON := .venv/bin/python
# A page test that waits for a browser in vain may do so once more, and the summary names it; one that sees something wrong fails.
# The second pattern: an assertion that failed while a timeout was handled carries that with it.
AGAIN := --reruns 1 --only-rerun '^TimeoutError: .*Timeout [0-9]+ms exceeded' --rerun-except '^AssertionError' -rR
PIP := $(PYTHON) -m pip install --disable-pip-version-check -q
APT = $(shell command -v apt-get >/dev/null && { [ "$$(id -u)" = 0 ] && echo apt-get || { sudo -n true 2>/dev/null && echo sudo -n apt-get; }; })

.PHONY: help app test lint fix bench venv browser
.DELETE_ON_ERROR:

help:
	@sed -n '1,4s/^# //p' Makefile

app: .venv/.app-ready
	$(PYTHON) app.py $(ARGS)

# The page's tests run by themselves: a browser that gets no time of the processor misses what it is to see. 5: ARGS names none of a kind.
test: .venv/.test-ready browser
	$(PYTHON) -m pytest -n auto --maxprocesses 4 -m "not page" $(ARGS) || [ $$? = 5 ]
	$(PYTHON) -m pytest -m page $(AGAIN) $(ARGS) || [ $$? = 5 ]

lint: .venv/.test-ready
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright

fix: .venv/.test-ready
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

bench: .venv/.test-ready
	$(PYTHON) scripts/bench.py $(ARGS)

venv: .venv/.test-ready

# --- set-up ---------------------------------------------------------------------------------------------------------------------

# The first Python of the list that is 3.11 or newer. Debian keeps the part that makes environments in a package of its own.
$(PYTHON):
	@for python in python3.12 python3.11 python3 python3.13; do \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  echo "Making .venv with $$($$python --version)."; \
	  $$python -m venv .venv && exit 0; \
	  [ -n "$(APT)" ] && $(APT) update -qq && $(APT) install -y -qq "$$($$python -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" \
	    && $$python -m venv .venv && exit 0; \
	  echo "$$python could not make .venv; on Debian and Ubuntu, install python3-venv and run make again." >&2; rm -f $@; exit 1; \
	done; \
	echo "Python 3.11 or 3.12 is needed and was not found; install one, so that python3.12, python3.11 or python3 starts it." >&2; exit 1

# An environment made by hand, with its own build of PyTorch in it, is taken as it is.
.venv/.app-ready: requirements.txt | $(PYTHON)
	@$(PYTHON) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' || \
	  { echo "Installing $(TORCH)."; $(PIP) '$(TORCH)'; }
	@echo "Installing requirements.txt."
	@$(PIP) -r requirements.txt
	@touch $@

.venv/.test-ready: tests/requirements.txt .venv/.app-ready
	@echo "Installing tests/requirements.txt."
	@$(PIP) -r tests/requirements.txt
	@touch $@

# A Chromium for the tests that drive the page, and a font for the Japanese pictures they take.
browser:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do command -v $$name >/dev/null && exit 0; done; \
	for path in "$$CHROMIUM" "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"; do [ -x "$$path" ] && exit 0; done; \
	if [ -n "$(APT)" ]; then \
	  echo "Installing chromium and fonts-noto-cjk."; \
	  export DEBIAN_FRONTEND=noninteractive; $(APT) update -qq; \
	  $(APT) install -y -qq --no-install-recommends fonts-noto-cjk >/dev/null || echo "No fonts-noto-cjk: Japanese text will be boxes in pictures."; \
	  $(APT) install -y -qq --no-install-recommends chromium >/dev/null && exit 0; \
	fi; \
	echo "The page's tests need a Chromium: install Debian's chromium or Google Chrome, or name one in CHROMIUM=/path/to/chromium." >&2
