"""What a sweep draws: every trial is a valid config of the job, and what is switched off stays off."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import LOCAL, STEPS, face_run, sequence_run

from cluster.errors import ClusterError
from cluster.sweep import SweepConfig
from datasets.errors import InputError
from datasets.pack import Options, pack
from trainers import actions, attributes, detection, reid, sequences
from trainers.engine.config import changed, to_json
from trainers.engine.optim import OptimConfig
from trainers.spaces import SPACES, check_space, ends, space_of
from trainers.sweep import Sweep, main, run_trial, shown
from trainers.tasks.attributes.curriculum import StageConfig
from trainers.tasks.attributes.losses import TASKS, Weights
from trainers.tasks.detection.adaptation import AlignConfig
from trainers.tasks.reid.head_config import HeadConfig

STAGES = ("stage1", "stage2", "stage3")
weights = st.lists(st.sampled_from([0.0, 0.05, 1.0]), min_size=len(TASKS), max_size=len(TASKS))
stages = st.builds(
    lambda values, least, more, lr: attributes.Stage(least=least, most=least + more, lr=lr, weights=Weights(*values)),
    weights, st.integers(1, 9), st.integers(0, 9), st.sampled_from([1e-4, 0.1]),
)  # fmt: skip


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def drawn(space: dict[str, Any]) -> dict[str, Any]:
    return {name: domain.sample() for name, domain in space.items()}


@settings(max_examples=40)
@given(st.lists(stages, min_size=3, max_size=3), st.booleans())
def test_every_trial_of_a_face_job_is_valid_and_a_weight_of_0_stays_0(of: list[attributes.Stage], alike: bool) -> None:
    base = attributes.Train(**dict(zip(STAGES, of[:1] * 3 if alike else of, strict=True)))
    trial = changed(base, drawn(SPACES["attributes"](base)))
    for name in STAGES:
        for task in TASKS:
            was, now = (getattr(getattr(config, name).weights, task) for config in (base, trial))
            assert was / 3 <= now <= was * 3 * (1 + 1e-9)
            assert not alike or now == getattr(trial.stage1.weights, task)
        was, now = getattr(base, name), getattr(trial, name)
        assert max(was.least, was.most // 2) <= now.most <= was.most * 3 // 2
        assert was.lr / 4 <= now.lr <= was.lr * 4 * (1 + 1e-9)


@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_every_trial_of_a_detection_job_is_valid_and_a_strength_of_0_stays_0(strength: float) -> None:
    base = replace(detection.Train(), align=AlignConfig(strength=strength))
    for _ in range(10):
        trial = changed(base, drawn(SPACES["detection"](base)))
        assert (trial.align.strength == 0) == (strength == 0)


@pytest.mark.parametrize(
    ("arm", "own"),
    [
        ("source", set()), ("oracle", set()), ("da-faster", {"align.strength", "adversary_lr"}),
        ("align", {"align.strength", "adversary_lr", "align.clusters", "align.weighting"}),
        ("mean-teacher", {"teacher.weight"}), ("aldi", {"teacher.weight"}),
    ],
)  # fmt: skip
def test_a_detection_job_draws_what_its_arm_has(arm: Any, own: set[str]) -> None:
    assert set(SPACES["detection"](replace(detection.Train(), arm=arm))) == {"optim.lr", *own}


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": -1.0}, {"lr": float("inf")}, {"lr": float("nan")}, {"warmup": -1}])
def test_a_stage_that_no_optimiser_takes_is_refused_at_once(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="learning rate"):
        StageConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["softmax", "sphereface", "cosface", "arcface", "adaface"])
@pytest.mark.parametrize("margin", [None, 0.0, 1.0])
def test_every_trial_of_a_reid_job_is_valid_and_a_loss_without_a_margin_has_none(head: Any, margin: float | None) -> None:
    if (head == "softmax" and margin is not None) or (head, margin) == ("sphereface", 0.0):
        return
    base = replace(reid.Train(), head=HeadConfig(head, margin))
    space = SPACES["reid"](base)
    assert check_space(space, base) == base.steps
    assert ("head.margin" in space) == (head in ("cosface", "arcface", "adaface") and margin != 0)
    for _ in range(10):
        trial = changed(base, drawn(space))
        assert base.optim.lr / 4 <= trial.optim.lr <= base.optim.lr * 4
        assert base.optim.weight_decay / 10 <= trial.optim.weight_decay <= base.optim.weight_decay * 10


@pytest.mark.parametrize("job", [actions, sequences])
def test_every_trial_of_a_job_on_clips_is_valid_and_what_is_0_stays_0(job: Any) -> None:
    base = job.Train()
    for _ in range(10):
        trial = changed(base, drawn(SPACES[job.__name__.removeprefix("trainers.")](base)))
        assert trial.optim.lr != base.optim.lr
        assert trial.model.dropout != base.model.dropout
    off = replace(base, optim=OptimConfig(weight_decay=0), model=replace(base.model, dropout=0.0))
    assert list(SPACES["actions"](off)) == ["optim.lr"]


def test_the_most_steps_of_a_trial_follow_the_space() -> None:
    base = attributes.Train()
    longest = sum(stage.most * 3 // 2 for stage in (base.stage1, base.stage2, base.stage3))
    assert check_space(SPACES["attributes"](base), base) == longest
    for text, most in (("optim.steps=int:10:5000", 5000), ("optim.steps=10,20", 1000), ("optim.lr=1,2", 1000)):
        assert check_space(space_of([text], reid.Train(), ""), reid.Train()) == most


bounds = st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)).filter(lambda pair: pair[0] * 1.001 < pair[1])
wholes = st.tuples(st.integers(1, 1000), st.integers(1, 1000)).filter(lambda pair: pair[0] < pair[1])


@settings(max_examples=30)
@given(bounds, wholes)
def test_ranges_hold_their_bounds_and_draw_values_of_the_settings_type(floats: Any, whole: Any) -> None:
    (low, high), (least, most) = floats, whole
    texts = [f"optim.lr=log:{low}:{high}", f"optim.weight-decay=uniform:{low}:{high}", f"optim.warmup=int:{least}:{most}"]
    texts += [f"optim.freeze=log:{least}:{most}", f"--sampler.hardest=uniform:{least}:{most}"]
    space = space_of(texts, reid.Train(), "reid.py")
    assert list(space) == ["optim.lr", "optim.weight_decay", "optim.warmup", "optim.freeze", "sampler.hardest"]
    assert [ends(domain) for domain in space.values()] == [(low, high)] * 2 + [(least, most)] * 3
    for name, value in drawn(space).items():
        first, last = ends(space[name])
        assert first <= value <= last * (1 + 1e-9)
        assert isinstance(value, float if isinstance(first, float) else int)


def test_both_bounds_of_a_whole_range_are_drawn() -> None:
    for scale in ("int", "uniform", "log"):
        assert set(space_of([f"optim.warmup={scale}:1:2"], reid.Train(), "")["optim.warmup"].sample(size=100)) == {1, 2}


def test_choices_take_the_type_of_the_setting() -> None:
    texts = ["sampler.kind=pk,uniform,pk", "head.margin=0.2,None", "optim.warmup=1,50", "head.parallel=yes,no"]
    texts += ["model.last_stride=1,2", "model.backbone=usermodels:backbone,small"]
    assert [ends(domain) for domain in space_of(texts, reid.Train(), "").values()] == [
        ("pk", "uniform"), (0.2, None), (1, 50), (True, False), (1, 2), ("usermodels:backbone", "small")
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), [
    ("optim.lr", "not a setting with what to draw: optim.lr; write --space optim.lr=log"),
    ("optim.lr=", "not a setting with what to draw"),
    ("optim.lr=log:1e-2:1e-4", "not a range: optim.lr=log:1e-2:1e-4; the first bound must be below the second and above 0"),
    ("optim.lr=log:0:1", "not a range"),
    ("optim.lr=uniform:1:1", "not a range"),
    ("optim.lr=uniform:nan:1", "not a range"),
    ("optim.lr=uniform:0:inf", "not a range"),
    ("head.margin=uniform:None:1", "not a range"),
    ("optim.lr=log:1", "a range needs two bounds"),
    ("optim.lr=int:1:2", "optim.lr is not a whole number"),
    ("sampler.kind=log:1:2", "sampler.kind is not a number"),
    ("optim.lr=1e-3", "one value: there is nothing to search"),
    ("optim.lr=1e-3,0.001", "one value"),
    ("loader.size=32,64", "loader.size has several values"),
    ("head.parallel=1,2", "head.parallel is yes or no"),
    ("optim.warmup=1,2 optim.warmup=3,4", "given twice"),
    ("cluster.workers=1,2", "no result depends on this setting"),
    ("name=a,b", "no result depends on this setting"),
    ("optim.lr=uniform:0:1", "the job takes no optim.lr of 0.0: the search space; optim.lr is 0.0"),
    ("optim.warmup=int:-1:1", "the job takes no optim.warmup of -1"),
    ("sampler.batch=64,0", "the job takes no sampler.batch of 0"),
])  # fmt: skip
def test_a_wrong_space_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        check_space(space_of(text.split(), reid.Train(), ""), reid.Train())
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "message"), [
    ("optim.lrr=1,2", "error: unknown option optim.lrr: did you mean optim.lr?"),
    ("lr=1,2", "error: unknown option lr: did you mean optim.lr?"),
    ("sampler.kind=pk,even",
     "error: --sampler.kind is 'even': give one of uniform, pk, hardest, proportional, pairs, neighbours"),
    ("optim.warmup=int:1.5:2", "error: --optim.warmup is '1.5': give a whole number"),
    ("optim.lr=log:a:1", "error: --optim.lr is 'a': give a number"),
])  # fmt: skip
def test_unknown_settings_and_values_end_the_command(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        space_of([text], reid.Train(), "trainers/reid.py")
    assert (ended.value.code, capsys.readouterr().err) == (2, message + "\n")


def test_nothing_is_written_for_a_wrong_sweep(tmp_path: Path) -> None:
    sweep = Sweep("reid", "search", str(tmp_path), space=("optim.lr=log:0:1",))
    with pytest.raises(InputError, match="not a range"):
        sweep.run([])
    with pytest.raises(InputError, match=r"no job 'rei' to sweep: .*; name one of reid, attributes"):
        replace(sweep, job="rei").run([])
    with pytest.raises(InputError, match="unknown preset: none"):
        sweep.run(["--preset", "none"])
    assert not list(tmp_path.iterdir())


def test_a_resumed_sweep_refuses_other_settings(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    folder.mkdir()
    begun = Sweep("reid", "search", "", space=("optim.lr=1,2",), sweep=SweepConfig(trials=3, concurrent=4))
    (folder / "search.json").write_text(to_json(begun))
    (folder / "base.json").write_text(to_json(reid.Train()))
    resumed = Sweep("reid", "search", str(tmp_path), resume=True)
    for wrong, message in (
        (replace(resumed, space=("optim.lr=1,3",)), "the sweep was started with space optim.lr=1,2: "),
        (replace(resumed, sweep=SweepConfig(trials=4, concurrent=4)), "with trials 3: .*; resume it without this option"),
        (replace(resumed, sweep=SweepConfig(search="optuna")), "with search random"),
        (replace(resumed, job="actions"), "with job reid"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            wrong.run([])
    with pytest.raises(InputError, match="keeps its job's options"):
        resumed.run(["--optim.lr", "1"])


class ConnectedError(Exception):
    """Raised in the place of joining a cluster."""


def test_a_sweep_writes_nothing_before_it_has_a_cluster_and_auto_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*how: Any, **more: Any) -> None:
        raise ConnectedError

    monkeypatch.setattr("trainers.sweep.connect", connect)
    sweep = Sweep("reid", "search", str(tmp_path), resume="auto")
    with pytest.raises(ConnectedError):
        sweep.run(["--seed", "1"])
    assert not files(tmp_path)
    (tmp_path / "search").mkdir()
    begun = replace(reid.Train(), runs=str(tmp_path), seed=1, evaluate_every=100, checkpoint_every=100)
    (tmp_path / "search" / "base.json").write_text(to_json(begun))
    for options in ([], ["--seed", "1"]):
        with pytest.raises(ConnectedError):
            sweep.run(options)
    with pytest.raises(InputError, match="keeps its job's options"):
        sweep.run(["--seed", "2"])
    with pytest.raises(InputError, match="the sweep 'search' exists"):
        replace(sweep, resume=False).run(["--seed", "1"])
    with pytest.raises(InputError, match="--resume auto needs the --name"):
        replace(sweep, name="").run([])


def test_optuna_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)  # as where it is not installed
    monkeypatch.setattr(sys, "argv", ["sweep.py", "reid", "--name", "s", "--runs", str(tmp_path), "--search", "optuna"])
    with pytest.raises(ClusterError) as error:
        main()
    assert str(error.value) == "Optuna is not installed: --search optuna; pip install optuna, or leave it at random"
    assert error.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_ended_gives_its_score_again(tmp_path: Path) -> None:
    base = sequence_run(tmp_path, cluster=LOCAL, runs=str(tmp_path / "runs"), checkpoint_every=2, record_every=1)
    first = run_trial("sequences", to_json(base), "s-1", {"optim.lr": 0.01})
    metrics = json.loads((tmp_path / "runs" / "s-1" / "metrics.json").read_text())
    assert first == {"score": -metrics["after"]["edit"], "score/edit": metrics["after"]["edit"], "step": STEPS}
    assert run_trial("sequences", to_json(base), "s-1", {"optim.lr": 0.01}) == first


def test_a_run_without_anything_held_out_has_no_score(tmp_path: Path) -> None:
    base = face_run(tmp_path, cluster=LOCAL, runs=str(tmp_path / "runs"))
    pack("attributes_csv", tmp_path / "images", str(tmp_path / "all"), Options(held_out=0))
    with pytest.raises(InputError, match="nothing was held out to compare by"):
        run_trial("attributes", to_json(replace(base, data=(str(tmp_path / "all"),))), "s-1", {})


@pytest.mark.parametrize("constant", [("age",), ("age", "gender", "mask")])
def test_a_label_with_one_value_is_in_no_score(constant: tuple[str, ...], tmp_path: Path) -> None:
    base = face_run(tmp_path, cluster=LOCAL, runs=str(tmp_path / "runs"))
    table = tmp_path / "images" / "labels.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, **dict.fromkeys(constant, "1")} for row in rows)
    pack("attributes_csv", tmp_path / "images", str(tmp_path / "constant"), Options(held_out=0.3))
    trial = replace(base, data=(str(tmp_path / "constant"),), augment=replace(base.augment, turn=0.0))
    if "mask" in constant:
        with pytest.raises(InputError, match="nothing was held out to compare by"):
            run_trial("attributes", to_json(trial), "s-1", {})
        return
    figures = run_trial("attributes", to_json(trial), "s-1", {})
    assert figures.keys() == {"step", "score", "score/gender.skill", "score/mask.skill"}
    assert figures["score"] == pytest.approx((figures["score/gender.skill"] + figures["score/mask.skill"]) / 2)
    assert -1 <= figures["score"] <= 1


def test_values_in_the_table() -> None:
    assert [shown(value) for value in (True, False, 1500, 0.00123456, "pk", None)] == [
        "yes",
        "no",
        "1500",
        "0.00123",
        "pk",
        "None",
    ]
