#!/usr/bin/env bash
# Checks and times what only a GPU shows (benchmarks/gpu.py), in at most eight minutes. PYTHON: another
# interpreter than that of `make install`, or than python3 where there is none.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/tests:$PWD/tests/trainers${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
[ -x .venv/bin/python ] && installed=.venv/bin/python || installed=python3
exec timeout 480 "${PYTHON:-$installed}" -m benchmarks.gpu "$@"
