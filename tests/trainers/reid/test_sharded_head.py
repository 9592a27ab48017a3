"""The head divided among ranks against the replicated one: losses, gradients, training, difficulty, checkpoints."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from datasets.errors import InputError
from trainers.difficulty.vector import neighbours, slice_of
from trainers.engine.checkpoint import read_state, write_state
from trainers.engine.optim import OptimConfig, build_optimiser
from trainers.engine.training import STATE
from trainers.tasks.reid.head_config import HeadConfig
from trainers.tasks.reid.margins import Margin
from trainers.tasks.reid.model import ModelConfig, ReidTask
from trainers.tasks.reid.sharded_checkpoint import ShardedRows, files_of_rows
from trainers.tasks.reid.sharded_head import BLOCK, ShardedHead, random_rows

KINDS = ("softmax", "sphereface", "cosface", "arcface", "adaface")
LOSSES = (
    *map(HeadConfig, KINDS), HeadConfig("cosface", smoothing=0.2), HeadConfig("softmax", smoothing=0.2),  # type: ignore[arg-type]
    HeadConfig("arcface", centres=3), HeadConfig("cosface", smoothing=0.2, centres=2),
    *(HeadConfig(kind, smoothing=0.1, filter=0.2) for kind in KINDS[1:]), HeadConfig("arcface", centres=3, filter=0.4),  # type: ignore[arg-type]
)  # fmt: skip
N, D, B = 11, 8, 12  # 11 identities are not shared evenly by 2 or 3 ranks
STEPS = 3
FIRST, SECOND = "share-000000000000.pt", "share-000000000005.pt"  # what two ranks write


class Task(nn.Module):
    """A linear embedder and a head; as little of a model as has all that matters here."""

    def __init__(self, config: HeadConfig, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        whole = ReidTask(ModelConfig(embedding=D), config, N, group)
        self.embedder, self.head = nn.Linear(5, D), whole.head
        generator = torch.Generator().manual_seed(1)
        rows = torch.randn(N, config.centres, D, generator=generator)
        rows = rows[self.head.first : self.head.end] if isinstance(self.head, ShardedHead) else rows
        with torch.no_grad():
            self.embedder.weight.copy_(torch.randn(D, 5, generator=generator))
            self.embedder.bias.zero_()
            self.centres.copy_(rows)

    @property
    def centres(self) -> Tensor:
        """A view of the head's weights, [N, K, D]; of a rank's rows, [n, K, D]."""
        return self.as_centres(next(self.head.parameters()))

    def as_centres(self, weights: Tensor) -> Tensor:
        """The same of what has the shape of the head's weights."""
        return (weights.T if isinstance(self.head, Margin) else weights).view(len(self.head.rows), -1, D)

    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, best = self.head(self.embedder(inputs), labels)
        return loss, best


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(B, 5, generator=generator), torch.randint(N, (B,), generator=generator)


def train(config: HeadConfig, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """A few steps on this rank's part of each batch: what they gave, and the first step's gradients."""
    task = Task(config, group)
    rank, world = (dist.get_rank(group), dist.get_world_size(group)) if group else (0, 1)
    if group and config.parallel:
        ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        ignore(task, ["head.weight"])
    model = DistributedDataParallel(task) if group else task
    optimiser = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9)
    given: dict[str, list[Tensor]] = {"loss": [], "best": []}
    for step in range(STEPS):
        inputs, labels = (part[slice(*slice_of(B, rank, world))] for part in batch(step))
        loss, best = model(inputs, labels)
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            (head,) = task.head.parameters()
            assert head.grad is not None
            first = {"embedder": task.embedder.weight.grad.clone(), "rows": task.as_centres(head.grad).clone()}  # type: ignore[union-attr]
        optimiser.step()
        given["loss"].append(loss.detach())
        given["best"].append(best)
    given |= {"statistics": list(task.head.buffers())}
    kept = {k: torch.stack(v) for k, v in given.items() if v}
    return {**kept, **first, "trained": task.centres.detach().clone(), "summed": task.head.rows.detach().clone()}


def on_rank(rank: int) -> list[dict[str, Tensor]]:
    return [train(replace(config, parallel=True), dist.group.WORLD) for config in LOSSES]


