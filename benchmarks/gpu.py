"""What only a GPU shows: is everything right there, and how fast. No Ray, no network, no data; at most eight minutes.

    bash benchmarks/gpu.sh                  on a machine with a GPU
    bash benchmarks/gpu.sh --rehearse       small sizes, on any machine: half a minute on two cores
    bash benchmarks/gpu.sh --parts jobs head --to figures.json

    exact   nearest and 8 nearest identities by bfloat16 products, against float32 products of all pairs
    speed   both by size, against our plain float32 tiles and against one product W W^T of cuBLAS, of which nothing is kept
    jobs    four steps of every job, from its command's config to its report
    steps   images a second of a ResNet-50 under ArcFace, with bfloat16 autocast and without
    copies  batches to the GPU from page-locked memory, and from other memory
    head    the head whose rows the ranks share, over NCCL with one rank, against the plain head
    loader  samples a second of the loader, beside what the ResNet-50 takes

A part that fails is reported, and the others go on; the exit code is then 1.
"""

import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.difficulty import STRIP, Cost, plain, rows_for
from datasets.command_line import parse
from datasets.errors import run_main
from trainers.difficulty.vector import neighbours
from trainers.engine.loop import steps
from trainers.engine.optim import OptimConfig, build_optimiser
from trainers.tasks.reid.head_config import HeadConfig
from trainers.tasks.reid.heads import build_head
from trainers.tasks.reid.model import ModelConfig, ReidTask
from trainers.tasks.reid.sharded_head import ShardedHead

Figures = dict[str, Any]
Part = Literal["exact", "speed", "jobs", "steps", "copies", "head", "loader"]
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
FEATURES = 512
ENOUGH = 10**11  # products D N^2 up to which three turns are timed, else one


@dataclass(frozen=True)
class Gpu:
    """Check and time what only a GPU shows."""

    parts: tuple[Part, ...] = get_args(Part)
    rehearse: bool = False
    """Small sizes."""
    to: str = ""
    """A JSON file for the figures."""

    def of(self, whole: Any, small: Any) -> Any:
        """A size: of the whole run, or of a rehearsal."""
        return small if self.rehearse else whole


def rows_of(count: int) -> Tensor:
    """Rows [N, 512], a tenth of them look-alikes of others, as after some training."""
    return rows_for(count, Cost(twins=0.1)).to(DEVICE)


def seconds(work: Callable[[], object], turns: int = 3) -> float:
    """The shortest of some turns after one that is not counted, in seconds."""
    found = []
    for _ in range(1 + turns):
        wait()
        began = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def wait() -> None:
    """Wait until the GPU has done all that it was given."""
    if GPU:
        torch.cuda.synchronize()


def exact(options: Gpu) -> Iterator[Figures]:
    """Cosines and numbers against those of all pairs."""
    for count in options.of((10_000, 100_000), (2_000,)):
        rows = rows_of(count)
        unit = nn.functional.normalize(rows.double()).float()
        for k in (1, 8):
            found = neighbours(rows, k, precision="bfloat16")
            cosine, numbers = torch.empty_like(found.cosine), torch.empty_like(found.numbers)
            for first in range(0, count, 8192):
                some = unit[first : first + 8192] @ unit.T
                some[torch.arange(len(some)), first + torch.arange(len(some))] = -2
                cosine[first : first + 8192], numbers[first : first + 8192] = some.topk(k)
            off = float((found.cosine - cosine).abs().max())
            same = float((found.numbers == numbers).float().mean())  # all but pairs of cosines that differ in the last bits
            yield {"identities": count, "k": k, "largest_difference": off, "same_numbers": same}
            if off > 1e-5 or same < 0.999:
                raise AssertionError(f"not the {k} nearest of {count} identities")


