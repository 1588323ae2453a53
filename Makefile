# make demo | check | test | bench | soak; see docs/contributing.md. Environments are made again when their lists change.
#
# PYTHON     the interpreter of .venv, 3.11 or newer
# OD_SET     the training set to install, one of deploy/requirements/od-*.txt
# OD_PYTHON  its interpreter, as a version or a path
# OD_VENV    where it is installed
# TRAINER    what make demo trains with: od-api or model-garden
# TESTERS    how many tests make test runs at once
# SETS, KEEP the sets of make test-tensorflows, all where none is named; whether to keep them in build/sets
# TORCH_PYTHON   an interpreter with torch, for make test-gpu; else CUDA's driver keeps the GPU busy
# MINUTES, SEED  how long make soak lasts, and what its faults are drawn with

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3.11
OD_SET ?= py311-tf221
OD_PYTHON ?= $(patsubst py3%,3.%,$(firstword $(subst -, ,$(OD_SET))))
OD_VENV ?= .venv-od
TRAINER ?= od-api
# Many tests wait rather than work, so more of them at once than there are cores.
TESTERS ?= 4
MINUTES ?= 30
SEED ?= 4
TORCH_PYTHON ?= $(VENV_PYTHON)
MAN_DIR ?= build/man/man1

LISTS := deploy/requirements
VENV_PYTHON := .venv/bin/python
UV := .venv/bin/uv
# Compiled once here: where PYTHONDONTWRITEBYTECODE is set, as in many images, each start of Python
# would compile all of TensorFlow again, and its import takes three times as long.
UV_INSTALL := $(UV) pip install --quiet --require-hashes --no-deps --compile-bytecode
unexport PYTHONDONTWRITEBYTECODE

