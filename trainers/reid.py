"""Person re-identification with hard-identity sampling.

python trainers/reid.py                                    train on the data that the repository ships
python trainers/reid.py --data s3://bucket/market1501 --name market --cluster.workers 8
python trainers/reid.py --name market --resume             resume a run
python trainers/reid.py evaluate --name market --data s3://bucket/market1501 s3://bucket/msmt17
python trainers/reid.py predict --name market --query someone.jpg
python trainers/reid.py export --name market --to market.onnx
python trainers/reid.py clean --name market                suspected label faults of its training set, to accept or reject
python trainers/reid.py compare --data ... --arms uniform proportional --seeds 0 1 2      samplers and losses, one table
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import google_crc32c
import torch
from torch import nn

import trainers  # noqa: F401 - first, since it says so when another package called datasets was found
from cluster.difficulty_channel import DifficultyChannel, difficulty_service
from cluster.launch import claimed, connect, launch
from datasets.command_line import FLAT
from datasets.errors import InputError
from datasets.loading.batches import RankSlice
from datasets.loading.store import shard_etags
from datasets.loading.streamed import Places
from datasets.sampling.difficulty_table import DifficultyTable
from trainers.engine.cli import run_job
from trainers.engine.compare import compare, compared_defaults
from trainers.engine.config import from_json, to_json
from trainers.engine.distributed import gathered
from trainers.engine.export import exporter, random_images
from trainers.engine.inputs import image_files
from trainers.engine.job import config_of_named, resolved, shown, start_run
from trainers.engine.optim import build_optimiser
from trainers.engine.run import HISTORY, METRICS
from trainers.engine.training import TrainingRun
from trainers.engine.verbs import OnData, OnRun, OnSets, Opened, ToFile, export, open_run, print_unread
from trainers.engine.worker import Worker
from trainers.tasks.reid.comparison import Arm, arm_of, evaluations_of, print_comparison
from trainers.tasks.reid.config import ReidConfig
from trainers.tasks.reid.data import Data, StreamedData, open_index
from trainers.tasks.reid.difficulty import difficulty_figures, measure_difficulty, most_confusable
from trainers.tasks.reid.evaluation import evaluate_set, evaluated_parts, evaluated_sets, main_figure
from trainers.tasks.reid.evaluation_config import EvaluationConfig
from trainers.tasks.reid.figures import joined_figures, print_evaluations, print_verification, rows_of_sets, summary_of
from trainers.tasks.reid.model import Embedder, ReidTask
from trainers.tasks.reid.retrieval import FlipTest, embed_files, rank_files, rank_split
from trainers.tasks.reid.sharded_checkpoint import ShardedRows
from trainers.tasks.reid.sharded_head import ShardedHead
from trainers.tasks.reid.tracker_export import for_boxmot, random_crops


@dataclass(frozen=True)
class Train(ReidConfig):
    """Train a model: draw by difficulty, checkpoint, evaluate, report."""

    def run(self) -> None:
        """Check settings and data, train, write the report."""
        config = resolved(self, "reid")
        data, run = config.check(), start_run(config)
        connect(config.cluster)
        print(f"run {config.name}: {data} from {data.url}")
        versions = config.sampler.versions_alive if config.sampler.by_difficulty else 0
        with (
            claimed(config.cluster, config.name, config.runs, config.resume_from) as folder,
            shown(run, config) as show,
            difficulty_service(config.cluster, config.name, run.url, versions) as service,
        ):
            launch(train_worker, {"config": to_json(config), "service": service}, config.cluster, folder, show)
        from trainers.tasks.reid.report import write_report  # here: importing Matplotlib takes 0.4 s

        evaluations = run.read_json(HISTORY)["evaluations"]
        print_evaluations(f"{config.name}: held-out identities", "step", evaluations)
        print_evaluations(f"{config.name}: held-out identities of each set, after training", "set", rows_of_sets(evaluations))
        write_report(run, data)


def train_worker(worker: Worker, settings: dict[str, Any]) -> None:
    """Train on one worker: called on each of them, and again after a failure, from the last checkpoint."""
    config = from_json(Train, settings["config"], "the driver")
    data, sampler = config.open(), config.sampler
    torch.manual_seed(config.seed)
    task = ReidTask(config.model, config.head, data.identities, worker.group, config.pair, data.size)
    task = task.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the loader's images are
    optimiser = build_optimiser(config.optim, task)
    sharded = ShardedRows(task.head, optimiser) if isinstance(task.head, ShardedHead) else None
    run = TrainingRun(config, worker, data.checksum, sharded, score=main_figure(data.parts))
    run.start(task, optimiser, alone=task.alone, ema=config.optim.ema, keep=task.embedder)
    if run.fresh:
        evaluate(run, data)
    table = DifficultyTable(data.identities, sampler)
    channel = DifficultyChannel(
        worker, settings["service"], table.put, DifficultyChannel.restored(run.stored.get("versions", [])),
        keep=sampler.versions_alive, after=sampler.version_at(run.log.step) - 1, patience=sampler.patience,
    )  # fmt: skip
    part = RankSlice(worker.rank, worker.world)
    places = Places.of(run.stored.get("read"), part, config.loader.workers)
    if run.stored.get("read") and not places.readers and worker.rank == 0:
        worker.say(f"another number of loader processes: goes on after {places.first:,} shards, with other batches")
    stream = config.batches(data, table, part, places, run.log.step)
    task.prepare(run.log.step)
    for step in run.steps(stream, config.optim, samples=data.samples, table=table):
        task.prepare(step.done)
        places.note(step.batch)
        run.log.notes["batches"] = google_crc32c.extend(run.log.notes.get("batches", 0), step.batch["draw"].to_bytes(4, "big"))
        table.note(step.done)
        if step.done % sampler.interval == 0:
            channel.publish(measure_difficulty(run, task, step))
        if run.record_due(step):
            run.record(step, difficulty_figures(sampler, step.batch["version"], run.log))
        if run.evaluate_due(step):
            evaluate(run, data)
        if run.checkpoint_due(step):
            run.save(versions=channel.state(), read=places.state(lambda own: gathered(own.to(worker.device), worker.group)))
    if run.evaluation_missing:
        evaluate(run, data)
    channel.close()
    confusable = most_confusable(run, task)
    model = {"embedder": run.kept.state_dict(), "config": to_json(config), "size": list(data.size)}
    run.finish(model, {"confusable": confusable}, {"batches_crc32c": run.log.notes.get("batches")})


def evaluate(run: TrainingRun, data: Data | StreamedData) -> None:
    """Record the figures of the held-out identities, if there are any; of several sets, the first set's are the run's.

    Every rank embeds its slice; rank 0 gets the figures.
    """
    if not (sets := evaluated_parts(data.parts)):
        return
    config, where = run.config, run.for_evaluation(run.kept)
    results = [
        evaluate_set(run.kept, index, data.size, config.cache, data.etags, config=config.evaluation, **where) for index in sets
    ]
    figures = joined_figures({index.url: result.metrics for index, result in zip(sets, results, strict=True)})
    run.evaluated(figures, [bad for result in results for bad in result.bad], summary_of(figures), shown=results[0].shown)


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnSets):
    """Evaluate a trained run on its own set or on others: one table, with a row for each set."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig, metadata=FLAT)

    def run(self) -> None:
        """Print the figures of each set, and store them in the run's metrics.json. Runs in this process, without Ray."""
        trained, rows = open_run(Train, self), []
        sets = evaluated_sets(self.data, trained.config.data)  # all of them first: a wrong one is an error
        embedder, cache = trained_embedder(trained), trained.config.cache
        for index in sets:
            result = evaluate_set(
                embedder, index, trained.size, cache, shard_etags(index), trained.device, self.evaluation, workers=self.workers
            )
            print_unread(result.bad)
            trained.run.note_evaluation(index.url, result.metrics)
            rows.append({"set": index.url, **result.metrics})
        title = f"{self.name}, step {trained.run.read_json(METRICS)['step']:,}"
        print_evaluations(title, "set", rows)
        print_verification(title, "set", rows)


