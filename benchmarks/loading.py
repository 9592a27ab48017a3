"""Loader throughput: Hardshard's draws against other loaders and against bare decoding, side by side in one run.

    python -m benchmarks.loading [--s3] [--latency-ms 20] [--size 200 200] [--by-identity] [--json]

Every contender reads, decodes and stacks uint8 batches of the same images in the same number of loader processes, and hands
them to one more that takes them; augmentation is off but where said. Contenders run one at a time, each measurement in a process
of its own, and take turns, so that a machine whose speed drifts drifts for all of them; ratios are taken within a turn. CPU is
that of all processes of a contender, without the S3 server: the figure that other work on the machine changes least.

Two limits: "decode, stack" does what every loader must, on images that are in memory, with torch's own hand-over; "decode only"
writes the same memory again and again and hands nothing over.

``--s3`` reads from a real server on loopback, whose work takes from the same cores; ``--latency-ms`` puts a proxy before it.
Caches are empty when a measurement begins; "cached" waits until it is full; "no cache" has none and gets all that it draws;
"local" reads a copy in a folder.

``--by-identity`` compares ours with loaders that can draw by identity: all draw identities with the same probabilities, and
``--instances`` samples of each.
"""

import importlib.util
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.peers import PEERS, Job, Peer, bound, cosines, stack
from benchmarks.peers_by_identity import BY_IDENTITY
from datasets.command_line import parse
from datasets.difficulty import Difficulty
from datasets.errors import run_main
from datasets.loading.batches import BatchStream, LoaderConfig, RankSlice
from datasets.loading.cache import CacheConfig
from datasets.loading.store import read_samples, shard_etags
from datasets.loading.workers import load_in_workers
from datasets.media.augment import AugmentConfig
from datasets.media.decode import Decoder
from datasets.object_storage import open_objects
from datasets.pack import Options, pack
from datasets.sampling.difficulty_table import DifficultyTable
from datasets.sampling.sampler import Kind, SamplerConfig
from datasets.seeding import generator
from datasets.shards.index import read_index, split_of
from tests.proxy import ProxyProcess
from tests.s3server import S3Server
from trainers.reports.console import summary_table

Batches = Callable[[], Iterable[Any]]
FORK = multiprocessing.get_context("fork")
LIMIT, BARE, PEER = "limit: decode, stack", "limit: decode only", "webdataset in order"
OURS = "hardshard proportional"
LOCAL = ", local"  # what the same draw from S3 is compared with
QUIET = 50
SHARDS = Options(shard_size=8 * 2**20)
KINDS: tuple[Kind, ...] = ("uniform", "proportional", "pairs")


@dataclass(frozen=True)
class Loading:
    """Measure loaders side by side."""

    identities: int = 1000
    each: int = 20
    """Images of an identity."""
    size: tuple[int, int] = (128, 64)
    workers: int = 2
    """Loader processes."""
    batch: int = 256
    instances: int = 1
    """Samples of each identity drawn (proportional, pairs, loaders that draw by identity)."""
    s3: bool = False
    """Read from an S3 server on loopback."""
    latency_ms: float = 0.0
    """What a proxy adds to each GET."""
    seconds: float = 4.0
    """Of each measurement, after a warm-up of as many batches as are prefetched."""
    turns: int = 5
    peers: bool = True
    """The other loaders, too."""
    by_identity: bool = False
    """Only loaders that draw by identity, and what they are compared with."""
    json: bool = False


