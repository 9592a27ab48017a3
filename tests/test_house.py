"""The rules of the house: which room may import which. A failing test says what to do instead."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("cluster", "datasets", "trainers", "benchmarks")
JOBS = {f"trainers.{path.stem}" for path in (ROOT / "trainers").glob("*.py") if "__main__" in path.read_text()}
TASKS = [path.name for path in (ROOT / "trainers" / "tasks").iterdir() if (path / "__init__.py").exists()]

NEVER: list[tuple[str, tuple[str, ...], tuple[str, ...], str]] = [  # files below; must not import; but may; what to do instead
    ("datasets", ("ray", "cluster", "trainers"), (), "pass what is needed in: sets are read without Ray and without models"),
    ("datasets/media", ("datasets.shards", "datasets.layouts", "datasets.sampling", "datasets.loading", "datasets.packing"), (),
     "pixels come first: move what both need to media/, or to datasets/"),
    ("datasets/shards", ("datasets.layouts", "datasets.sampling", "datasets.loading", "datasets.packing"), (),
     "what lies in a set knows neither who packed it nor who reads it: pass it in"),
    ("datasets/layouts", ("datasets.sampling", "datasets.loading", "datasets.packing"), (), "a layout only lists samples"),
    ("datasets/packing", ("datasets.sampling", "datasets.loading"), (), "packing writes sets and reads none"),
    ("datasets/sampling", ("datasets.loading", "datasets.layouts", "datasets.packing"), (), "a draw reads no bytes"),
    ("datasets/loading", ("datasets.layouts", "datasets.packing"), (), "a loader reads packed sets alone"),
    ("cluster", ("datasets", "trainers"), ("datasets.difficulty", "datasets.command_line"), "pass functions and plain values in"),
    ("trainers/reports", ("ray", "cluster", "datasets", "trainers.engine", "trainers.tasks"), ("datasets.media",),
     "a report's parts take plain values: what reads a run's folder belongs to trainers/engine/report.py"),
    ("trainers/difficulty", ("ray", "cluster", "trainers.engine", "trainers.tasks", "trainers.reports"), (),
     "the vector takes tensors: what measures it in a run belongs to trainers/tasks/reid/difficulty.py"),
    ("trainers/engine", ("ray", "cluster", "trainers.tasks"), (),
     "the job calls, the engine never calls back: pass it in (a worker is a trainers.engine.worker.Worker)"),
    ("trainers/tasks", ("ray", "cluster"), ("cluster.config",), "a task trains on any worker: what needs Ray belongs to the job"),
    *((f"trainers/tasks/{task}", tuple(f"trainers.tasks.{other}" for other in TASKS if other != task), (),
       "tasks share through trainers/engine, or through a module beside the tasks' folders") for task in TASKS),
]  # fmt: skip
PRIVATE = {  # the module that holds the private names of a library, and how they are written elsewhere
    "cluster/ray_compat.py": re.compile(r"\bray\.(?:\w+\.)*_[a-z]"),
    "trainers/torch_compat.py": re.compile(r"\b(?:torch|torchvision)\.(?:\w+\.)*_[a-z]|\bDistributedDataParallel\._|\._get_ddp"),
}


def imported(path: Path, *, inside: bool = True) -> set[str]:
    """The modules that a file imports, anywhere in it or only when it is imported itself."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def files_of(*rooms: str) -> Iterator[Path]:
    for room in rooms:
        yield from (ROOT / room).rglob("*.py")


@pytest.mark.parametrize(("room", "packages", "but", "instead"), NEVER)
def test_rooms_keep_to_themselves(room: str, packages: tuple[str, ...], but: tuple[str, ...], instead: str) -> None:
    files = list(files_of(room))
    assert files
    broken = {
        str(path.relative_to(ROOT)): name for path in files for name in imported(path)
        if any(below(name, package) for package in packages) and name not in packages
        and not any(below(name, allowed) or below(allowed, name) for allowed in but)
    }  # fmt: skip
    assert not broken, f"{room} must not import these; {instead}"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_circle_of_files() -> None:
    modules = {module_of(path): path for path in files_of("cluster", "datasets", "trainers")}
    graph = {name: {other for other in imported(path) if other in modules and other != name} for name, path in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"files import each other in a circle: {' <- '.join(error.args[1])}; move what both need to a third file")


@pytest.mark.parametrize("room", ["cluster", "datasets", "trainers"])
def test_no_circle_of_folders(room: str) -> None:
    """Of the folders of a room; its own files stand above (commands, jobs) or below (errors, texts) them all."""
    folders = [path.name for path in (ROOT / room).iterdir() if (path / "__init__.py").exists()]
    graph = {
        folder: {other for path in files_of(f"{room}/{folder}") for name in imported(path) for other in folders
                 if other != folder and below(name, f"{room}.{other}")}
        for folder in folders
    }  # fmt: skip
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"folders import each other in a circle: {' <- '.join(error.args[1])}; move what both need to the lower one")


def test_nothing_imports_a_job() -> None:
    files = list(files_of("cluster", "datasets", "trainers"))
    assert JOBS
    broken = {str(path): name for path in files for name in imported(path) for job in JOBS if below(name, job)}
    assert not broken, "move what is needed of the job to its folder in trainers/tasks"


@pytest.mark.parametrize("home", PRIVATE)
def test_private_names_of_a_library_stand_in_one_module(home: str) -> None:
    files = [path for path in files_of(*ROOMS) if path != ROOT / home]
    broken = {}
    for path in files:
        code = re.sub(r"#[^\n]*", "", path.read_text())
        names = [name for name in imported(path) if PRIVATE[home].match(name)]
        if found := names or PRIVATE[home].findall(code):
            broken[str(path.relative_to(ROOT))] = found
    assert not broken, f"put them into {home}, with the reason and the public interface that would replace them"


def test_jobs_and_shared_files_bear_no_standard_modules_name() -> None:
    assert not {path.stem for path in (ROOT / "trainers").glob("*.py")} & (set(sys.stdlib_module_names) - {"__init__"})


def test_every_package_says_that_it_is_one() -> None:
    folders = {path.parent for path in files_of(*ROOMS)}
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
