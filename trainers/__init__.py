"""One runnable job per file; what they share stands in the folders below."""

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
