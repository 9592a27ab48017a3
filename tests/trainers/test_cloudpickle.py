"""A job's script can be sent to workers.

cloudpickle takes along what a function may mean by its names: with ``torch`` and ``.classes`` in it torch.classes, with
``torch.distributed`` and ``.config`` torch.distributed.config; and neither of these pickles.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEND = """
import sys
exec(open(sys.argv[1]).read().partition("if __name__")[0])
from ray import cloudpickle
cloudpickle.dumps(train_worker)
"""


@pytest.mark.parametrize("job", ["reid", "attributes", "detection", "actions", "sequences"])
def test_a_job_run_as_a_script_can_be_sent(job: str) -> None:
    command = [sys.executable, "-c", SEND, str(ROOT / "trainers" / f"{job}.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
