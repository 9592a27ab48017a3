"""Settings of a re-identification run."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from cluster.config import ClusterConfig
from datasets.errors import InputError
from datasets.loading.batches import BatchStream, LoaderConfig, RankSlice, Stream
from datasets.loading.cache import CacheConfig
from datasets.loading.streamed import Places, ShardStream, StreamConfig
from datasets.media.augment import AugmentConfig
from datasets.sampling.difficulty_table import DifficultyTable
from datasets.sampling.sampler import OF_ALL, Sampler, SamplerConfig
from datasets.shards.index import check_shards
from datasets.shards.tar import INDEX, names_tars
from trainers.engine.config import ADDRESS, ALLOWED, HARMLESS, allowed
from trainers.engine.job import JobConfig
from trainers.engine.optim import OptimConfig
from trainers.tasks.backbones import try_model
from trainers.tasks.reid.data import Data, StreamedData, open_data, stream_data
from trainers.tasks.reid.evaluation_config import EvaluationConfig
from trainers.tasks.reid.head_config import HeadConfig, PairConfig
from trainers.tasks.reid.model import Embedder, ModelConfig
from trainers.tasks.reid.presets import PRESETS


@dataclass(frozen=True)
class ReidConfig(JobConfig):
    """Settings of a re-identification run."""

    first: ClassVar = (
        "data",
        *JobConfig.first,
        "sampler.kind",
        "head.kind",
        "model.backbone",
        "optim.steps",
        "optim.lr",
    )
    presets: ClassVar = PRESETS
    data: tuple[str, ...] = field(default=(), metadata=ADDRESS)
    """Shard sets, which are joined: folders or s3://bucket/prefix; none: the Omniglot subset that comes with the repository.
    Or tar files without an index, streamed as they are: s3://bucket/set-{000..146}.tar (docs/loading.md)."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    cache: CacheConfig = field(default_factory=CacheConfig, metadata=HARMLESS)
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    pair: PairConfig = field(default_factory=PairConfig)
    optim: OptimConfig = field(default_factory=OptimConfig, metadata=allowed("steps", "lr", "warmup"))
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig, metadata=ALLOWED)
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=HARMLESS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if "" in self.data:
            raise InputError("an empty address", "data", "give folders or s3://bucket/prefix, or leave the option out")
        if self.streamed:
            self._check_streamed()
        self.cluster.check_divisible(self.sampler.batch, "sampler.batch")
        for workers in self.cluster.sizes:  # an elastic run may have any of them
            self.sampler.check_world(workers)
        self.optim.check_parts(self.sampler.batch, self.cluster.sizes, self.sampler.unit)
        apart = max(self.cluster.sizes) if self.optim.sync_batch_norm is False else 1
        if self.sampler.batch < 2 * apart * self.optim.accumulate:
            raise InputError("batch norm needs two samples at a time", "sampler.batch", "raise it, or lower --optim.accumulate")
        if self.pair.kind != "none" and self.sampler.kind not in ("uniform", "hardest") and self.sampler.each == 1:
            what = f"a pair loss needs several samples of an identity, and '{self.sampler.kind}' draws one"
            remedy = (
                "give --sampler.instances 4"
                if self.sampler.kind in OF_ALL
                else "give --sampler.kind pk, or --sampler.instances 4"
            )
            raise InputError(what, "pair.kind", remedy)

    @staticmethod
    def upgraded(settings: dict[str, Any]) -> dict[str, Any]:
        """The settings of a run of an earlier version in today's form: the triplet loss was in ``head``, the set a text."""
        head = dict(settings.get("head", {}))
        weight, margin = head.pop("triplet", 0), head.pop("triplet_margin", None)
        pair = {"pair": {"kind": "triplet", "weight": weight, "margin": margin}} if weight else {}
        data = settings.get("data")
        sets = {"data": (data,) if data else ()} if isinstance(data, str) else {}
        return {**settings, **({"head": head} if head else {}), **pair, **sets}

    @property
    def batch(self) -> int:
        """Samples of a global batch."""
        return self.sampler.batch

    @property
    def streamed(self) -> bool:
        """Whether the data are tar files without an index."""
        return any(names_tars(url) for url in self.data)

    def _check_streamed(self) -> None:
        """Raises InputError if a setting needs an index."""
        where = " ".join(self.data)
        if self.sampler.kind != "uniform" or self.sampler.weights:
            what = f"streamed shards cannot be drawn by '{self.sampler.kind}'{', with weights' if self.sampler.weights else ''}"
            raise InputError(what, where, f"give --sampler.kind uniform alone; or {INDEX}")
        if self.augment.patch:
            what = "--augment.patch cuts from images drawn at random, which streamed shards do not allow"
            raise InputError(what, where, f"leave it out; or {INDEX}")
        if self.stream.identities < 2:
            remedy = f"give --stream.identities, 2 or more; or {INDEX}"
            raise InputError("nobody knows the number of identities of streamed shards", where, remedy)

    def open(self) -> Data | StreamedData:
        """Open the data; every worker opens them by itself. Raises InputError."""
        if self.streamed:
            return stream_data(self.data, self.loader.size, self.stream)
        return open_data(self.data, self.loader.size)

    def batches(self, data: Data | StreamedData, table: DifficultyTable, part: RankSlice, places: Places, start: int) -> Stream:
        """The batches of one rank from step ``start`` on. ``places``: how far streamed shards are read."""
        loader, augment = self.loader, self.augment
        if isinstance(data, StreamedData):
            return ShardStream(data.shards, self.stream, self.batch, loader, augment, places, self.seed, start, self.steps)
        return BatchStream(
            data.train, self.sampler, loader, augment, self.cache, table, data.etags, part, self.seed, start, self.steps
        )

    def check(self) -> Data | StreamedData:
        """Open the data and check data, sampler and model before the run starts; raises InputError."""
        data = self.open()
        for part in data.parts:
            check_shards(part)
        if isinstance(data, Data):
            Sampler(self.sampler, data.train, self.seed)
        try_model(
            self.model.backbone, self.model.weights, lambda: Embedder(self.model, data.size), torch.zeros(2, 3, *data.size),
            always=self.model.pooling != "own",
        )  # fmt: skip
        return data
