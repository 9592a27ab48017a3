"""Person re-identification with hard-identity sampling.

python trainers/reid.py                                    train on the data that the repository ships
python trainers/reid.py --data s3://bucket/market1501 --name market --cluster.workers 8
python trainers/reid.py --name market --resume             go on with a run
python trainers/reid.py evaluate --name market
python trainers/reid.py predict --name market --query someone.jpg
python trainers/reid.py export --name market --to market.onnx
"""

import secrets
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import ray
import torch
import torch.distributed as dist

import trainers  # noqa: F401 - first, since it says so when another package called datasets was found
from cluster.difficulty import Follower, Publisher, start_service
from cluster.launch import ClusterConfig, connect, launch, storage_uri
from cluster.worker import Worker, restore_checkpoint, save_checkpoint, this_worker
from datasets.augment import AugmentConfig
from datasets.cache import CacheConfig
from datasets.errors import InputError
from datasets.index import Index, Split, check_shards, read_index, split_of
from datasets.loader import BadSamples, BatchStream, LoaderConfig, Share, behind_workers
from datasets.sampling import Sampler, SamplerConfig, Version
from datasets.shipped import shipped_set
from datasets.store import shard_etags
from datasets.tally import Tally
from datasets.versions import VersionTable
from trainers.engine.cli import run_job
from trainers.engine.config import HARMLESS, allowed, from_json, to_json
from trainers.engine.console import summary_table
from trainers.engine.export import exporter
from trainers.engine.gallery import FIGURES, can_retrieve, embed_files, evaluate_retrieval, rank_files, rank_split
from trainers.engine.job import JobConfig, absolute, resolved, resumed_defaults, settled, shown, start_run, stored_config
from trainers.engine.journal import Journal, crc32c_of, read_checkpoint, write_checkpoint
from trainers.engine.loop import Meter, OptimConfig, allreduce_s, build_optimiser, share_buffers, steps
from trainers.engine.ranks import spread
from trainers.engine.run import HISTORY, METRICS, Run
from trainers.engine.shares import files_of_rows, read_with_share, write_share
from trainers.losses.class_parallel import ClassParallel
from trainers.losses.heads import HeadConfig
from trainers.models.reid import Embedder, ModelConfig, ReidTask
from trainers.models.users import try_users

QUANTILES = 101  # of the difficulty vector, kept of each version for the report
PAIRS = 12  # most confusable pairs of identities, kept for the report


