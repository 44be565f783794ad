# Everything a user needs: `make demo` to see it work, `make test` to check it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# where the lowest versions are installed that pyproject.toml allows
LOWEST := .venv-lowest
SPECTRA_SHARED ?= ../shared
# processes that tests are spread over, of one thread each: one more than cores, as many wait for a browser or a disk
JOBS ?= 3
export SPECTRA_SHARED
# what `make` computes stays inside this folder, where `make clean` finds it
export SPECTRA_CACHE ?= $(CURDIR)/.cache

DEMO := runs/demo
# the vocabulary and precision of the published figures, on every machine
DEMO_OPTIONS := --model llama_9m --vocab-size 4096 --precision float32 --steps 600 \
	--record-every 25 --eval-every 100 --checkpoint-every 100

.PHONY: help demo test tests test-slow test-lowest lint types imports bench screenshots soak clean

help:
	@echo "make demo       train a small LLaMA with the recorder on, write $(DEMO)/report.html"
	@echo "make test       install what the tests need; tests, lint, types, import rules (JOBS=3)"
	@echo "make test-slow  the tests that take minutes"
	@echo "make test-lowest  the tests with the lowest versions that pyproject.toml allows"
	@echo "make bench      the benchmarks, as tables and JSON"
	@echo "make screenshots  every page of the dashboard, in both themes and widths, to artefacts/"
	@echo "make soak       the dashboard for ten minutes with 50 stores and 8 clients"
	@echo "make clean      remove what make made: $(VENV), $(LOWEST), .cache, $(DEMO), artefacts"

define make-venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(@D)
endef

$(VENV)/installed: pyproject.toml constraints.txt
	$(make-venv)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

$(VENV)/installed-peers: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,peers]'
	@touch $@

# --resume lets a demo that was interrupted go on, and a finished one stand
demo: $(VENV)/installed
	$(BIN)/spectra pretrain $(DEMO_OPTIONS) --out $(DEMO) --resume
	$(BIN)/spectra report $(DEMO)/spectra.zarr --out $(DEMO)/report.html
	@echo
	@echo "Open $(DEMO)/report.html in a browser, or look at it live:"
	@echo "  $(BIN)/spectra dashboard runs"
	@echo "Then train on your own text:"
	@echo "  $(BIN)/spectra pretrain --data FILE --steps 300 --record-every 25 --out runs/mine"

# types and import rules beside the tests, whose processes wait at times
test: lint
	$(MAKE) --no-print-directory -j3 types imports tests

tests: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist worksteal

$(LOWEST)/installed: pyproject.toml constraints-lowest.txt
	$(make-venv)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt \
		--editable '.[test]'
	@touch $@

test-lowest: $(LOWEST)/installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -m "not slow" -n $(JOBS) --dist worksteal

test-slow: $(VENV)/installed-peers
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-test
	$(BIN)/mypy

imports: $(VENV)/installed-test
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/installed-peers
	$(BIN)/python -m tests.benchmarks

# of the demo's stores where it was run
screenshots: $(VENV)/installed-test
	$(BIN)/python -m tests.dashboard.screenshots $(wildcard $(DEMO))

soak: $(VENV)/installed-test
	$(BIN)/python -m tests.dashboard.soak

clean:
	rm -rf $(VENV) $(LOWEST) .cache $(DEMO) artefacts build *.egg-info .mypy_cache .ruff_cache .pytest_cache \
		.import_linter_cache .hypothesis tests/benchmarks/results
	-rmdir runs 2>/dev/null
