"""The rules of the house: which room may import which."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("cluster", "datasets", "trainers", "benchmarks")
JOBS = {f"trainers.{path.stem}" for path in (ROOT / "trainers").glob("*.py") if path.stem != "__init__"}

NEVER = [  # (files below, must not import)
    ("datasets", "ray"), ("datasets", "cluster"), ("datasets", "trainers"), ("cluster", "datasets"), ("cluster", "trainers"),
    ("trainers/engine", "ray"), ("trainers/engine", "cluster"), ("trainers/models", "ray"), ("trainers/models", "cluster"),
    ("trainers/losses", "ray"), ("trainers/losses", "cluster"), ("trainers/losses", "trainers.models"),
    ("trainers/metrics", "ray"), ("trainers/metrics", "cluster"), ("trainers/metrics", "trainers.models"),
]  # fmt: skip


def imported(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize(("room", "package"), NEVER)
def test_rooms_keep_to_themselves(room: str, package: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    broken = {str(path): name for path in files for name in imported(path) if inside(name, package)}
    assert not broken


def test_nothing_imports_a_job() -> None:
    files = [path for room in ("cluster", "datasets", "trainers") for path in (ROOT / room).rglob("*.py")]
    assert files
    assert JOBS
    assert not {str(path): name for path in files for name in imported(path) for job in JOBS if inside(name, job)}


def test_jobs_and_shared_files_bear_no_standard_modules_name() -> None:
    assert not {path.stem for path in (ROOT / "trainers").glob("*.py")} & (set(sys.stdlib_module_names) - {"__init__"})


def test_every_package_says_that_it_is_one() -> None:
    folders = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert folders
    assert not {str(folder) for folder in folders if not (folder / "__init__.py").exists()}


def test_our_datasets_wins() -> None:
    import datasets

    assert Path(datasets.__file__ or "").parent == ROOT / "datasets"


def test_another_datasets_is_named(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    ended = subprocess.run(
        [sys.executable, str(ROOT / "trainers" / "reid.py")], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: another package is called datasets and was found first: {tmp_path}")
