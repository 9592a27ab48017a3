# The commands of the README. Needs Python 3.11 or newer as python3, or PYTHON=...
PYTHON ?= python3
BIN := .venv/bin
SHARED := -n 4 --dist loadgroup --no-loadscope-reorder  # four processes take test after test, in order; tests wait more than they compute

.PHONY: demo test test-all test-s3 lint s3 install clean
install: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: needs Python 3.11 or newer; set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: install  ## train on the shipped data, and report
	$(BIN)/python trainers/reid.py

test: install  ## all tests but the slow ones
	$(BIN)/python -m pytest $(SHARED) -m "not slow"

test-all: install  ## all tests
	$(BIN)/python -m pytest $(SHARED)

test-s3: install  ## what reads and writes S3, and a training run, against Ceph's gateway instead of SeaweedFS
	$(BIN)/python -m pytest --s3 ceph -rs tests/datasets/test_object_storage.py tests/datasets/loading/test_store.py tests/datasets/loading/test_cache.py \
	    tests/datasets/test_pack.py tests/cluster/test_ledger.py \
	    tests/trainers/test_reid.py::test_a_killed_worker_leaves_no_trace_in_the_result

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

s3: install  ## a real S3 server on loopback, until Ctrl-C
	$(BIN)/python tests/s3server.py --dir .cache/s3 --port 8333

clean:
	rm -rf .venv .cache runs
