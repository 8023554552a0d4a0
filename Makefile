# Two commands: `make quickstart` and `make test`. Both make their own environment in .venv.
PYTHON ?= python3
VENV ?= .venv
BACKEND ?= tensorflow
TORCH ?= torch==2.13.0
# On Linux the torch of PyPI brings gigabytes for CUDA; without a GPU give
# TORCH_FLAGS="--index-url https://download.pytorch.org/whl/cpu".
TORCH_FLAGS ?=
PYTEST_FLAGS ?= -n 2
# TensorFlow is there for every backend: exports go through it.
EXTRAS ?= tensorflow,train,face,plot,export,dev

# XLA's default code generator takes more than twice as long over the tests' small graphs. A JAX that
# does not know a flag stops and names it: then give `XLA_FLAGS=`.
XLA_FLAGS ?= --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1
# The tests compile many graphs more than once, in other processes, too: the cache halves that.
JAX_CACHE = JAX_COMPILATION_CACHE_DIR="$(abspath $(VENV))/jax_cache" \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
FOR_TESTS = $(if $(filter jax,$(BACKEND)),XLA_FLAGS="$(XLA_FLAGS)" $(JAX_CACHE))

PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test test-applications lint clean

quickstart: $(VENV)/.installed
	KERAS_BACKEND=tensorflow $(VENV)/bin/python training/train.py quickstart --quiet

test: $(VENV)/.$(BACKEND)
	KERAS_BACKEND=$(BACKEND) $(FOR_TESTS) $(VENV)/bin/python -m pytest $(PYTEST_FLAGS)

# By file: a module's browser and exports are made once.
test-applications: $(VENV)/.applications $(VENV)/.$(BACKEND)
	KERAS_BACKEND=$(BACKEND) $(VENV)/bin/python -m pytest $(PYTEST_FLAGS) --dist loadfile applications

lint: $(VENV)/.installed
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[$(EXTRAS)]"
	touch $@

$(VENV)/.tensorflow: $(VENV)/.installed
	$(PIP) -e ".[tensorflow]"
	touch $@

$(VENV)/.jax: $(VENV)/.installed
	$(PIP) -e ".[jax]"
	touch $@

$(VENV)/.torch: $(VENV)/.installed
	$(PIP) $(TORCH_FLAGS) "$(TORCH)"
	$(PIP) -e ".[torch]"
	touch $@

# Without npm or Chromium the tests of the page in the browser are skipped.
$(VENV)/.applications: $(VENV)/.installed applications/browser/package-lock.json
	$(PIP) -e ".[face-id]"
	npm ci --prefix applications/browser --no-fund --no-audit || \
		echo "npm ci did not succeed: the tests of applications/browser are skipped."
	touch $@

# Trained models in runs/ stay.
clean:
	rm -rf $(VENV)
