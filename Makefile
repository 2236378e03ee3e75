# Every target sets up what it needs in .venv. Another torch: make test TORCH="torch==2.9.1"
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test test-versions lint bench clean

demo: .venv/ready
	$(BIN)/vrga demo

test: .venv/ready
	$(BIN)/python -m pytest tests

# The tests that depend on transformers, on each version in an environment of its own; torch and
# all the rest come from .venv. One version alone: make test-versions VERSIONS=4.57.6
VERSIONS ?= 4.57.6 5.10.* 5.*
VERSIONED := $(addprefix tests/test_,$(addsuffix .py,patch oracle generation families windows \
	conversation integrations models tokens region cli back trace asking waiting trace_drafts))

test-versions: .venv/ready
	set -e; for version in $(VERSIONS); do \
	  env=.versions/$$(echo $$version | tr -d '*'); \
	  test -x $$env/bin/python || $(PYTHON) -m venv $$env; \
	  $$env/bin/python -c "import pathlib, sysconfig; \
	    found = next(pathlib.Path('.venv/lib').glob('python*')).resolve() / 'site-packages'; \
	    pth = pathlib.Path(sysconfig.get_path('purelib')) / 'base.pth'; \
	    pth.write_text(f'import site; site.addsitedir({str(found)!r})')"; \
	  $$env/bin/python -m pip install -q "transformers==$$version"; \
	  $$env/bin/python -m pytest $(VERSIONED); \
	done

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Times the patched model against the unpatched one; results go to benchmarks/results/.
bench: .venv/ready
	$(BIN)/python -m benchmarks.run

# torch comes first, so that nothing below replaces it by another build; lmms-eval would, so it
# comes without its requirements, which the extra "eval" lists.
.venv/ready: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip setuptools wheel
	$(BIN)/pip install -q "$(TORCH)"
	$(BIN)/pip install -q -e ".[test,plot,report,eval]"
	$(BIN)/pip install -q --no-deps lmms-eval==0.7.3
	touch $@

clean:
	rm -rf .venv .versions build dist *.egg-info out