def speed(options: Gpu) -> Iterator[Figures]:
    """Seconds of the pruned search, of plain tiles, and of the bare products."""
    for count in options.of((10_000, 100_000, 300_000, 1_000_000), (1_000, 4_000)):
        rows, turns = rows_of(count), 3 if count * count * FEATURES < ENOUGH else 1
        took = {f"top_{k}": seconds(partial(neighbours, rows, k, precision="bfloat16"), turns) for k in (1, 8)}
        if count <= 300_000:
            took["plain_float32"] = seconds(partial(neighbours, rows, 1, precision="float32"), turns)
        space = torch.empty(min(count, STRIP), count, dtype=torch.bfloat16, device=DEVICE)
        yield {"identities": count, **took, "cublas_bfloat16": seconds(partial(plain, rows.bfloat16(), space), turns)}


def jobs(options: Gpu) -> Iterator[Figures]:
    """Small runs of every job, those of the tests."""
    for run_of in importlib.import_module("jobs").RUNS:  # of the tests; gpu.sh puts them on the path
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
            began = time.perf_counter()
            train = run_of(Path(folder), name="run", runs=f"{folder}/runs", checkpoint_every=2, record_every=1)
            train = replace(train, cluster=replace(train.cluster, local=True))
            train.run()
            metrics = json.loads(Path(folder, "runs", "run", "metrics.json").read_text())
        yield {"job": run_of.__name__, "score": metrics["score"], "seconds": time.perf_counter() - began}


def resnet(batch: int, *, amp: bool, small: bool) -> Iterator[float]:
    """Train a ResNet-50 on one batch again and again; yields the seconds of each step."""
    size, backbone = ((64, 32), "resnet18") if small else ((256, 128), "resnet50")
    torch.manual_seed(0)
    task = ReidTask(ModelConfig(backbone, embedding=FEATURES), HeadConfig("arcface"), 10_000).to(DEVICE)
    config = OptimConfig(steps=10**6, amp=amp)
    images = torch.randint(256, (batch, 3, *size), dtype=torch.uint8)
    labels = torch.randint(10_000, (batch,))
    batches = ({"images": images, "labels": labels, "step": step} for step in range(10**6))
    for step in steps(task, build_optimiser(config, task), config, batches, DEVICE, 0):
        if not torch.isfinite(step.results["loss"]):  # also waits for the GPU
            raise AssertionError(f"the loss is {step.results['loss']} at step {step.done}")
        yield step.took


