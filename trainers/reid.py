"""Person re-identification with hard-identity sampling.

python trainers/reid.py                                    train on the data that the repository ships
python trainers/reid.py --data s3://bucket/market1501 --name market --cluster.workers 8
python trainers/reid.py --name market --resume             resume a run
python trainers/reid.py evaluate --name market
python trainers/reid.py predict --name market --query someone.jpg
python trainers/reid.py export --name market --to market.onnx
python trainers/reid.py compare --data ... --arms uniform proportional --seeds 0 1 2      samplers and losses, one table
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import google_crc32c
import torch

import trainers  # noqa: F401 - first, since it says so when another package called datasets was found
from cluster.difficulty_channel import DifficultyChannel, difficulty_service
from cluster.launch import connect, launch
from datasets.command_line import FLAT
from datasets.errors import InputError
from datasets.loading.batches import BatchStream, RankSlice
from datasets.sampling.difficulty_table import DifficultyTable
from trainers.engine.cli import run_job
from trainers.engine.compare import compare, compared_defaults
from trainers.engine.config import from_json, to_json
from trainers.engine.export import exporter
from trainers.engine.job import resolved, shown, start_run
from trainers.engine.optim import build_optimiser
from trainers.engine.run import HISTORY, METRICS
from trainers.engine.training import TrainingRun
from trainers.engine.verbs import OnData, OnRun, Opened, ToFile, export, open_run, print_unread
from trainers.engine.worker import Worker
from trainers.tasks.reid.comparison import Arm, arm_of, print_comparison
from trainers.tasks.reid.config import ReidConfig
from trainers.tasks.reid.data import Data, open_data
from trainers.tasks.reid.difficulty import difficulty_figures, measure_difficulty, most_confusable
from trainers.tasks.reid.model import Embedder, ReidTask
from trainers.tasks.reid.retrieval import can_retrieve, embed_files, evaluate_retrieval, print_retrieval, rank_files, rank_split
from trainers.tasks.reid.sharded_checkpoint import ShardedRows
from trainers.tasks.reid.sharded_head import ShardedHead


@dataclass(frozen=True)
class Train(ReidConfig):
    """Train a model: draw by difficulty, checkpoint, evaluate, report."""

    def run(self) -> None:
        """Check settings and data, train, write the report."""
        config = resolved(self, "reid")
        data, run = config.check(), start_run(config)
        connect(config.cluster)
        print(f"run {config.name}: {len(data.train):,} images of {len(data.train.counts):,} identities from {data.index.url}")
        versions = config.sampler.versions_alive if config.sampler.by_difficulty else 0
        with shown(run, config) as show, difficulty_service(config.cluster, config.name, run.url, versions) as service:
            settings = {"config": to_json(config), "service": service}
            launch(train_worker, settings, config.cluster, name=config.name, runs=config.runs, show=show)
        from trainers.tasks.reid.report import write_report  # here: importing Matplotlib takes 0.4 s

        print_retrieval(config.name, run.read_json(HISTORY)["evaluations"])
        write_report(run, data.train)


def train_worker(worker: Worker, settings: dict[str, Any]) -> None:
    """Train on one worker: called on each of them, and again after a failure, from the last checkpoint."""
    config = from_json(Train, settings["config"], "the driver")
    data, sampler = open_data(config.data, config.loader.size), config.sampler
    torch.manual_seed(config.seed)
    task = ReidTask(config.model, config.head, len(data.train.counts), worker.group, data.size)
    task = task.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the loader's images are
    optimiser = build_optimiser(config.optim, task)
    sharded = ShardedRows(task.head, optimiser) if isinstance(task.head, ShardedHead) else None
    run = TrainingRun(config, worker, data.index.checksum, sharded)
    run.start(task, optimiser, alone=task.alone)
    if run.fresh:
        evaluate(run, data, task)
    table = DifficultyTable(len(data.train.counts), sampler)
    channel = DifficultyChannel(
        worker, settings["service"], table.put, DifficultyChannel.restored(run.stored.get("versions", [])),
        keep=sampler.versions_alive, after=sampler.version_at(run.log.step) - 1, patience=sampler.patience,
    )  # fmt: skip
    stream = BatchStream(
        data.train, sampler, config.loader, config.augment, config.cache, table, data.etags,
        RankSlice(worker.rank, worker.world), config.seed, run.log.step, config.steps,
    )  # fmt: skip
    for step in run.steps(stream, config.optim, samples=len(data.train), table=table):
        run.log.notes["batches"] = google_crc32c.extend(run.log.notes.get("batches", 0), step.batch["draw"].to_bytes(4, "big"))
        table.note(step.done)
        if step.done % sampler.interval == 0:
            channel.publish(measure_difficulty(run, task))
        if run.record_due(step):
            run.record(step, difficulty_figures(sampler, step.batch["version"], run.log))
        if run.evaluate_due(step):
            evaluate(run, data, task)
        if run.checkpoint_due(step):
            run.save(score="mAP", versions=channel.state())
    if run.evaluation_missing:
        evaluate(run, data, task)
    channel.close()
    confusable = most_confusable(run, task)
    model = {"embedder": task.embedder.state_dict(), "config": to_json(config), "size": list(data.size)}
    run.finish(model, {"confusable": confusable}, {"batches_crc32c": run.log.notes.get("batches")})


def evaluate(run: TrainingRun, data: Data, task: ReidTask) -> None:
    """Record mAP and CMC on the held-out identities, if there are any. Every rank embeds its slice; rank 0 gets the figures."""
    if not can_retrieve(data.index):
        return
    result = evaluate_retrieval(task.embedder, data.index, data.size, run.config.cache, data.etags, **run.for_evaluation(task))
    summary = f"mAP {result.metrics['mAP']:.1%}, Rank-1 {result.metrics['rank1']:.1%}" if result.metrics else ""
    run.evaluated(result.metrics, result.bad, summary, shown=result.shown)


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnData):
    """Evaluate a trained run: mAP and CMC on the query and gallery of its own set or of another."""

    def run(self) -> None:
        """Evaluate in this process, without Ray."""
        trained = open_run(Train, self)
        data = open_data(self.data or trained.config.data, trained.config.loader.size)
        if not can_retrieve(data.index):
            raise InputError("the set has no query and gallery", data.index.url, f"it has: {', '.join(data.index.splits)}")
        embedder, size = trained_embedder(trained), trained.size
        result = evaluate_retrieval(
            embedder, data.index, size, trained.config.cache, data.etags, trained.device, workers=self.workers
        )
        print_unread(result.bad)
        print_retrieval(f"{self.name} on {data.index.url}", [{"step": trained.run.read_json(METRICS)["step"], **result.metrics}])
        trained.run.note_evaluation(data.index.url, result.metrics)


def trained_embedder(trained: Opened) -> Embedder:
    """The embedder of a run that has ended."""
    return trained.loaded(Embedder(replace(trained.config.model, weights=""), trained.size), "embedder")


@dataclass(frozen=True, kw_only=True)
class Predict(OnRun):
    """Rank a gallery for query images, or decide whether two images show the same identity."""

    query: tuple[Path, ...] = ()
    """Query images."""
    gallery: Path | None = None
    """A folder of images to rank; default: the gallery of the run's set."""
    top: int = 10
    """Gallery images listed for each query."""
    pair: tuple[Path, Path] | None = None
    """Two images to compare: prints their cosine and whether they show the same identity."""

    def run(self) -> None:
        """Print the result; store it as prediction.json and prediction.png in the run's folder."""
        if bool(self.query) == bool(self.pair) or self.top < 1:
            raise InputError("predict takes either --query with --top of at least 1, or --pair", "", "see `predict --help`")
        from trainers.tasks.reid.report import write_pair, write_ranking

        trained = open_run(Train, self)
        embedder, size = trained_embedder(trained), trained.size
        features = embed_files(embedder, self.pair or self.query, size, trained.device)
        if self.pair:
            write_pair(trained.run, self.pair, features, trained.run.read_json(METRICS).get("after", {}).get("threshold"))
            return
        if self.gallery:
            ranking = rank_files(embedder, features, self.gallery, self.top, size, trained.device)
        else:
            data = open_data(trained.config.data, size)
            ranking = rank_split(embedder, features, data.index, self.top, size, trained.device, data.etags, trained.config.cache)
        write_ranking(trained.run, self.query, ranking)


