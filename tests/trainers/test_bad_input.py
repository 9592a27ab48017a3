"""What is wrong with the input is said before anything is started or written: one line, exit code 2."""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from boxdata import put_voc
from s3server import S3Server

from cluster.config import ClusterConfig
from datasets.errors import run_main
from datasets.loading.batches import LoaderConfig
from datasets.media.augment import AugmentConfig
from datasets.pack import Options, pack
from datasets.sampling.sampler import SamplerConfig
from trainers.actions import Train as ActionsTrain
from trainers.attributes import Train as AttributesTrain
from trainers.detection import Train as DetectionTrain
from trainers.engine.optim import OptimConfig
from trainers.reid import Train
from trainers.tasks.reid.model import ModelConfig


def images(folder: Path, identities: int, each: int) -> Path:
    rng = np.random.default_rng(0)
    for identity in range(identities):
        home = folder / f"{identity:03d}"
        home.mkdir(parents=True)
        for number in range(each):
            cv2.imwrite(str(home / f"{number}.png"), rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    pack("folders", images(folder / "images", 10, 8), str(folder / "set"), Options(held_out=0))
    return folder / "set"


def refused(train: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr that a command ends with, at exit code 2."""
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: train().run())
    assert ended.value.code == 2
    out = capsys.readouterr()
    assert out.err.count("\n") == 1
    assert out.out == ""
    return out.err


def test_a_set_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = str(tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        line = refused(lambda name=name: Train(data=(str(tmp_path / name),), runs=runs), capsys)
        assert f"{tmp_path / name}; is the address right?" in line
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "train-000000.tar").write_bytes(b"")
    assert "index it with" in refused(lambda: Train(data=(str(tmp_path / "half"),), runs=runs), capsys)
    (tmp_path / "half" / "_packing").mkdir()
    (tmp_path / "half" / "_packing" / "begun").touch()
    assert "run the same pack again" in refused(lambda: Train(data=(str(tmp_path / "half"),), runs=runs), capsys)
    assert not (tmp_path / "runs").exists()


def test_shards_that_do_not_match_their_index(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torn = shutil.copytree(whole, tmp_path / "torn")
    shard = torn / "train-000000.tar"
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(1000)
    line = refused(lambda: Train(data=(str(torn),), sampler=SamplerConfig(batch=16)), capsys)
    assert f"the shard has 1000 bytes and its index says {size}: {shard}" in line
    shard.unlink()
    assert f"missing: {shard}" in refused(lambda: Train(data=(str(torn),), sampler=SamplerConfig(batch=16)), capsys)
    samples = torn / "index" / "samples.parquet"
    samples.write_bytes(samples.read_bytes()[:-1] + b"x")
    assert f"does not match its checksum: {samples}" in refused(lambda: Train(data=(str(torn),)), capsys)
    (torn / "index.json").write_text("{")
    assert "not a JSON document" in refused(lambda: Train(data=(str(torn),)), capsys)


def test_a_set_that_cannot_fill_the_batches(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(data: Path, **sampler: Any) -> Train:
        return Train(data=(str(data),), runs=str(tmp_path / "runs"), sampler=SamplerConfig(**sampler))

    assert "the batch of 128 is larger than the data (80 samples)" in refused(lambda: train(whole, batch=128), capsys)
    assert "pk draws 16 different identities and there are 10" in refused(lambda: train(whole, kind="pk", batch=64), capsys)
    line = refused(lambda: train(whole, batch=62, instances=4, uniform_share=0.5), capsys)
    assert "31 of 62 samples are drawn by 'proportional', 4 at a time" in line
    assert "cannot be divided evenly among 2 workers" in refused(lambda: train(whole, kind="uniform", batch=33), capsys)
    line = refused(lambda: train(whole, kind="pk", batch=12), capsys)
    assert "'pk' draws 4 samples together, which 2 workers with 6 each would separate: sampler.batch; " in line
    elastic = ClusterConfig(workers=4, fewest=3)  # 24 go among three and four, but of pairs of two, no whole ones among four
    pairs = SamplerConfig(kind="pairs", batch=24, instances=2, uniform_share=0.5)
    assert "which 4 workers with 6 each" in refused(lambda: Train(data=(str(whole),), sampler=pairs, cluster=elastic), capsys)
    pack("folders", images(tmp_path / "few", 5, 1), str(tmp_path / "singles"), Options(held_out=0))
    line = refused(lambda: train(tmp_path / "singles", kind="pk", batch=4, instances=2), capsys)
    assert "needs two samples of an identity, and '000' has one" in line
    pack("folders", images(tmp_path / "two", 2, 4), str(tmp_path / "one"), Options(held_out=0.5))
    assert "only 1 identity to train on" in refused(lambda: train(tmp_path / "one", batch=2, kind="uniform"), capsys)
    assert not (tmp_path / "runs").exists()


def test_backbones_and_weights_that_do_not_fit(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(*model: Any, **others: Any) -> str:
        return refused(
            lambda: Train(
                data=(str(whole),), runs=str(tmp_path / "runs"), sampler=SamplerConfig(batch=16),
                loader=LoaderConfig(size=(16, 16)), model=ModelConfig(*model, **others),
            ),
            capsys,
        )  # fmt: skip

    assert f"no such file of weights: {tmp_path / 'w.pt'}" in line(weights=str(tmp_path / "w.pt"))
    torch.save({"of.another": torch.zeros(3)}, tmp_path / "w.pt")
    assert "only 0 of the backbone's" in line(weights=str(tmp_path / "w.pt"))
    assert "timm has no such model: timm/resnet51" in line("timm/resnet51")
    assert "2 stripes of a feature map of 1 rows" in line(pooling="stripes", parts=2)
    assert "the backbone has no class token" in line(pooling="token")
    assert not (tmp_path / "runs").exists()


def test_domains_that_cannot_fill_the_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack("voc", put_voc(tmp_path / "s", 6), str(tmp_path / "source"), Options(held_out=0))
    pack("voc", put_voc(tmp_path / "t", 3, seed=1), str(tmp_path / "target"), Options(held_out=0))
    urls = {"source": str(tmp_path / "source"), "target": str(tmp_path / "target")}
    line = refused(lambda: DetectionTrain(**urls, runs=str(tmp_path / "runs"), batch=4, side=48), capsys)
    assert f"the batch of 4 is larger than the data (3 training images): {tmp_path}/target" in line
    line = refused(lambda: DetectionTrain(**urls, runs=str(tmp_path / "runs"), batch=8, side=48), capsys)
    assert f"(6 training images): {tmp_path}/source" in line
    assert DetectionTrain(**urls, batch=4, side=48, arm="source").check()  # which draws nothing of the target
    assert not (tmp_path / "runs").exists()


def test_settings_that_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    from trainers.tasks.reid.head_config import HeadConfig, PairConfig
    from trainers.tasks.reid.model import ModelConfig

    assert "unknown backbone: resnet5; did you mean" in refused(lambda: Train(model=ModelConfig(backbone="resnet5")), capsys)
    assert "give at least 1" in refused(lambda: Train(sampler=SamplerConfig(batch=0)), capsys)
    assert "8 pixels or more" in refused(lambda: Train(loader=LoaderConfig(size=(4, 64))), capsys)
    assert "margin" in refused(lambda: Train(head=HeadConfig(margin=-1)), capsys)
    assert "no cosines to filter by" in refused(lambda: Train(head=HeadConfig("softmax", filter=0.4)), capsys)
    assert "give --sampler.kind pk" in refused(lambda: Train(pair=PairConfig("circle")), capsys)
    for kind in ("pk", "neighbours"):
        line = refused(lambda kind=kind: Train(pair=PairConfig("circle"), sampler=SamplerConfig(kind, instances=1)), capsys)
        assert f"several samples of an identity, and '{kind}' draws one: pair.kind; give --sampler.instances 4" in line
    line = refused(lambda: Train(sampler=SamplerConfig("neighbours", batch=40)), capsys)
    assert "a batch of 40 is not 4 neighbourhoods of two or more identities x 4 samples: sampler.batch; choose " in line
    assert "not a name for a run" in refused(lambda: Train(name="../etc"), capsys)
    parts, pk, few = OptimConfig(accumulate=4), SamplerConfig("pk", batch=24), SamplerConfig("uniform", batch=4)
    line = refused(lambda: Train(sampler=pk, optim=parts, cluster=ClusterConfig(workers=1)), capsys)
    assert "the 24 samples of a worker, 4 drawn together, cannot be divided into 4 equal parts: optim.accumulate; make " in line
    line = refused(lambda: Train(sampler=few, optim=parts, cluster=ClusterConfig(workers=1)), capsys)
    assert "batch norm needs two samples at a time: sampler.batch; raise it, or lower --optim.accumulate" in line
    assert "cannot be divided into 4" in refused(lambda: ActionsTrain(batch=6, optim=parts), capsys)
    assert "optim.accumulate is set" in refused(lambda: DetectionTrain(optim=parts), capsys)
    assert "augment.patch is set" in refused(lambda: DetectionTrain(augment=AugmentConfig(patch=0.1)), capsys)
    assert "optim.accumulate is set" in refused(lambda: AttributesTrain(optim=parts), capsys)


def test_storage_that_refuses(s3_server: S3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3_server.make_bucket("bad-input")
    line = refused(lambda: Train(data=("s3://nowhere-at-all/x",)), capsys)
    assert "nowhere-at-all" in line
    assert f"{bucket}/none" in refused(lambda: Train(data=(f"{bucket}/none",)), capsys)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    line = refused(lambda: Train(data=(f"{bucket}/none",)), capsys)
    assert "credentials" in line
    assert "planted-secret" not in line
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert "127.0.0.1" in refused(lambda: Train(data=(f"{bucket}/none",)), capsys)


@pytest.mark.usefixtures("cluster")
def test_runs_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: Train(runs="/proc/nowhere", name="a").run())
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: the records cannot be read or written (no such file or directory): /proc/nowhere/a; "
        "check the path, its permissions and free space\n"
    )