@dataclass(frozen=True)
class Train(JobConfig):
    """Train a model: draw by difficulty, checkpoint, evaluate, report."""

    data: str = ""
    """A shard set: a folder or s3://bucket/prefix; empty: the Omniglot subset that the repository ships."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    cache: CacheConfig = field(default_factory=CacheConfig, metadata=HARMLESS)
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=OptimConfig, metadata=allowed("steps", "lr", "warmup"))
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=HARMLESS)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.cluster.check_shares(self.sampler.batch, "sampler.batch")
        for workers in self.cluster.sizes:  # of an elastic run, any of them
            self.sampler.check_world(workers)
        if self.head.triplet and self.sampler.kind in ("proportional", "pairs") and self.sampler.each == 1:
            what = f"a triplet loss needs several samples of an identity, and '{self.sampler.kind}' draws one"
            raise InputError(what, "head.triplet", "give --sampler.instances 4")

    @property
    def batch(self) -> int:
        """Samples of a global batch."""
        return self.sampler.batch

    def run(self) -> None:
        """Check all that can be checked here, train on the cluster, write the report."""
        config = settled(resolved(replace(self, data=absolute(self.data) if self.data else ""), "reid"))
        data = open_data(config)
        check_shards(data.index)
        Sampler(config.sampler, data.train, config.seed)
        try_users(config.model.backbone, lambda: Embedder(config.model), torch.zeros(2, 3, *data.size))
        run = start_run(config)
        connect(config.cluster)
        print(f"run {config.name}: {len(data.train):,} images of {len(data.train.counts):,} identities from {data.index.url}")
        settings = {"config": to_json(config), "service": f"difficulty:{config.name}-{secrets.token_hex(4)}"}
        with shown(run, config) as show:
            service = start_service(settings["service"], storage_uri(run.url), config.sampler.versions_alive)
            launch(train_worker, settings, config.cluster, name=config.name, runs=config.runs, show=show)
            ray.kill(service)
        from trainers.engine.retrieval_report import write_report  # here: Matplotlib is 0.4 s in the way of every process's start

        metrics, history = run.read_json(METRICS), run.read_json(HISTORY)
        print_retrieval(config.name, history["evaluations"])
        write_report(run, data.train, to_json(config), metrics, history)
        print(f"report: {run.url}/report.html")


@dataclass(frozen=True)
class Data:
    """The set that a run reads."""

    index: Index
    train: Split
    etags: dict[str, str]
    size: tuple[int, int]  # H, W trained at


def open_data(config: Train) -> Data:
    """Open the set; every worker does so for itself."""
    index = read_index(config.data or shipped_set())
    height, width = config.loader.size or index.about["size"]
    train = split_of(index, "train")
    if len(train.counts) < 2:
        raise InputError(f"only {len(train.counts)} identity to train on", index.url, "re-identification needs two or more")
    return Data(index, train, shard_etags(index), (height, width))


def train_worker(settings: dict[str, Any]) -> None:
    """One worker's part of a run: what Ray Train starts on every GPU, and starts again when one dies."""
    config = from_json(Train, settings["config"], "the driver")
    worker, run, data = this_worker(settings), Run(config.runs, config.name), open_data(config)
    torch.manual_seed(config.seed)
    task = ReidTask(config.model, config.head, len(data.train.counts), worker.group)
    task = task.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the loader's images are
    optimiser = build_optimiser(config.optim, task)
    journal, restored = restore(task, optimiser, data.index)
    model = spread(task, worker.group, sync_batch_norm=bool(config.optim.sync_batch_norm), alone=task.alone)
    if not journal.evaluations:
        evaluate(config, worker, data, task, journal)
    table = VersionTable(len(data.train.counts), config.sampler)
    exchange = Exchange(config.sampler, worker, settings["service"], restored, table, journal.step)
    stream = BatchStream(
        data.train, config.sampler, config.loader, config.augment, config.cache, table, data.etags,
        Share(worker.rank, worker.world), config.seed, journal.step, config.optim.steps,
    )  # fmt: skip
    loader = behind_workers(stream, config.loader.workers, pin=worker.device.type == "cuda")
    bad = BadSamples(config.loader.bad_share, len(data.train))
    meter, tally = Meter(worker.group), Tally(config.loader.workers, table)
    for step in steps(model, optimiser, config.optim, loader, worker.device, config.seed, worker.rank):
        journal.note(step)
        journal.notes["batches"] = google_crc32c.extend(journal.notes.get("batches", 0), step.batch["draw"].to_bytes(4, "big"))
        table.note(step.done)
        meter.add(step)
        tally.note(step.batch)
        for failure in bad.note(step.batch):
            worker.say(f"could not be read and was replaced: {failure}")
        last = step.done == config.optim.steps
        if step.done % config.sampler.interval == 0:
            exchange.publish(measure_difficulty(step.done // config.sampler.interval, task, worker, journal))
        if step.done % config.record_every == 0 or last:
            more = {"lr": config.optim.lr_at(step.done - 1), "allreduce_s": allreduce_s(model)}
            more |= difficulty_figures(config.sampler, step.batch["version"], journal)
            entry = journal.record(meter.read(config.sampler.batch) | more, config.optim.steps, config.sampler.batch)
            worker.record(entry, tally.counts)
        if (config.evaluate_every and step.done % config.evaluate_every == 0) or last:
            evaluate(config, worker, data, task, journal)
        if step.done % config.checkpoint_every == 0 or last:
            write = partial(write_checkpoint, task, optimiser, journal, versions=exchange.state(), data=data.index.checksum)
            shared = partial(write_share, task.head, optimiser) if isinstance(task.head, ClassParallel) else None
            save_checkpoint(worker, f"step-{step.done:08d}", write, shared=shared)
    if journal.evaluations and journal.evaluations[-1]["step"] < journal.step:  # resumed with fewer steps than it had
        evaluate(config, worker, data, task, journal)
    exchange.close()
    confusable = confusable_pairs(task, worker)
    if worker.rank == 0:
        write_results(config, run, data, task, journal, confusable)


class Exchange:
    """This rank's ends of the difficulty service: rank 0 publishes, all follow into the table. Nothing for other draws."""

    def __init__(
        self, config: SamplerConfig, worker: Worker, service: str, restored: list[Version], table: VersionTable, step: int
    ) -> None:
        self.publisher: Publisher | None = None
        self.follower: Follower | None = None
        if not config.by_difficulty:
            return
        if worker.rank == 0:
            self.publisher = Publisher(service, config.versions_alive, restored, worker.say, config.patience)
        if worker.group:
            dist.barrier()  # until the actor has begun this incarnation, it may still serve versions of the one before
        self.follower = Follower(service, config.version_at(step) - 1, table.put, Version, worker.say)

    def publish(self, version: Version) -> None:
        """Hand a version over; raises what ended the service's threads, if anything did."""
        if self.follower:
            self.follower.check()
        if self.publisher:
            self.publisher.check()
            self.publisher.publish(version)

    def state(self) -> list[list[Any]]:
        """The versions that a checkpoint needs."""
        return self.publisher.state() if self.publisher else []

    def close(self) -> None:
        """End both."""
        if self.follower:
            self.follower.close()
        if self.publisher:
            self.publisher.close()


def measure_difficulty(number: int, task: ReidTask, worker: Worker, journal: Journal) -> Version:
    """The next version of the difficulty vector, computed by all ranks together."""
    began = time.perf_counter()
    cosine, nearest = task.difficulty(worker.group)
    version = Version(number, cosine.cpu().numpy(), nearest.int().cpu().numpy())
    quantiles = np.quantile(version.cosine, np.linspace(0, 1, QUANTILES)).tolist()
    took = time.perf_counter() - began
    journal.notes.setdefault("difficulty", []).append({"step": journal.step, "seconds": took, "quantiles": quantiles})
    return version


def difficulty_figures(config: SamplerConfig, version: int, journal: Journal) -> dict[str, float]:
    """What a record tells of the vector that a step was drawn by: its number, age in steps and what that may be, seconds it took;
    and the mAP so far."""
    figures: dict[str, float] = {"version": version}
    if version:
        figures |= {"age": journal.step - version * config.interval, "due": config.interval + config.lag}
    if measured := journal.notes.get("difficulty"):
        figures["difficulty_s"] = measured[-1].get("seconds", 0.0)
    if journal.evaluations and "mAP" in journal.evaluations[-1]:  # rank 0 alone knows it
        figures["mAP"] = journal.evaluations[-1]["mAP"]
    return figures


def evaluate(config: Train, worker: Worker, data: Data, task: ReidTask, journal: Journal) -> None:
    """Note mAP and CMC on the held-out identities; all ranks embed their share."""
    if not can_retrieve(data.index):
        return
    share_buffers(task, worker.group)
    share, workers = Share(worker.rank, worker.world), config.loader.workers
    result = evaluate_retrieval(
        task.embedder, data.index, data.size, config.cache, data.etags, worker.device, share, worker.group, workers
    )
    for failure in result.bad:
        worker.say(f"could not be read and was left out of the evaluation: {failure}")
    journal.evaluations.append({"step": journal.step, **result.metrics})
    journal.notes["shown"] = result.shown
    if worker.rank == 0:
        worker.say(f"step {journal.step}: mAP {result.metrics['mAP']:.1%}, Rank-1 {result.metrics['rank1']:.1%}")


def restore(task: ReidTask, optimiser: torch.optim.Optimizer, index: Index) -> tuple[Journal, list[Version]]:
    """Load the run's latest checkpoint, if there is one: the journal, and the versions of the difficulty vector."""
    head = task.head
    if isinstance(head, ClassParallel):
        state = restore_checkpoint(partial(read_with_share, head, optimiser), partial(files_of_rows, head.first, head.end))
    else:
        state = restore_checkpoint(read_checkpoint)
    if state is None:
        return Journal(), []
    if state["data"] != index.checksum:
        raise InputError("the data set was changed since the run began", index.url, "start a new run, or put the old set back")
    task.load_state_dict(state["task"])
    optimiser.load_state_dict(state["optimiser"])
    versions = [Version(number, cosine.numpy(), nearest.numpy()) for number, cosine, nearest in state["versions"]]
    return Journal(**state["journal"]), versions


def confusable_pairs(task: ReidTask, worker: Worker) -> list[tuple[int, int, float]]:
    """The pairs of identities whose rows are closest, with their cosine; computed by all ranks together."""
    cosine, nearest = task.difficulty(worker.group)
    highest = cosine.topk(min(4 * PAIRS, len(cosine)))
    rows = zip(highest.indices.tolist(), nearest[highest.indices].tolist(), highest.values.tolist(), strict=True)
    pairs = {(min(a, b), max(a, b)): value for a, b, value in rows}
    return [(a, b, value) for (a, b), value in list(pairs.items())[:PAIRS]]


def write_results(
    config: Train, run: Run, data: Data, task: ReidTask, journal: Journal, confusable: list[tuple[int, int, float]]
) -> None:
    """Rank 0's last act: the model, the figures and what the report is made of go into the run's folder."""
    run.write_model({"embedder": task.embedder.state_dict(), "config": to_json(config), "size": list(data.size)})
    run.write_json(HISTORY, {**journal.state(), "confusable": confusable})
    metrics: dict[str, Any] = {"step": journal.step, "loss": journal.records[-1]["loss"] if journal.records else None}
    if journal.evaluations:
        metrics |= {"before": journal.evaluations[0], "after": journal.evaluations[-1]}
    metrics |= {"weights_crc32c": crc32c_of(task), "draws_crc32c": journal.draws, "batches_crc32c": journal.notes.get("batches")}
    metrics |= {"seconds": journal.seconds}
    run.write_json(METRICS, metrics)


def print_retrieval(title: str, evaluations: list[dict[str, float]]) -> None:
    """The table of retrieval figures, a row an evaluation."""
    if evaluations:
        rows = [[e["step"], *(f"{e[name]:.1%}" for name in FIGURES)] for e in evaluations]
        summary_table(f"{title}: retrieval of held-out identities", ["step", *FIGURES], rows)


class Trained(NamedTuple):
    """A run's trained embedder."""

    run: Run
    config: Train
    embedder: Embedder
    size: tuple[int, int]
    device: torch.device


def open_trained(runs: str, name: str) -> Trained:
    """The model of a run, on the GPU if there is one."""
    run = Run(absolute(runs), name)
    config = stored_config(Train, run)
    state, device = run.read_model(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    embedder = Embedder(replace(config.model, weights=""))
    embedder.load_state_dict(state["embedder"])
    height, width = state["size"]
    return Trained(run, config, embedder.to(device).eval(), (height, width), device)


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained run: mAP and CMC on a set's query and gallery."""

    name: str
    """The run."""
    runs: str = ""
    """Where runs are kept, as in training."""
    data: str = ""
    """Another shard set than the run's own."""
    workers: int = 1
    """Loader processes."""

    def run(self) -> None:
        """Evaluate here, without the cluster."""
        trained = open_trained(self.runs, self.name)
        data = open_data(replace(trained.config, data=self.data or trained.config.data))
        if not can_retrieve(data.index):
            raise InputError("the set has no query and gallery", data.index.url, f"it has: {', '.join(data.index.splits)}")
        result = evaluate_retrieval(
            trained.embedder, data.index, trained.size, trained.config.cache, data.etags, trained.device, workers=self.workers
        )
        for failure in result.bad:
            print(f"could not be read and was left out: {failure}")
        print_retrieval(f"{self.name} on {data.index.url}", [{"step": trained.run.read_json(METRICS)["step"], **result.metrics}])
        trained.run.note_evaluation(data.index.url, result.metrics)


@dataclass(frozen=True)
class Predict:
    """Rank a gallery for query images, or tell whether two images show the same identity."""

    name: str
    """The run."""
    runs: str = ""
    """Where runs are kept, as in training."""
    query: tuple[Path, ...] = ()
    """Images to look for."""
    gallery: Path | None = None
    """A folder of images to rank; without it the gallery of the run's own set."""
    top: int = 10
    """How far a ranking is told."""
    pair: tuple[Path, Path] | None = None
    """Two images: their cosine, and whether they show the same identity."""

    def run(self) -> None:
        """Predict here, without the cluster; tables on the console, JSON and a picture in the run's folder."""
        if bool(self.query) == bool(self.pair) or self.top < 1:
            raise InputError("predict takes either --query with --top of at least 1, or --pair", "", "see `predict --help`")
        from trainers.engine.retrieval_report import write_pair, write_ranking

        trained = open_trained(self.runs, self.name)
        if self.pair:
            threshold = trained.run.read_json(METRICS).get("after", {}).get("threshold")
            write_pair(trained.run, self.pair, embed_files(trained.embedder, self.pair, trained.size, trained.device), threshold)
            return
        queries = embed_files(trained.embedder, self.query, trained.size, trained.device)
        if self.gallery:
            ranking = rank_files(trained.embedder, queries, self.gallery, self.top, trained.size, trained.device)
        else:
            data = open_data(trained.config)
            ranking = rank_split(
                trained.embedder, queries, data.index, self.top, trained.size, trained.device, data.etags, trained.config.cache
            )
        write_ranking(trained.run, self.query, ranking)


@dataclass(frozen=True)
class Export:
    """Export the embedder of a trained run: ONNX or torch.export, checked for equal output."""

    name: str
    """The run."""
    to: Path
    """The file: *.onnx or *.pt2."""
    runs: str = ""
    """Where runs are kept, as in training."""

    def run(self) -> None:
        """Write the file; it takes uint8 RGB images [B, 3, H, W] and gives features [B, D]."""
        export, trained = exporter(self.to), open_trained(self.runs, self.name)
        difference = export(trained.embedder.cpu(), trained.size)
        print(f"exported {self.to}: images of {trained.size[0]}x{trained.size[1]}, greatest difference {difference:.1e}")


if __name__ == "__main__":
    verbs = {"train": Train, "evaluate": Evaluate, "predict": Predict, "export": Export}
    run_job("trainers/reid.py", __doc__ or "", verbs, partial(resumed_defaults, Train))