@pytest.mark.parametrize("world", [2, 3])
def test_the_same_as_the_replicated_head(world: int) -> None:
    ranks = on_ranks(world, on_rank)
    for number, config in enumerate(LOSSES):
        alone = train(config, None)
        found = [rank[number] for rank in ranks]
        for one in found:
            torch.testing.assert_close(one["loss"], alone["loss"], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(one["embedder"], alone["embedder"], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one.get("statistics"), alone.get("statistics"))
        for name in ("rows", "trained", "summed"):
            torch.testing.assert_close(torch.cat([one[name] for one in found]), alone[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(torch.cat([one["best"] for one in found], dim=1), alone["best"])


@pytest.mark.parametrize("config", LOSSES)
def test_one_rank_is_the_replicated_head(config: HeadConfig) -> None:
    shared, alone = train(replace(config, parallel=True), None), train(config, None)
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-5)


def reid_task(group: dist.ProcessGroup | None, centres: int = 1) -> ReidTask:
    torch.manual_seed(5)
    return ReidTask(ModelConfig(embedding=D), HeadConfig(parallel=True, centres=centres), N, group)


def start_and_difficulty(rank: int, centres: int) -> tuple[Tensor, Tensor, Tensor]:
    task = reid_task(dist.group.WORLD, centres)
    return task.classifier, *task.neighbours(1, dist.group.WORLD)


def neighbours_of(rank: int, k: int) -> tuple[Tensor, Tensor]:
    cosine, numbers = reid_task(dist.group.WORLD).neighbours(k, dist.group.WORLD)
    return cosine, numbers


@pytest.mark.parametrize("k", [1, 4])
def test_neighbours_do_not_depend_on_the_number_of_ranks(k: int) -> None:
    expected = reid_task(None).neighbours(k, None)
    for found in on_ranks(2, neighbours_of, k):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("centres", [1, 3])
def test_start_and_difficulty_do_not_depend_on_the_number_of_ranks(centres: int) -> None:
    whole = reid_task(None, centres)
    expected = neighbours(whole.classifier, 1)
    ranks = on_ranks(2, start_and_difficulty, centres)
    assert torch.equal(torch.cat([rows for rows, _, _ in ranks]), whole.classifier)
    for _, found, other in ranks:
        assert torch.equal(found, expected.cosine)
        assert torch.equal(other, expected.numbers)


def test_random_rows_are_the_same_however_they_are_cut() -> None:
    whole = random_rows(0, 3 * BLOCK + 5, 2, seed=9)
    assert whole.shape == (3 * BLOCK + 5, 2)
    assert abs(whole.std().item() - 1) < 0.05
    assert len(whole.unique(dim=0)) == len(whole)
    for first, end in ((0, 1), (BLOCK - 1, BLOCK + 1), (BLOCK, 2 * BLOCK), (100, 3 * BLOCK + 5)):
        assert torch.equal(random_rows(first, end, 2, seed=9), whole[first:end])


def step_and_write(rank: int, folder: str, centres: int) -> None:
    """One step of Adam on this rank's part of a batch, and a checkpoint of it."""
    task = reid_task(dist.group.WORLD, centres)
    optimiser = build_optimiser(OptimConfig(), task)
    images, labels = pictures()
    half = slice(*slice_of(len(labels), rank, 2))
    task({"images": images[half], "labels": labels[half]})["loss"].backward()
    optimiser.step()
    if rank == 0:
        write_state(Path(folder) / STATE, {"task": task.state_dict(), "optimiser": optimiser.state_dict()})
    assert isinstance(task.head, ShardedHead)
    ShardedRows(task.head, optimiser).write(Path(folder))


def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator), torch.tensor([0, 3, 5, 6, 9, 10])


def read_on(rank: int, folder: str, centres: int) -> list[Tensor]:
    return restored(dist.group.WORLD, folder, centres)


def restored(group: dist.ProcessGroup | None, folder: str, centres: int) -> list[Tensor]:
    """The rows of a new task after a checkpoint was loaded, and what the optimiser keeps of them."""
    task = reid_task(group, centres)
    with torch.no_grad():
        task.head.weight.zero_()
    optimiser = build_optimiser(OptimConfig(), task)
    assert isinstance(task.head, ShardedHead)
    state = ShardedRows(task.head, optimiser).read(Path(folder), read_state(Path(folder) / STATE))
    task.load_state_dict(state["task"])
    optimiser.load_state_dict(state["optimiser"])
    kept = optimiser.state[task.head.weight]
    return [task.head.weight.detach().clone(), kept["exp_avg"], kept["exp_avg_sq"], kept["step"]]


@pytest.mark.parametrize("centres", [1, 2])
def test_a_checkpoint_is_read_by_any_number_of_ranks(centres: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        on_ranks(2, step_and_write, folder, centres)
        again, by_three = (on_ranks(world, read_on, folder, centres) for world in (2, 3))
        alone = restored(None, folder, centres)
        for ranks in (again, by_three):
            for place, name in enumerate(("rows", "exp_avg", "exp_avg_sq")):
                assert torch.equal(torch.cat([rank[place] for rank in ranks]), alone[place]), name
            assert all(rank[3] == alone[3] == 1 for rank in ranks)
        assert alone[0].shape == alone[1].shape == ((N, D) if centres == 1 else (N, centres, D))
        assert alone[1].abs().sum() > 0
        assert not torch.equal(alone[0], next(reid_task(None, centres).head.parameters()))
        (Path(folder) / FIRST).unlink()
        with pytest.raises(InputError, match="holds 6 of the 11 rows 0 to 10"):
            restored(None, folder, centres)


@pytest.mark.parametrize(
    ("first", "end", "needed"),
    [(0, 11, [FIRST, SECOND]), (0, 5, [FIRST]), (5, 11, [SECOND]), (3, 7, [FIRST, SECOND]), (4, 5, [FIRST]), (10, 11, [SECOND])],
)
def test_of_a_checkpoint_a_rank_fetches_the_rows_that_are_its_own(first: int, end: int, needed: list[str]) -> None:
    assert sorted(files_of_rows(first, end, [SECOND, "state.pt", FIRST])) == [*needed, "state.pt"]


def test_fewer_identities_than_ranks_are_refused() -> None:
    with pytest.raises(InputError, match="1 identities cannot be divided among 1 workers"):
        ShardedHead(HeadConfig(parallel=True), 1, D, None)