def make_images(options: Loading, folder: Path) -> None:
    """Smooth random JPEGs of quality 90 in as many files: 4 KB at 128x64."""
    height, width = options.size
    for identity in range(options.identities):
        rng = generator(0, "image", identity)
        home = folder / f"{identity:05d}"
        home.mkdir(parents=True)
        for number in range(options.each):
            coarse = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
            image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(home / f"{number:03d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])


def hardshard(job: Job, options: Loading, kind: Kind, augment: AugmentConfig, gib: float = 16.0) -> Batches:
    """Our loader, drawing by ``kind``; by a vector that is there from the start."""
    split, etags = split_of(job.index, "train"), shard_etags(job.index)
    sampler = SamplerConfig(
        kind=kind, batch=job.batch, instances=options.instances, uniform_share=0.0, interval=1, lag=0, mode="freshest"
    )
    table = DifficultyTable(len(split.counts), sampler)
    cosine = cosines(len(split.counts))
    table.put(Difficulty(1, cosine, np.roll(np.arange(len(cosine), dtype=np.int32), 1)[:, None]))
    loader = LoaderConfig(workers=job.workers, size=options.size)

    def start() -> Iterable[Any]:
        cache = CacheConfig(job.fresh(), gib)
        stream = BatchStream(split, sampler, loader, augment, cache, table, etags, RankSlice(0, 1), 0, 1, 10**9)
        return load_in_workers(stream, job.workers)

    return start


def cached(start: Batches) -> Batches:
    """The same from when its cache holds what it draws: after as many batches as ``QUIET`` in a row without a GET."""

    def later() -> Iterator[Any]:
        batches, gets, quiet = iter(start()), set[int](), 0
        while quiet < QUIET:
            count = next(batches)["storage"]["gets"]  # of its process so far
            quiet = quiet + 1 if count in gets else 0
            gets.add(count)
        yield from batches

    return later


class Decoding(IterableDataset[Any]):
    """Nothing but decoding, of images that are in memory: into batches, or (``bare``) into nothing."""

    def __init__(self, images: list[bytes], batch: int, *, bare: bool) -> None:
        self.images, self.batch, self.bare = images, batch, bare

    def __iter__(self) -> Iterator[Any]:
        worker, decoder = get_worker_info(), Decoder()
        place = worker.id * 7919 if worker else 0
        while True:
            chosen = [self.images[(place + i) % len(self.images)] for i in range(self.batch)]
            place += self.batch
            if self.bare:
                yield [decoder.decode(data) for data in chosen][:0]
            else:
                yield stack(chosen)


def decoding(job: Job, *, bare: bool) -> Batches:
    """What the cores can decode."""
    prefetch = 2 if job.workers else None
    dataset = Decoding(job.images, job.batch, bare=bare)
    return lambda: DataLoader(dataset, batch_size=None, num_workers=job.workers, prefetch_factor=prefetch)


def contenders(job: Job, options: Loading) -> tuple[dict[str, Batches], list[str]]:
    """All that is measured, and the names of peers that are not installed."""
    found: dict[str, Batches] = {LIMIT: decoding(job, bare=False), BARE: decoding(job, bare=True)}
    here = replace(job, index=read_index(f"{job.folder}/local"), place=str(job.folder)) if options.s3 else job
    missing = []
    for peer in peers_of(options):
        if importlib.util.find_spec(peer.module) is None:
            missing.append(peer.name)
            continue
        of = here if peer.name.endswith(LOCAL) else job
        if peer.write and of.place.startswith("s3://"):
            aside(upload, peer.write, of, peer.form)
        elif peer.write:
            aside(peer.write, of, Path(of.place) / peer.form)
        found[peer.name] = bound(peer, of)
    plain = AugmentConfig(flip=False, shift=0)
    for kind in ("proportional",) if options.by_identity else KINDS:
        found[f"hardshard {kind}"] = hardshard(job, options, kind, plain)
        if options.s3:
            found[f"hardshard {kind}, cached"] = cached(found[f"hardshard {kind}"])
            found[f"hardshard {kind}, no cache"] = hardshard(job, options, kind, plain, gib=0)
            found[f"hardshard {kind}{LOCAL}"] = hardshard(here, options, kind, plain)
    if not options.by_identity:
        found["hardshard pairs, augmented"] = hardshard(job, options, "pairs", AugmentConfig(erase=0.5))
    return found, missing


def peers_of(options: Loading) -> list[Peer]:
    """The other loaders: webdataset, to which ratios are taken, and those asked for."""
    if options.by_identity:
        return PEERS[:1] + [peer for peer in BY_IDENTITY if options.s3 or peer.name.endswith(LOCAL)]
    return PEERS if options.peers else PEERS[:1]


def upload(write: Callable[[Job, Path], None], job: Job, name: str) -> None:
    """Write a peer's form, and copy it to S3."""
    home = Path(job.fresh()) / name
    write(job, home)
    objects = open_objects(f"{job.place}/{name}")
    files = [file for file in home.rglob("*") if file.is_file()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda file: objects.put(str(file.relative_to(home)), file.read_bytes()), files))


