"""A job's script can be sent to workers.

cloudpickle takes along what a function may mean by its names: with ``torch`` and ``.classes`` in it torch.classes, with
``torch.distributed`` and ``.config`` torch.distributed.config; and neither of these pickles.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEND = """
import sys
from ray import cloudpickle

for path in sys.argv[1:]:
    names = {"__name__": "__main__"}  # as a script's functions, which are sent by value
    exec(open(path).read().partition("if __name__")[0], names)
    cloudpickle.dumps(names["train_worker"])
"""


def test_a_job_run_as_a_script_can_be_sent() -> None:
    jobs = [str(ROOT / "trainers" / f"{job}.py") for job in ("reid", "attributes", "detection", "actions", "sequences")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", SEND, *jobs], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