def images_per_second(options: Gpu, *, amp: bool) -> float:
    """Of the ResNet-50, on batches that are there."""
    batch, count = options.of((256, 30), (4, 3))
    times = list(islice(resnet(batch, amp=amp, small=options.rehearse), count))[count // 3 :]
    return float(batch * len(times) / sum(times))


def training(options: Gpu) -> Iterator[Figures]:
    """Images a second by precision."""
    for amp in (True, False):
        yield {"precision": "bfloat16 autocast" if amp else "float32", "images_per_s": images_per_second(options, amp=amp)}


def copies(options: Gpu) -> Iterator[Figures]:
    """GB/s of batches of 256 images."""
    images = torch.randint(256, (options.of(256, 8), 3, 256, 128), dtype=torch.uint8)
    for kind in ("page-locked", "other") if GPU else ("other",):
        held = images.pin_memory() if kind == "page-locked" else images
        took = seconds(partial(held.to, DEVICE, non_blocking=True, copy=True), 10)
        yield {"memory": kind, "gb_per_s": images.numel() / took / 1e9}


def head(options: Gpu) -> Iterator[Figures]:
    """The head whose rows ranks share, with one rank, against the plain one: loss, gradients, seconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("nccl" if GPU else "gloo", f"file://{folder}/store", world_size=1, rank=0)
        try:
            for count in options.of((10_000, 1_000_000), (1_000,)):
                torch.manual_seed(0)
                config = HeadConfig("cosface", scale=32.0, margin=0.2)
                shared = ShardedHead(replace(config, parallel=True), count, FEATURES, dist.group.WORLD).to(DEVICE)
                plain = build_head(config, count, FEATURES).to(DEVICE)
                plain.rows.data.copy_(shared.rows.data)
                features, labels = torch.randn(256, FEATURES, device=DEVICE), torch.randint(count, (256,), device=DEVICE)
                took, loss, gradient = trained(shared, features, labels)
                plain_took, other, theirs = trained(plain, features, labels)
                torch.testing.assert_close(loss, other, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(gradient, theirs, rtol=1e-2, atol=1e-4)
                yield {"identities": count, "loss": float(loss), "shared_s": took, "plain_s": plain_took}
        finally:
            dist.destroy_process_group()


def trained(each: nn.Module, features: Tensor, labels: Tensor) -> tuple[float, Tensor, Tensor]:
    """Seconds of a forward and backward pass of a head, its loss, and the gradient of its rows [N, D]."""
    (weight,) = [p for p in each.parameters() if FEATURES in p.shape]

    def step() -> Tensor:
        weight.grad = None
        loss: Any = each(features, labels)[0]
        loss.backward()
        return loss.detach()  # type: ignore[no-any-return]

    took, loss = seconds(step), step()
    assert weight.grad is not None
    gradient = weight.grad if weight.shape[-1] == FEATURES else weight.grad.T
    return took, loss, gradient


def loader(options: Gpu) -> Iterator[Figures]:
    """Samples a second of the loader alone, beside the ResNet-50's images a second."""
    from benchmarks.loading import SHARDS, Loading, hardshard, make_images
    from benchmarks.peers import Job
    from datasets.media.augment import AugmentConfig
    from datasets.pack import pack

    workers = max(min((os.cpu_count() or 2) - 2, 14), 1)
    sizes = Loading(identities=options.of(500, 30), each=10, size=(256, 128), workers=workers, batch=options.of(256, 32))
    with tempfile.TemporaryDirectory() as folder:
        make_images(sizes, Path(folder, "images", "train"))
        index = pack("folders", Path(folder, "images"), f"{folder}/shards", SHARDS)
        batches = iter(hardshard(Job(index, [], folder, Path(folder), workers, sizes.batch), sizes, "uniform", AugmentConfig())())
        count = options.of(100, 5)
        for _ in islice(batches, 4 * workers):
            pass
        began = time.perf_counter()
        for _ in islice(batches, count):
            pass
        rate = sizes.batch * count / (time.perf_counter() - began)
    yield {"loader_processes": workers, "samples_per_s": rate, "resnet50_images_per_s": images_per_second(options, amp=True)}


PARTS: dict[Part, Callable[[Gpu], Iterator[Figures]]] = {
    "exact": exact, "speed": speed, "jobs": jobs, "steps": training, "copies": copies, "head": head, "loader": loader,
}  # fmt: skip


def main(options: Gpu) -> int:
    """Run the parts; the exit code."""
    found: dict[str, Any] = {"device": torch.cuda.get_device_name() if GPU else "CPU", "torch": torch.__version__}
    print(f"{found['device']}, torch {found['torch']}")
    failed = []
    for name in options.parts:
        began, found[name] = time.perf_counter(), []
        try:
            for figures in PARTS[name](options):
                found[name].append(figures)
                shown = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items())
                print(f"{name:7} {', '.join(shown)}", flush=True)
        except Exception:  # the other parts are to be measured all the same
            failed.append(name)
            found[f"{name} failed"] = traceback.format_exc()
            print(f"{name:7} FAILED\n{traceback.format_exc()}", flush=True)
        print(f"{name:7} took {time.perf_counter() - began:.1f} s", flush=True)
        if options.to:  # after each part: the machine may be gone before the last
            Path(options.to).write_text(json.dumps(found, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    run_main(lambda: sys.exit(main(parse(Gpu, "bash benchmarks/gpu.sh"))))