def aside(work: Callable[..., Any], *arguments: Any) -> Any:
    """Do it in a forked process, so that this one keeps no threads of whoever does it."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=answered, args=(there, work, *arguments))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return None  # its message is on stderr
    finally:
        process.join()


def answered(pipe: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    """What the forked process does."""
    pipe.send(work(*arguments))


def cpu_seconds() -> float:
    """CPU time of this process and all below it."""
    me, total = psutil.Process(), 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return total


def measured(start: Batches, options: Loading) -> dict[str, float]:
    """Samples per second and CPU microseconds a sample, once the workers are up and what they prefetched is gone."""
    batches = again(start)
    deque(islice(batches, 4 * max(options.workers, 1)), maxlen=0)  # none is kept: SPDL uses memory again in the order of its use
    began, cpu, count = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - began < options.seconds:
        next(batches)
        count += options.batch
    cpu = cpu_seconds() - cpu
    return {"rate": count / (time.perf_counter() - began), "cpu_us": 1e6 * cpu / count}


def again(start: Batches) -> Iterator[Any]:
    """Batches without end: a loader that ends begins again."""
    while True:
        yield from start()


def job_of(options: Loading, folder: Path, stack_: ExitStack) -> tuple[Job, ProxyProcess | None]:
    """The images, packed to a folder or to a server that is started, and the proxy before that, if there is one."""
    make_images(options, folder / "images" / "train")
    place, proxy = str(folder), None
    if options.s3:
        server = stack_.enter_context(S3Server(folder / "s3"))
        os.environ.update(server.environment())
        place = server.make_bucket("loading")
    index = pack("folders", folder / "images", f"{place}/shards", SHARDS)
    if options.s3:
        pack("folders", folder / "images", f"{folder}/local", SHARDS)
    if options.s3 and options.latency_ms:
        proxy = stack_.enter_context(ProxyProcess(server.endpoint, latency_ms=options.latency_ms))
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
    index = read_index(index.url)
    images = [bytes(data) for data in read_samples(index, range(len(index))) if not isinstance(data, ValueError)]
    return Job(index, images, place, folder, options.workers, options.batch, options.instances), proxy


def summary(turns: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Medians over the turns; ratios within a turn: medians, and of those to ours least and most, too."""

    def ratios(name: str, to: str) -> list[float]:
        return [a["rate"] / b["rate"] for a, b in zip(turns[name], turns[to], strict=True)]

    def summed(name: str) -> dict[str, Any]:
        kind, comma, state = name.partition(",")
        alike = OURS + comma + state
        others = {"webdataset": PEER, "limit": LIMIT, "bare": BARE, "local": kind + LOCAL}
        found: dict[str, Any] = {
            "samples_per_s": statistics.median(turn["rate"] for turn in turns[name]),
            "cpu_us": statistics.median(turn["cpu_us"] for turn in turns[name]),
            **{f"to_{short}": statistics.median(ratios(name, to)) for short, to in others.items() if to in turns},
        }
        for short, to in ("ours", OURS), ("alike", alike):
            if to in turns and name not in (LIMIT, BARE, PEER):
                found[f"to_{short}"] = spread(ratios(name, to))
        return found

    return {name: summed(name) for name in turns}


def spread(ratios: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def shown(figure: float | dict[str, float] | None) -> str:
    """A ratio as text."""
    if isinstance(figure, dict):
        return f"{figure['median']:.3f} ({figure['least']:.3f}-{figure['most']:.3f})"
    return "" if figure is None else f"{figure:.2f}"


def main(options: Loading) -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack_:
        job, _ = job_of(options, Path(folder), stack_)
        starts, missing = contenders(job, options)
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in starts}
        for _ in range(options.turns):
            for name in list(turns):
                if found := aside(measured, starts[name], options):
                    turns[name].append(found)
                else:
                    del turns[name]
        failed = [name for name in starts if name not in turns]
        results = summary(turns)
        size = sum(map(len, job.images)) / len(job.images)
    if options.json:
        figures = {"options": asdict(options), "bytes_an_image": size, "results": results}
        print(json.dumps({**figures, "missing": missing, "failed": failed, "turns": turns}))
        return
    columns = {"to_webdataset": "x webdataset", "to_limit": "x decode, stack", "to_bare": "x decode only"}
    if options.by_identity:
        columns = {"to_limit": "x decode, stack", "to_ours": "x ours", "to_alike": "x ours, cached or not as this"}
    elif options.s3:
        columns["to_local"] = "x local"
    rows = [
        [name, f"{r['samples_per_s']:,.0f}", f"{r['cpu_us']:.0f}", *(shown(r.get(to)) for to in columns)]
        for name, r in results.items()
    ]
    where = "local" if not options.s3 else f"S3 at {options.latency_ms:g} ms"
    title = f"{len(job.images):,} images of {options.size[0]}x{options.size[1]}, {size / 1000:.1f} KB; {where}; "
    title += f"{options.workers} workers, {options.turns} turns"
    summary_table(title, ["", "samples/s", "CPU us", *columns.values()], rows)
    for name in missing:
        print(f"not installed: {name}")
    for name in failed:
        print(f"failed: {name}")


if __name__ == "__main__":
    run_main(lambda: main(parse(Loading, "python -m benchmarks.loading")))
