# `make book` builds the pages, `make test` checks everything; both work from a bare clone.
# All of it runs in an environment of its own, .venv. Needs Python 3.10 or newer: make book PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
NOTEBOOKS := $(wildcard book/*.ipynb) $(wildcard notebooks/*.ipynb)
# The kernel called python3 is the one in .venv, even where the reader has another in their home folder.
export JUPYTER_PREFER_ENV_PATH := 1
# All pages each time: a page that is not built again keeps links to anchors that have moved.
BUILD := $(BIN)/jupyter-book build . --all --warningiserror --keep-going

.PHONY: book pdf test lab notebooks address lint test-library test-book test-notebooks test-colab clean

book: $(INSTALLED)  ## the pages, in _build/html
	$(BUILD)
	@echo "Open _build/html/index.html in a browser."

pdf: book  ## the whole book in one file, _build/lora-book.pdf; needs Chromium or Chrome
	$(BIN)/python tools/print_book.py _build/html _build/lora-book.pdf

test: lint test-library test-book test-notebooks  ## everything

lab: $(INSTALLED)  ## the chapters, in JupyterLab
	$(BIN)/jupyter lab notebooks

notebooks: $(INSTALLED)  ## run every notebook again from a clean kernel, and keep the new outputs
	$(BIN)/python tools/run_notebooks.py $(NOTEBOOKS)

# What the notebooks print is compared with what is committed: one number of threads, one order of additions.
notebooks test-notebooks: export OMP_NUM_THREADS := 2

address: $(INSTALLED)  ## move the book: make address URL=https://github.com/you/your-book
	$(BIN)/python tools/set_address.py $(URL)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/zizmor --offline --quiet .github

test-library: $(INSTALLED)
	$(BIN)/pytest --ignore=tests/test_book.py

test-book: $(INSTALLED)
	$(BUILD)
	$(BIN)/pytest tests/test_book.py

test-notebooks: $(INSTALLED)
	$(BIN)/pytest $(NOTEBOOKS) --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 600

test-colab:  ## run every chapter under the versions that Colab has, without keeping the outputs
	$(PYTHON) -m venv --clear .venv-colab
	.venv-colab/bin/python -m pip install --constraint tests/colab_constraints.txt ipykernel nbconvert .
	.venv-colab/bin/jupyter nbconvert $(NOTEBOOKS) --to notebook --execute --output-dir _build/colab \
		--ExecutePreprocessor.timeout=600

$(INSTALLED): requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -r requirements-dev.txt
	$(BIN)/python -m pip install --no-deps --editable .
	$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name "Python 3"
	touch $@

clean:
	rm -rf _build .venv .venv-colab build lora_book.egg-info .pytest_cache .ruff_cache .mypy_cache
