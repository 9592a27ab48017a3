"""A run's folder, local or in S3: config.json, metrics.json, model.pt, history.json, tensorboard/, report.html, checkpoints."""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.errors import InputError
from datasets.object_storage import open_objects
from datasets.text_files import json_of, text_of
from trainers.engine.checkpoint import read_state, write_state

CONFIG, METRICS, HISTORY, MODEL, REPORT = "config.json", "metrics.json", "history.json", "model.pt", "report.html"
CHECKPOINTS = "step-"  # how the names of their folders begin


class Run:
    """A run's folder, by its name and the folder or s3:// address of all runs.

    Raises:
        InputError: the name cannot be a folder's, or the storage refuses access.
    """

    def __init__(self, runs: str, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise InputError("not a name for a run", repr(name), "use letters, digits, '-', '_' and '.'")
        self.name, self.runs = name, runs
        self.objects = open_objects(f"{runs.rstrip('/')}/{name}")

    @property
    def url(self) -> str:
        """The folder's address."""
        return self.objects.url

    def exists(self) -> bool:
        """Whether the run was started before; raises InputError when it was and its settings are gone."""
        if self.objects.exists(CONFIG):
            return True
        if self.objects.sizes(CHECKPOINTS):
            remedy = f"put the file back: the folder of each checkpoint, {CHECKPOINTS}NNNNNNNN, has a copy"
            raise InputError(f"the run has checkpoints and no {CONFIG}", self.url, remedy)
        return False

    def read_text(self, name: str) -> str:
        """Read a text file of the folder.

        Raises:
            InputError: there is no such run, or it has not written the file yet.
        """
        if not self.exists():
            raise InputError(f"no run '{self.name}'", self.runs, "name one with --name; is --runs right?")
        if not self.objects.exists(name):
            raise InputError(f"the run has no {name} yet", self.url, "let it finish: resume it with --resume")
        return text_of(self.objects.get(name), f"{self.url}/{name}")

    def write_text(self, name: str, text: str) -> None:
        """Put a text file into the folder, whole or not at all."""
        self.objects.put(name, text.encode())

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the folder; raises what `read_text` raises."""
        return json_of(self.read_text(name), f"{self.url}/{name}", "it is damaged: let the run write it again by --resume")

    def write_json(self, name: str, value: Any) -> None:
        """Put a JSON file into the folder, whole or not at all."""
        self.write_text(name, json.dumps(value, indent=1, allow_nan=False))

    def note_evaluation(self, of: str, figures: Mapping[str, float]) -> None:
        """Add the figures of a later evaluation to the run's metrics. ``of``: what was evaluated on, such as a set's address."""
        metrics = self.read_json(METRICS)
        metrics.setdefault("evaluations", {})[of] = figures
        self.write_json(METRICS, metrics)

    def write_model(self, state: dict[str, Any]) -> None:
        """Put the trained model into the folder, whole or not at all."""
        with tempfile.TemporaryDirectory() as folder:
            write_state(Path(folder) / MODEL, state)
            self.objects.put_file(MODEL, Path(folder) / MODEL)

    def read_model(self) -> dict[str, Any]:
        """Read the trained model: what `write_model` put there.

        Raises:
            InputError: the run has none yet, or it is damaged.
        """
        if not self.objects.exists(MODEL):
            raise InputError("the run has no trained model yet", self.url, "let it finish: resume it with --resume")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MODEL
            path.write_bytes(self.objects.get(MODEL))
            return read_state(path, f"{self.url}/{MODEL}")
