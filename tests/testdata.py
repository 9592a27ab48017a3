"""The research-only data that some tests use when it is there; it never comes with the repository."""

import os
from pathlib import Path

import pytest


def archive(name: str) -> Path:
    """An archive in the folder that HARDSHARD_TEST_DATA names; skips the test when there is none."""
    path = Path(os.environ.get("HARDSHARD_TEST_DATA", "")) / name
    if not os.environ.get("HARDSHARD_TEST_DATA") or not path.exists():
        pytest.skip(f"needs {name}: research-only data, in the folder that HARDSHARD_TEST_DATA names")
    return path