def trained_embedder(trained: Opened) -> Embedder:
    """The embedder of a run that has ended."""
    return trained.loaded(Embedder(replace(trained.config.model, weights=""), trained.size), "embedder")


@dataclass(frozen=True, kw_only=True)
class Predict(OnRun):
    """Rank a gallery for query images, or decide whether two images show the same identity."""

    query: tuple[str, ...] = ()
    """Query images, local or in S3."""
    gallery: str = ""
    """A folder of images to rank, or its s3:// address; default: the gallery of the run's set, of several the first."""
    top: int = 10
    """Gallery images listed for each query."""
    pair: tuple[str, str] | None = None
    """Two images to compare: prints their cosine and whether they show the same identity."""

    def run(self) -> None:
        """Print the result; store it as prediction.json and prediction.png in the run's folder."""
        if bool(self.query) == bool(self.pair) or self.top < 1:
            raise InputError("predict takes either --query with --top of at least 1, or --pair", "", "see `predict --help`")
        from trainers.tasks.reid.report import write_pair, write_ranking

        trained = open_run(Train, self)
        embedder: nn.Module = trained_embedder(trained)
        if trained.config.evaluation.flip:  # by such features the run's threshold was chosen
            embedder = FlipTest(embedder)
        size = trained.size
        with image_files(self.pair or self.query) as asked:
            if self.pair and len(asked) != 2:
                raise InputError("a pair is two images", " ".join(self.pair), "give two files")
            features = embed_files(embedder, asked, size, trained.device)
            if self.pair:
                write_pair(trained.run, asked, features, trained.run.read_json(METRICS).get("after", {}).get("threshold"))
                return
            if self.gallery:
                with image_files([self.gallery]) as files:
                    ranking = rank_files(embedder, features, files, self.top, size, trained.device)
            else:
                index = open_index(next(iter(trained.config.data), ""))
                etags, cache = shard_etags(index), trained.config.cache
                ranking = rank_split(embedder, features, index, self.top, size, trained.device, etags, cache)
            write_ranking(trained.run, asked, ranking)


