#!/usr/bin/env bash
# Checks and times what only a GPU shows (benchmarks/gpu.py), in at most eight minutes. PYTHON: the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/tests:$PWD/tests/trainers${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec timeout 480 "${PYTHON:-python3}" -m benchmarks.gpu "$@"