@dataclass(frozen=True, kw_only=True)
class Export(ToFile):
    """Export the embedder of a trained run: ONNX or torch.export, checked for equal output."""

    def run(self) -> None:
        """Write a model file: uint8 RGB images [B, 3, H, W] -> features [B, D]."""
        write = exporter(self.to)
        trained = open_run(Train, self)
        size = trained.size
        export(write, trained_embedder(trained), size, self.to, f"images of {size[0]}x{size[1]}")


@dataclass(frozen=True)
class Compare:
    """Train each arm with each seed, other settings equal, and print one table. Runs that have ended are not trained again.

    An arm is a sampler, or a loss with the sampler that is set. The others are compared with the first.
    """

    sets: ClassVar = ("sampler.kind", "head.kind")
    first: ClassVar = ("arms", "seeds")
    train: Train = field(default_factory=Train, metadata=FLAT)
    arms: tuple[Arm, ...] = ("uniform", "pk", "hardest", "proportional", "pairs")
    seeds: tuple[int, ...] = (0, 1, 2)

    def run(self) -> None:
        """Train the missing runs; print the table and store it as comparison.json."""
        compare(self.train, self.arms, self.seeds, self._configs, print_comparison, read=evaluations_of)

    def _configs(self, base: Train, seed: int) -> Iterator[tuple[str, Train]]:
        for arm in self.arms:
            yield arm, replace(base, **arm_of(base, arm), seed=seed, name=f"{base.name}-{arm}-{seed}")


def evaluations_of(run: Any) -> list[dict[str, float]]:
    """The figures of each evaluation after step 0; raises InputError if the set has no held-out identities."""
    evaluations: list[dict[str, float]] = run.read_json(HISTORY)["evaluations"]
    if not evaluations:
        raise InputError("nothing was held out to compare by", run.url, "pack with --held-out above 0")
    return [{name: each[name] for name in ("step", "mAP", "rank1")} for each in evaluations if each["step"]]


defaults = partial(compared_defaults, Train, Compare)  # what a verb's options default to

if __name__ == "__main__":
    verbs = {"train": Train, "evaluate": Evaluate, "predict": Predict, "export": Export, "compare": Compare}
    run_job("trainers/reid.py", __doc__ or "", verbs, defaults)
