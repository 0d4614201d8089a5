# `make demo` and `make test` need Python 3.11 and the package index, nothing else.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DISTRIBUTIONS := . ./plugins/local ./plugins/kubernetes ./plugins/eks ./plugins/gke ./plugins/terraform ./mock
SOURCES := fluxburst plugins mock tests examples bench docs

.PHONY: help demo test check format docs lock wheels kube-assets clean

help:
	@echo "make demo    a burst on a private Flux instance, or on the mock where there is no Flux"
	@echo "make test    all tests"
	@echo "make check   lint, types, import layers, docs in step with code"
	@echo "make format  reformat; make docs: regenerate the reference; make lock: renew requirements/dev.txt"
	@echo "make wheels  build all distributions into dist/"
	@echo "make kube-assets  build the Kubernetes control plane that its tests need, once for this machine (Go 1.26, ten minutes)"

$(READY): requirements/dev.txt pyproject.toml $(wildcard plugins/*/pyproject.toml) mock/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(DISTRIBUTIONS:%=--editable %)
	@touch $@

demo: $(READY)
	@$(BIN)/python examples/demo.py

# Many tests wait for real Flux, Slurm and Kubernetes: more workers than cores pay. WORKERS=0 runs one after the other.
WORKERS ?= 3

test: $(READY)
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile

check: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

format: $(READY)
	$(BIN)/ruff check --fix --quiet $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: $(READY)
	$(BIN)/python docs/generate.py

lock: $(READY)
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade --no-header \
		--no-annotate --no-emit-index-url --no-emit-find-links requirements/dev.in --output-file requirements/dev.txt

wheels: $(READY)
	@for distribution in $(DISTRIBUTIONS); do \
		$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist $$distribution || exit 1; \
	done
	@ls dist

kube-assets:
	@tests/kube/assets/build

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .hypothesis
