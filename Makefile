# Every target sets up what it needs in .venv. Another torch: make test TORCH="torch==2.9.1"
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/ready
	$(BIN)/vrga demo

test: .venv/ready
	$(BIN)/python -m pytest tests

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Times the patched model against the unpatched one; results go to benchmarks/results/.
bench: .venv/ready
	$(BIN)/python -m benchmarks.run

# torch comes first, so that nothing below replaces it by another build.
.venv/ready: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip setuptools wheel
	$(BIN)/pip install -q "$(TORCH)"
	$(BIN)/pip install -q -e ".[test,plot]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info out
