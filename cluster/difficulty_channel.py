"""A worker's connection to the difficulty vector: each version that rank 0 publishes reaches the tables of all ranks.

On a cluster through the actor of `cluster.difficulty_service`; in a local run, which has one rank, directly.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from secrets import token_hex
from typing import Any

import torch
import torch.distributed as dist

from cluster.config import ClusterConfig
from cluster.storage import storage_uri
from datasets.difficulty import Difficulty


@contextmanager
def difficulty_service(config: ClusterConfig, run: str, folder: str, keep: int) -> Iterator[str]:
    """Start the actor of a run's difficulty vector and yield its name; "" for a local run, which needs none, and for ``keep`` 0.

    ``folder``: the run's, where versions are stored; ``keep``: number of versions held, 0 if the run does not draw by difficulty.
    """
    if config.local or not keep:
        yield ""
        return
    import ray

    from cluster.difficulty_service import start_service

    name = f"difficulty:{run}-{token_hex(4)}"
    service = start_service(name, storage_uri(folder), keep)
    try:
        yield name
    finally:
        ray.kill(service)


class DifficultyChannel:
    """One rank's end of the connection. Every rank makes one, after the process group is there."""

    def __init__(
        self, worker: Any, service: str, put: Callable[[Difficulty], None], restored: Sequence[Difficulty], *,
        keep: int, after: int, patience: float,
    ) -> None:  # fmt: skip
        """Connect to the actor named ``service``; "": pass versions to ``put`` directly.

        ``restored``: the versions of the checkpoint that the run resumes from. ``put``: called with these at once, then with each
        version newer than ``after``, in order; the actor may bring some of the first again. ``keep``: number of versions that
        `state` returns.

        Raises:
            ClusterError: the actor was unreachable for longer than ``patience`` seconds.
        """
        self._recent, self._publish, self._ends = deque(restored, maxlen=keep), put, list[Any]()
        for difficulty in restored:
            put(difficulty)
        if not service:
            return
        from cluster.difficulty_service import Follower, Publisher

        self._publish = lambda difficulty: None  # rank 0 does it for all
        if worker.rank == 0:
            publisher = Publisher(service, restored, worker.say, patience)
            self._publish, self._ends = publisher.publish, [publisher]
        if worker.group:
            dist.barrier()  # until rank 0 has replaced the actor's versions by those of the checkpoint
        self._ends.append(Follower(service, after, put, worker.say))

    def publish(self, difficulty: Difficulty) -> None:
        """Publish a version; every rank calls this with the same one. Raises the error of a thread of the channel that failed."""
        for end in self._ends:
            end.check()
        self._recent.append(difficulty)
        self._publish(difficulty)

    def state(self) -> list[list[Any]]:
        """The recent versions as plain data and tensors, for a checkpoint: version, cosine [N], neighbours [N, k]."""
        return [[d.version, torch.from_numpy(d.cosine), torch.from_numpy(d.neighbours)] for d in self._recent]

    @staticmethod
    def restored(state: Sequence[Sequence[Any]]) -> list[Difficulty]:
        """The versions that `state` returned. Earlier checkpoints hold the nearest identities [N], which are k = 1 neighbours."""
        return [Difficulty(version, cosine.numpy(), near.view(len(cosine), -1).numpy()) for version, cosine, near in state]

    def close(self) -> None:
        """Publish what is queued, within a few seconds, and end."""
        for end in self._ends:
            end.close()
