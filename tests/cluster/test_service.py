"""The difficulty actor: versions reach their followers, survive its death, and never come from another incarnation."""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from cluster import difficulty_service as difficulty_module
from cluster.difficulty_service import NAMESPACE, STORED, DifficultyService, Follower, Publisher, start_service
from cluster.errors import ClusterError
from datasets.difficulty import Difficulty
from datasets.errors import InputError
from datasets.sampling.difficulty_table import DifficultyTable
from datasets.sampling.sampler import SamplerConfig

N, K = 50, 6
PINNED = SamplerConfig("neighbours", interval=10, lag=5, patience=2.0)

pytestmark = pytest.mark.usefixtures("cluster")


def version(number: int, seed: int = 0) -> Difficulty:
    rng = np.random.default_rng([seed, number])
    return Difficulty(number, rng.random(N, dtype=np.float32), rng.integers(0, N, (N, K), np.int32))


@pytest.fixture
def name(tmp_path: Path) -> Iterator[str]:
    run = f"run-{uuid.uuid4().hex[:8]}"
    service = start_service(run, str(tmp_path), keep=3)
    yield run
    ray.kill(service)


def until(reached: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.02)


def kill(name: str, *, for_good: bool) -> None:
    """Kill the actor, and wait until it is dead: the next answer is the restarted one's."""
    actor = ray.get_actor(name, namespace=NAMESPACE)
    ray.get(actor.after.remote(0, 0.0))
    waiting = actor.after.remote(2**31, 60.0)
    ray.kill(actor, no_restart=for_good)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(waiting, timeout=30)


def stored(folder: Path) -> dict[str, bytes]:
    """The files of the versions that an actor stored."""
    return {file.name: file.read_bytes() for file in (folder / STORED).glob("*.npy")}


def test_every_version_reaches_a_follower_in_order(name: str) -> None:
    table, seen = DifficultyTable(N, PINNED), list[Difficulty]()
    publisher = Publisher(name, [], print, 30)

    def put(new: Difficulty) -> None:
        table.put(new)
        seen.append(new)

    follower = Follower(name, 0, put, print)
    for number in (1, 2, 3):
        publisher.publish(version(number))
    until(lambda: len(seen) == 3)
    follower.close()
    publisher.close()
    assert [new.version for new in seen] == [1, 2, 3]
    newest = table.at(35)
    assert newest is not None
    np.testing.assert_array_equal(newest.cosine, version(3).cosine)
    np.testing.assert_array_equal(newest.neighbours, version(3).neighbours)


def test_a_killed_actor_restarts_with_its_versions(name: str, tmp_path: Path) -> None:
    said, seen = list[str](), dict[int, Difficulty]()
    publisher = Publisher(name, [], said.append, 30)
    for number in (1, 2, 3, 4):
        publisher.publish(version(number))
    publisher.close()
    (tmp_path / STORED / "5.npy.new").write_bytes(b"half")  # as an actor killed while writing leaves it
    kill(name, for_good=False)
    follower = Follower(name, 0, lambda new: seen.update({new.version: new}), said.append)
    until(lambda: len(seen) == 3)
    follower.close()
    for number in (2, 3, 4):
        np.testing.assert_array_equal(seen[number].cosine, version(number).cosine)
        np.testing.assert_array_equal(seen[number].neighbours, version(number).neighbours)


def test_a_storage_that_hangs_delays_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difficulty_module, "POLL", 0.1)
    service, answers = DifficultyService(str(tmp_path), 3), threading.Event()
    monkeypatch.setattr(service._store, "keep", lambda versions: answers.wait(60))

    async def publish_twice() -> None:
        for number in (1, 2):
            new = version(number)
            assert await service.publish(1, number, new.cosine, new.neighbours)
            found = await service.after(number - 1, 1.0)
            assert found is not None
            assert found[0] == number
        assert not answers.is_set()
        answers.set()

    asyncio.run(publish_twice())


def test_an_actor_whose_stored_versions_are_damaged_starts_without_them(name: str, tmp_path: Path) -> None:
    publisher, seen = Publisher(name, [], print, 30), dict[int, Difficulty]()
    publisher.publish(version(1))
    publisher.close()
    until((file := tmp_path / STORED / "1.npy").exists)
    file.write_bytes(file.read_bytes()[:-1])
    kill(name, for_good=False)
    publisher = Publisher(name, [version(1)], print, 60)  # the workers' checkpoint has it
    follower = Follower(name, 0, lambda new: seen.update({new.version: new}), print)
    until(lambda: 1 in seen)
    for end in (follower, publisher):
        end.close()
    np.testing.assert_array_equal(seen[1].neighbours, version(1).neighbours)


def test_publishing_survives_the_actors_death(name: str) -> None:
    seen = dict[int, Difficulty]()
    publisher = Publisher(name, [], print, 30)
    follower = Follower(name, 0, lambda new: seen.update({new.version: new}), print)
    publisher.publish(version(1))
    until(lambda: 1 in seen)
    kill(name, for_good=False)
    publisher.publish(version(2))
    until(lambda: 2 in seen)
    follower.close()
    publisher.close()


def test_begin_drops_versions_of_steps_that_are_repeated(name: str, tmp_path: Path) -> None:
    dead = Publisher(name, [], print, 30)
    for number in (1, 2, 3):
        dead.publish(version(number))
    until(lambda: not dead._queue)
    alive = Publisher(name, [version(1)], print, 30)
    seen = dict[int, Difficulty]()
    follower = Follower(name, 0, lambda new: seen.update({new.version: new}), print)
    until(lambda: 1 in seen)
    dead.publish(version(2))  # of an older incarnation: ignored
    until(lambda: dead._actor.failure is not None)
    with pytest.raises(ClusterError, match="another incarnation"):
        dead.check()
    first = stored(tmp_path)
    alive.publish(version(2, seed=1))
    until(lambda: 2 in seen)
    until(lambda: stored(tmp_path).keys() == {"1.npy", "2.npy"})
    assert first == {"1.npy": stored(tmp_path)["1.npy"]}
    np.testing.assert_array_equal(seen[2].cosine, version(2, seed=1).cosine)
    for end in (follower, alive, dead):
        end.close()


def test_without_the_actor_pinned_ends_with_an_error_and_freshest_goes_on(name: str) -> None:
    said = list[str]()
    pinned = DifficultyTable(N, PINNED)
    freshest = DifficultyTable(N, SamplerConfig("neighbours", interval=10, lag=5, mode="freshest"))

    def put(new: Difficulty) -> None:
        pinned.put(new)
        freshest.put(new)

    publisher = Publisher(name, [], print, 30)
    follower = Follower(name, 0, put, said.append)
    publisher.publish(version(1))
    until(lambda: pinned.get(1) is not None)
    kill(name, for_good=True)
    publisher.publish(version(2))
    pinned.note(20)
    with pytest.raises(InputError, match=r"version 2 .* step 25, did not arrive in 2 s"):
        pinned.at(25)
    current = freshest.at(25)
    assert current is not None
    assert current.version == 1
    until(lambda: any("is unreachable" in text for text in said))
    follower.close()
    publisher.close()


def test_a_run_does_not_start_without_the_actor() -> None:
    with pytest.raises(ClusterError, match=r"difficulty actor was unreachable for 0\.5 s: nobody"):
        Publisher("nobody", [], print, patience=0.5)