# Each stamp is the last thing its rule writes, so an interrupted install starts over.
DAEMON_STAMP := .venv/.installed
PROJECT_STAMP := .venv/.installed-project
# What starts the OD API on TensorFlow 2.14 and newer; under older ones it does nothing.
TODAY := deploy/od-api-today
TODAY_SOURCES := $(wildcard $(TODAY)/*.* $(TODAY)/od_api_today/*.py)
OD_STAMP := $(OD_VENV)/.installed-$(OD_SET)
# The fast COCO backends that the tests hold to pycocotools; there are none for Python 3.9.
BACKENDS := $(OD_VENV)/coco-backends
BACKENDS_STAMP := $(if $(filter py39%,$(OD_SET)),,$(BACKENDS)/.installed-$(OD_SET))
# Datasette, which `checkpoint-watcher web` runs in an environment of its own.
WEB_STAMP := .venv-web/.installed
# Dask, which workers on a cluster are placed by.
DASK_STAMP := .venv-dask/.installed
# Servers on loopback that speak the protocols of gs:// and s3://, for the tests of those.
REMOTE_STAMP := .venv-remote/.installed
# Zensical, which makes a site of docs/.
DOCS_STAMP := .venv-docs/.installed
# The linters and schemas that make lint holds deploy/ to.
CHECKS := build/deploy-checks
KUBERNETES := v1.37.0

export CHECKPOINT_WATCHER_OD_PYTHON := $(abspath $(OD_VENV))/bin/python

.PHONY: help demo lint check test test-families test-remote test-tensorflows test-systemd test-gpu bench soak docs environments requirements man clean distclean

help:
	@echo "make demo    train, watch, keep the best and stop early, in a few minutes; TRAINER=model-garden"
	@echo "make check   lint, types and the quick tests, in a minute; make lint: those alone"
	@echo "make test    lint, types and all tests, but for:"
	@echo "make test-remote    other hosts by a real sshd, a dask cluster, servers of buckets"
	@echo "make test-families  every family of models, each against its framework's own evaluation"
	@echo "make test-tensorflows  the Object Detection API on each TensorFlow; SETS='py311-tf214 ...'"
	@echo "make test-systemd  the units on a real systemd, in a container; needs root"
	@echo "make test-gpu  devices, locks and turns on an NVIDIA GPU, in a minute or two"
	@echo "make bench   latency, idle cost and seconds a checkpoint on this machine"
	@echo "make soak    MINUTES=30 of faults at random beside a busy run, SEED=4"
	@echo "make docs    the site of docs/, in build/site"
	@echo "make man     man pages, with help2man"
	@echo "make clean   remove what these wrote; make distclean: the environments too"

demo: environments
	@$(VENV_PYTHON) deploy/demo/launcher.py --training-python $(OD_VENV)/bin/python --trainer $(TRAINER)

# Code, the generated parts of docs/, and deploy/ by its own linters and schemas.
lint: $(PROJECT_STAMP) $(CHECKS)/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy --strict
	$(VENV_PYTHON) deploy/docs.py --check
	$(CHECKS)/bin/hadolint deploy/Dockerfile*
	$(CHECKS)/bin/shellcheck deploy/slurm/train.sbatch deploy/requirements/compile .ci/run
	@export PYTHONPATH=$(CHECKS); \
	    $(VENV_PYTHON) -m check_jsonschema --builtin-schema vendor.compose-spec deploy/compose*.yaml; \
	    $(VENV_PYTHON) -m kubernetes_validate --strict --quiet deploy/kubernetes/*.yaml

# What takes no TensorFlow and no second: for after each change. It needs no training environment.
check: lint $(WEB_STAMP) $(REMOTE_STAMP)
	.venv/bin/pytest --numprocesses $(TESTERS) --dist worksteal -m 'not tensorflow and not slow'

test: environments lint
	.venv/bin/pytest --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder \
	    -m 'not equality and not families and not remote'

# What each takes a minute of a core: Faster R-CNN, CenterNet, RetinaNet, and what is met less often, as
# Mask R-CNN, EfficientDet, Model Garden's YOLO. `make test` has SSD, trained, and whatever is not a model.
test-families: environments
	.venv/bin/pytest --numprocesses $(TESTERS) --dist loadfile -m 'equality or families' \
	    -o python_files='test_*.py more_experiments.py'

# Real watchers with other hosts, a cluster and buckets, all on this machine: some minutes.
test-remote: environments
	.venv/bin/pytest --numprocesses $(TESTERS) --dist worksteal -m remote

# On every set whose Python is found; each is removed again, for its 3 GB, unless KEEP=1.
test-tensorflows: environments
	@$(VENV_PYTHON) tests/tensorflows/sets.py --default $(OD_SET) $(OD_VENV) --testers $(TESTERS) \
	    $(if $(KEEP),--keep) $(SETS)

# Boots a small Debian in a container. The base is made once, in a minute and a half.
test-systemd: $(PROJECT_STAMP)
	@PYTHONPATH=tests/helpers:tests $(VENV_PYTHON) tests/systemd/machine.py
	.venv/bin/pytest tests/systemd/services.py

# Needs an NVIDIA GPU and no TensorFlow; without one nothing is run, and make fails.
test-gpu: $(PROJECT_STAMP)
	PYTHONPATH=tests/helpers:tests:. $(VENV_PYTHON) tests/gpu/checks.py --torch-python $(TORCH_PYTHON) --write

# Writes the generated parts of the pages anew; a link that leads nowhere is an error.
docs: $(PROJECT_STAMP) $(DOCS_STAMP)
	@$(VENV_PYTHON) deploy/docs.py
	@.venv-docs/bin/zensical build --strict
	@echo "to read it: python3 -m http.server --bind 127.0.0.1 --directory build/site 8000"

# With GNU help2man. MAN_DIR=~/.local/share/man/man1 puts them where man looks.
man: $(PROJECT_STAMP)
	@$(VENV_PYTHON) deploy/man.py $(MAN_DIR)

bench: environments
	PYTHONPATH=tests/helpers:tests $(VENV_PYTHON) -m benchmarks --write

soak: $(PROJECT_STAMP)
	PYTHONPATH=tests/helpers:tests $(VENV_PYTHON) -m soak --minutes $(MINUTES) --seed $(SEED)

# The lock lets two makes run at once: the second finds what the first has installed.
environments:
	@mkdir -p build
	@flock build/.environments $(MAKE) --silent --no-print-directory $(PROJECT_STAMP) $(OD_STAMP) $(BACKENDS_STAMP) \
	    $(CHECKS)/.installed $(WEB_STAMP) $(DASK_STAMP) $(REMOTE_STAMP) $(DOCS_STAMP)

$(DAEMON_STAMP): $(LISTS)/uv.txt $(LISTS)/daemon.txt
	@rm -rf .venv
	@echo "installing .venv"
	@if $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	    $(PYTHON) -m venv .venv; \
	    $(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
	        -r $(LISTS)/uv.txt; \
	elif command -v uv >/dev/null; then \
	    uv venv --quiet --python 3.11 .venv; \
	    uv pip install --quiet --python $(VENV_PYTHON) --require-hashes --no-deps -r $(LISTS)/uv.txt; \
	else \
	    echo "no python3.11 with venv was found: apt install python3.11-venv (or install uv)" >&2; \
	    exit 1; \
	fi
	@$(UV_INSTALL) --python $(VENV_PYTHON) -r $(LISTS)/daemon.txt
	@touch $@

$(PROJECT_STAMP): $(DAEMON_STAMP) pyproject.toml
	@$(UV) pip install --quiet --python $(VENV_PYTHON) --no-deps --no-build-isolation -e .
	@touch $@

$(OD_STAMP): $(LISTS)/od-$(OD_SET).txt $(LISTS)/build-constraints.txt $(TODAY_SOURCES) | $(DAEMON_STAMP)
	@rm -rf $(OD_VENV)
	@echo "installing $(OD_VENV) ($(OD_SET), 3 GB)"
	@$(UV) venv --quiet --python $(OD_PYTHON) $(OD_VENV)
	@$(UV_INSTALL) --python $(OD_VENV)/bin/python --build-constraint $(LISTS)/build-constraints.txt \
	    -r $(LISTS)/od-$(OD_SET).txt
	@$(UV) build --quiet --wheel --no-build-isolation --python $(VENV_PYTHON) --out-dir build/od-api-today $(TODAY)
	@$(UV) pip install --quiet --no-deps --python $(OD_VENV)/bin/python build/od-api-today/od_api_today-*.whl
	@touch $@

$(BACKENDS)/.installed-$(OD_SET): $(LISTS)/coco-backends.txt $(OD_STAMP)
	@rm -rf $(BACKENDS)
	@$(UV_INSTALL) --python $(OD_VENV)/bin/python --target $(BACKENDS) -r $(LISTS)/coco-backends.txt
	@touch $@

$(WEB_STAMP): $(LISTS)/web.txt | $(DAEMON_STAMP)
	@rm -rf .venv-web
	@$(UV) venv --quiet --python $(VENV_PYTHON) .venv-web
	@$(UV_INSTALL) --python .venv-web/bin/python -r $(LISTS)/web.txt
	@touch $@

$(DASK_STAMP): $(LISTS)/dask.txt | $(DAEMON_STAMP)
	@rm -rf .venv-dask
	@$(UV) venv --quiet --python $(VENV_PYTHON) .venv-dask
	@$(UV_INSTALL) --python .venv-dask/bin/python -r $(LISTS)/dask.txt
	@touch $@

$(REMOTE_STAMP): $(LISTS)/remote-tests.txt | $(DAEMON_STAMP)
	@rm -rf .venv-remote
	@$(UV) venv --quiet --python $(VENV_PYTHON) .venv-remote
	@$(UV_INSTALL) --python .venv-remote/bin/python -r $(LISTS)/remote-tests.txt
	@touch $@

$(DOCS_STAMP): $(LISTS)/docs.txt | $(DAEMON_STAMP)
	@rm -rf .venv-docs
	@$(UV) venv --quiet --python $(VENV_PYTHON) .venv-docs
	@$(UV_INSTALL) --python .venv-docs/bin/python -r $(LISTS)/docs.txt
	@touch $@

# Of the Kubernetes schemas, thirteen versions of two kinds, one is kept: 40 MB instead of 150.
$(CHECKS)/.installed: $(LISTS)/checks.txt | $(DAEMON_STAMP)
	@rm -rf $(CHECKS)
	@$(UV_INSTALL) --python $(VENV_PYTHON) --target $(CHECKS) -r $(LISTS)/checks.txt
	@find $(CHECKS)/kubernetes_validate/kubernetes-json-schema -mindepth 1 -maxdepth 1 \
	    -not -name $(KUBERNETES)-local-strict -exec rm -r {} +
	@touch $@

# Resolves every list again from its source; deploy/requirements/README.md says what is in them.
requirements: | $(DAEMON_STAMP)
	@deploy/requirements/compile $(abspath $(UV))

clean:
	rm -rf build dist .cache .pytest_cache .mypy_cache .hypothesis
	find . \( -name __pycache__ -o -name .ruff_cache \) -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-web .venv-dask .venv-remote .venv-docs $(OD_VENV)
