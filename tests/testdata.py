"""Access to research-only data sets that some tests use if present; they are not part of the repository."""

import os
from pathlib import Path

import pytest


def archive(name: str) -> Path:
    """Return an archive in the folder $HARDSHARD_TEST_DATA; skips the test if there is none."""
    path = Path(os.environ.get("HARDSHARD_TEST_DATA", "")) / name
    if not os.environ.get("HARDSHARD_TEST_DATA") or not path.exists():
        pytest.skip(f"needs {name}: research-only data, in the folder that HARDSHARD_TEST_DATA names")
    return path
