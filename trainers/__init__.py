"""The jobs, one runnable script each; `tasks` has a folder a task, `engine` what all jobs share, `reports` pages and tables."""

import sys
from pathlib import Path

import datasets

if Path(datasets.__file__ or "").parent.parent != Path(__file__).parent.parent:
    print(
        f"error: another package is called datasets and was found first: {datasets.__file__}; "
        "put Hardshard's root first on PYTHONPATH, or uninstall the other one",
        file=sys.stderr,
    )
    sys.exit(2)
