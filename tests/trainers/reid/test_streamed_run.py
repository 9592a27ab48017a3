"""Re-identification on tars that nobody indexed: trained, killed, resumed exactly; and what it cannot do, said in one line."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs import LOCAL, KilledError, killed_after
from pictures import Files, jpeg, tarred

from cluster.config import ClusterConfig
from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig
from datasets.loading.streamed import StreamConfig
from datasets.media.augment import AugmentConfig
from datasets.sampling.sampler import SamplerConfig
from trainers.engine.optim import OptimConfig
from trainers.engine.run import Run
from trainers.reid import Clean, Evaluate, Predict, Train
from trainers.tasks.reid.model import ModelConfig

IDENTITIES, STEPS = 6, 12
TIMES = {"seconds"}  # what may differ between equal runs


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, number = tmp_path_factory.mktemp("tars"), 0
    for shard in range(4):
        files = Files()
        for _ in range(10 + shard):
            files |= {f"{number:04d}.jpg": jpeg(number, 16, 8), f"{number:04d}.cls": str(number % IDENTITIES).encode()}
            number += 1
        tarred(root / f"set-{shard}.tar", files)
    return root


def short(tars: Path, runs: Path, name: str = "run", workers: int = 1, **how: Any) -> Train:
    settings = {
        "data": (f"{tars}/set-{{0..2}}.tar", f"{tars}/set-3.tar"), "sampler": SamplerConfig("uniform", batch=8), "cluster": LOCAL,
        "stream": StreamConfig(IDENTITIES, shuffle=4), **how,
    }  # fmt: skip
    return Train(
        name=name, runs=str(runs), checkpoint_every=5, record_every=1, optim=OptimConfig(steps=STEPS, warmup=0),
        loader=LoaderConfig(workers, size=(32, 16)), model=ModelConfig("usermodels:backbone"), **settings,
    )  # fmt: skip


def metrics(train: Train) -> dict[str, Any]:
    found = Run(train.runs, train.name).read_json("metrics.json")
    return {name: value for name, value in found.items() if name not in TIMES}


@pytest.fixture(scope="module")
def whole(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    train = short(tars, tmp_path_factory.mktemp("runs"))
    train.run()
    return train


def test_a_killed_run_goes_on_exactly(tars: Path, whole: Train, tmp_path: Path) -> None:
    killed = short(tars, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        killed_after("step-00000005", patch)
        with pytest.raises(KilledError):
            killed.run()
    replace(killed, resume=True).run()
    assert metrics(killed) == metrics(whole)
    assert metrics(whole)["step"] == STEPS


def test_with_another_number_of_loaders_it_says_that_the_batches_differ(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = short(tars, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        killed_after("step-00000005", patch)
        with pytest.raises(KilledError):
            killed.run()
    replace(killed, resume=True, loader=replace(killed.loader, workers=2)).run()
    assert "another number of loader processes: goes on after " in capsys.readouterr().out
    assert metrics(killed)["step"] == STEPS


def test_its_report_has_curves_and_what_it_was_trained_on(whole: Train) -> None:
    report = Run(whole.runs, whole.name).read_text("report.html")
    assert f"4 shards, streamed, of {IDENTITIES} identities" in report
    assert "Training" in report


def test_a_resumed_run_notices_other_shards(tars: Path, tmp_path: Path) -> None:
    own = shutil.copytree(tars, tmp_path / "tars")
    killed = short(own, tmp_path / "runs")
    with pytest.MonkeyPatch.context() as patch:
        killed_after("step-00000005", patch)
        with pytest.raises(KilledError):
            killed.run()
    tarred(own / "set-3.tar", {f"{n}.jpg": jpeg(n, 16, 8) for n in range(30)})
    with pytest.raises(InputError, match=r"the data were changed since the run began: .*set-\{0..2\}.tar"):
        replace(killed, resume=True).run()


def test_it_is_evaluated_on_a_set_with_an_index(whole: Train) -> None:
    Evaluate(name=whole.name, runs=whole.runs, data=("",)).run()  # the shipped set
    (figures,) = metrics(whole)["evaluations"].values()
    assert 0 < figures["mAP"] < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sampler": SamplerConfig(batch=8)},
            r"cannot be drawn by 'proportional': .*give --sampler.kind uniform.*datasets.index",
        ),
        ({"sampler": SamplerConfig("uniform", batch=8, weights=(1, 1))}, r"'uniform', with weights: .*datasets.index"),
        ({"stream": StreamConfig()}, r"nobody knows the number of identities of streamed shards: .*give --stream.identities"),
        ({"augment": AugmentConfig(patch=0.5)}, r"augment.patch .*leave it out; or index the shards"),
    ],
)
def test_settings_that_need_an_index_are_refused(tars: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        short(tars, tmp_path, **changes)


def test_a_set_and_tars_are_not_joined(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a shard set and streamed tar files cannot be joined: /set; index all shards"):
        short(tars, tmp_path, data=(f"{tars}/set-3.tar", "/set")).run()


@pytest.mark.parametrize("verb", [Evaluate, Clean, Predict])
def test_verbs_that_need_an_index_say_so(whole: Train, tars: Path, tmp_path: Path, verb: type[Any]) -> None:
    options = {"query": (_picture(tmp_path),)} if verb is Predict else {}
    data = {"data": ""} if verb is Clean else {}
    with pytest.raises(InputError, match=r"an index is needed here: .*tar; index the shards with `python -m datasets.index`"):
        verb(name=whole.name, runs=whole.runs, **options, **({"data": whole.data[1]} if data else {})).run()


def _picture(folder: Path) -> str:
    (folder / "someone.jpg").write_bytes(jpeg(1, 16, 8))
    return str(folder / "someone.jpg")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_workers_stream_and_a_run_goes_on_with_another_number(tars: Path, tmp_path: Path) -> None:
    train = short(tars, tmp_path, cluster=ClusterConfig(workers=2))
    replace(train, optim=OptimConfig(steps=10, warmup=0)).run()
    replace(train, resume=True, cluster=LOCAL).run()
    assert metrics(train)["step"] == STEPS
