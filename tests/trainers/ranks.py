"""Process groups for tests: gloo ranks, forked from a server that has imported torch once and has no threads."""

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

MODULES = [
    "pytest",
    "hypothesis",
    "torch",
    "torch.distributed",
    "trainers.difficulty.vector",
    "trainers.tasks.reid.evaluation",
    "trainers.tasks.reid.margins",
    "trainers.tasks.detection.adaptation",
    "trainers.tasks.reid.model",
]


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """``function(rank, *arguments)`` on every rank of a process group: what each returned (tensors and plain values)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=_rank, args=(rank, world, folder, function, arguments)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        assert [process.exitcode for process in ranks] == [0] * world
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _rank(rank: int, world: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world, rank)
    torch.save(function(rank, *arguments), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