@dataclass(frozen=True, kw_only=True)
class Export(ToFile):
    """Export the embedder of a trained run: ONNX or torch.export, checked for equal output."""

    format: Literal["bytes", "boxmot"] = "bytes"
    """The input: RGB images as bytes, or as BoxMOT's trackers pass them to a model (docs/reid.md)."""

    def run(self) -> None:
        """Write a model file: RGB images [B, 3, H, W], uint8 or (boxmot) normalised float32 -> features [B, D]."""
        write = exporter(self.to, inputs=random_crops if self.format == "boxmot" else random_images)
        trained = open_run(Train, self)
        embedder, size = trained_embedder(trained), trained.size
        model = for_boxmot(embedder, self.to, size) if self.format == "boxmot" else embedder
        export(write, model, size, self.to, f"images of {size[0]}x{size[1]}")


@dataclass(frozen=True, kw_only=True)
class Clean(OnData):
    """Find suspected label faults in the training set of a run: identities that are one, that are two, and wrong images."""

    accept: float = 0.9
    """Probability from which a suspicion is accepted before anyone has looked at it."""
    top: int = 50
    """Suspicions of each kind that the page shows."""

    def run(self) -> None:
        """Write decisions.csv and clean.html to the run's folder; print a table and the next command. Runs without Ray."""
        if not 0 < self.accept <= 1 or self.top < 1:
            raise InputError("clean takes --accept above 0 and up to 1, and --top of at least 1", "", "see `clean --help`")
        # here: it imports SciPy and Matplotlib's drawing, half a second in the way of every start
        from trainers.tasks.reid.cleaning import cleaned_set, embedded_training, print_findings, suspected, write_findings

        trained = open_run(Train, self)
        train = cleaned_set(self.data, trained.config.data)
        embedder, cache = trained_embedder(trained), trained.config.cache
        found, bad = embedded_training(embedder, train, trained.size, cache, trained.device, self.workers)
        print_unread(bad)
        findings = suspected(found, train, self.accept)
        write_findings(trained.run, train, findings, self.top)
        print_findings(trained.run, train, findings)


@dataclass(frozen=True)
class Compare:
    """Train each arm with each seed, other settings equal, and print one table. Runs that have ended are not trained again.

    An arm is a sampler, or a loss with the sampler that is set. The others are compared with the first.
    """

    sets: ClassVar = ("sampler.kind", "head.kind")
    first: ClassVar = ("arms", "seeds", "jobs")
    train: Train = field(default_factory=Train, metadata=FLAT)
    arms: tuple[Arm, ...] = ("uniform", "pk", "hardest", "proportional", "pairs")
    seeds: tuple[int, ...] = (0, 1, 2)
    jobs: int = 1
    """Runs that are trained at once."""

    def run(self) -> None:
        """Train the missing runs; print the table and store it as comparison.json."""
        compare(
            self.train, self.arms, self.seeds, self._configs, print_comparison,
            jobs=self.jobs, connect=connect, curves={"mAP": "mAP", "rank1": "rank 1"}, read=evaluations_of,
        )  # fmt: skip

    def _configs(self, base: Train, seed: int) -> Iterator[tuple[str, Train]]:
        for arm in self.arms:
            yield arm, replace(base, **arm_of(base, arm), seed=seed, name=f"{base.name}-{arm}-{seed}")


def defaults(verb: str, arguments: list[str]) -> Any:
    """What a verb's options default to; those of ``evaluate``: how the run was evaluated in training."""
    if verb != "evaluate":
        return compared_defaults(Train, Compare, verb, arguments)
    stored = config_of_named(Train, arguments)
    return stored and Evaluate(name=stored.name, evaluation=stored.evaluation)


if __name__ == "__main__":
    verbs = {"train": Train, "evaluate": Evaluate, "predict": Predict, "export": Export, "clean": Clean, "compare": Compare}
    run_job("trainers/reid.py", __doc__ or "", verbs, defaults)
