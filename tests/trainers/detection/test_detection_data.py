"""Two domains: classes, sizes, batches with boxes that are transformed as the images, evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from boxdata import CLASSES, put_voc

from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig, RankSlice
from datasets.loading.cache import CacheConfig
from datasets.loading.workers import load_in_workers
from datasets.media.augment import AugmentConfig
from datasets.pack import Options, pack
from trainers.tasks.detection.data import (
    BoxSet,
    Fold,
    check_side,
    checksum_of,
    classes_of,
    domain_stream,
    evaluate_boxes,
    held_out_split,
    open_box_set,
    with_boxes,
)
from trainers.tasks.detection.detector import Detector, DetectorConfig

CACHE, LOADER = CacheConfig(), LoaderConfig(workers=0)


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> tuple[BoxSet, BoxSet]:
    """A source of 64 x 48 and a smaller, square target in other colours."""
    root = tmp_path_factory.mktemp("domains")
    pack("voc", put_voc(root / "s", 20), str(root / "source"), Options(max_block=8 << 10))
    pack("voc", put_voc(root / "t", 9, seed=1, width=48, tint=(40, 120, 220)), str(root / "target"), Options())
    return open_box_set(str(root / "source"), 48, "source"), open_box_set(str(root / "target"), 48, "target")


def batches(domains: tuple[BoxSet, BoxSet], start: int, stop: int, part: RankSlice = RankSlice(0, 1)) -> list[dict[str, Any]]:  # noqa: B008
    stream = domain_stream(*domains, 4, LOADER, AugmentConfig(shift=0.1), CACHE, part, 7, start, stop)
    return list(with_boxes(load_in_workers(stream, 0), domains[0], CLASSES, begin=2))


def test_sizes_keep_each_domains_shape(domains: tuple[BoxSet, BoxSet]) -> None:
    assert [box_set.size for box_set in domains] == [(48, 64), (48, 48)]
    assert open_box_set(domains[0].index.url, 90, "source").size == (96, 128)  # multiples of 16
    with pytest.raises(InputError, match="side is 9"):
        check_side(9)


def test_boxes_follow_their_images(domains: tuple[BoxSet, BoxSet]) -> None:
    """Things are bright on a dark ground: inside a box it is brighter than in the image as a whole."""
    seen = 0
    for batch in batches(domains, 0, 6):
        assert batch["images"].shape == (4, 3, 48, 64)
        assert batch["target_images"].shape == (4, 3, 48, 48)
        assert batch["counts"].sum() == len(batch["boxes"]) == len(batch["classes"])
        for image, boxes in zip(batch["images"].float(), torch.split(batch["boxes"], batch["counts"].tolist()), strict=True):
            for left, top, right, bottom in boxes.round().long().tolist():
                assert image[:, top:bottom, left:right].mean() > 1.5 * image.mean()
                seen += 1
    assert seen > 20


def test_batches_depend_on_the_step_alone(domains: tuple[BoxSet, BoxSet]) -> None:
    """Also after the smaller target has started again; the ranks' slices together are the batch of one rank."""
    whole = batches(domains, 0, 8)
    assert [float(batch["active"]) for batch in whole] == [0, 0, 1, 1, 1, 1, 1, 1]
    again = batches(domains, 5, 8)
    slices = [batches(domains, 5, 8, RankSlice(rank, 2)) for rank in range(2)]
    for number, batch in enumerate(again):
        for name in ("images", "target_images", "boxes", "classes", "counts", "positions"):
            assert torch.equal(batch[name], whole[5 + number][name])
        for name in ("images", "target_images", "boxes", "classes", "counts"):
            assert torch.equal(torch.cat([ranks[number][name] for ranks in slices]), batch[name])


def test_one_domain_alone(domains: tuple[BoxSet, BoxSet]) -> None:
    stream = domain_stream(domains[0], None, 4, LOADER, AugmentConfig(), CACHE, RankSlice(0, 1), 7, 0, 1)
    (batch,) = with_boxes(load_in_workers(stream, 0), domains[0], CLASSES, begin=0)
    assert "target_images" not in batch
    assert len(batch["counts"]) == 4


def test_classes(domains: tuple[BoxSet, BoxSet], tmp_path: Path) -> None:
    source, target = domains
    assert classes_of(source, target, ()) == CLASSES
    assert classes_of(source, target, ("round",)) == ("round",)
    pack("voc", put_voc(tmp_path / "o", 6), str(tmp_path / "other"), Options(rename=("long=bar",)))
    other = open_box_set(str(tmp_path / "other"), 48, "target")
    with pytest.raises(InputError, match="the classes differ: long, round and bar, round"):
        classes_of(source, other, ())
    with pytest.raises(InputError, match=r"no class long: .*other; it has: bar, round"):
        classes_of(source, other, ("long", "round"))
    assert classes_of(source, other, ("round",)) == ("round",)
    pack("voc", put_voc(tmp_path / "n", 6, annotated=False), str(tmp_path / "bare"), Options())
    bare = open_box_set(str(tmp_path / "bare"), 48, "target")
    assert classes_of(source, bare, ()) == CLASSES  # a target without boxes
    assert held_out_split(bare) is None
    with pytest.raises(InputError, match="no boxes at all of round in the training images"):
        classes_of(bare, target, ("round",))
    some = put_voc(tmp_path / "s", 6)
    (some / "Annotations" / "003.xml").unlink()
    pack("voc", some, str(tmp_path / "some"), Options(held_out=0))
    with pytest.raises(InputError, match="1 of 6 training images are not annotated"):
        classes_of(open_box_set(str(tmp_path / "some"), 48, "source"), target, ())
    with pytest.raises(InputError, match="no held-out images with boxes"):
        evaluate_boxes(Detector(DetectorConfig(), 1), bare, ("round",), CACHE, torch.device("cpu"))


def test_a_source_without_boxes_and_an_empty_target_are_refused(tmp_path: Path, domains: tuple[BoxSet, BoxSet]) -> None:
    files = put_voc(tmp_path / "e", 6)
    for path in (files / "Annotations").iterdir():
        path.write_text("<annotation></annotation>")
    pack("voc", files, str(tmp_path / "empty"), Options())
    empty = open_box_set(str(tmp_path / "empty"), 48, "source")
    with pytest.raises(InputError, match="no boxes at all of any class in the training images"):
        classes_of(empty, domains[1], ())
    (files / "ImageSets" / "Main").mkdir(parents=True)
    (files / "ImageSets" / "Main" / "test.txt").write_text("000\n001\n")
    pack("voc", files, str(tmp_path / "nothing"), Options())
    with pytest.raises(InputError, match="no split 'train'"):
        open_box_set(str(tmp_path / "nothing"), 48, "target")
    with pytest.raises(InputError, match="no target to train on"):
        open_box_set("", 48, "target")
    with pytest.raises(InputError, match="not a whole shard set"):
        open_box_set(str(tmp_path / "none"), 48, "target")


def test_other_boxes_have_another_checksum(domains: tuple[BoxSet, BoxSet], tmp_path: Path) -> None:
    source = put_voc(tmp_path / "s", 20)
    pack("voc", source, str(tmp_path / "same"), Options(max_block=8 << 10))
    assert checksum_of([open_box_set(str(tmp_path / "same"), 48, "source")]) == checksum_of(domains[:1])
    annotation = source / "Annotations" / "000.xml"
    annotation.write_text(annotation.read_text().replace("<xmin>", "<xmin>1"))
    pack("voc", source, str(tmp_path / "changed"), Options(max_block=8 << 10))
    assert checksum_of([open_box_set(str(tmp_path / "changed"), 48, "source")]) != checksum_of(domains[:1])


def test_evaluation_counts_every_annotated_image_once(domains: tuple[BoxSet, BoxSet]) -> None:
    torch.manual_seed(0)
    detector = Detector(DetectorConfig(regions=8), 2)
    result = evaluate_boxes(detector, domains[0], CLASSES, CACHE, torch.device("cpu"))
    split = held_out_split(domains[0])
    assert split is not None
    table = domains[0].boxes
    rows = np.concatenate([table.classes[table.rows(s)] for s in split.samples(np.arange(len(split))).tolist()])
    assert [result.figures[f"n.{name}"] for name in CLASSES] == np.bincount(rows, minlength=2).tolist()
    assert result.figures["score"] == result.figures["mAP50"]
    assert detector.training


def keys_of(split: Any) -> list[str]:
    return [split.index.keys[sample] for sample in split.samples(np.arange(len(split)))]


def test_every_annotated_image_is_held_out_in_one_fold(tmp_path: Path) -> None:
    """Those of the set's test list, too; an image without annotation is for training in every fold."""
    files = put_voc(tmp_path / "t", 11)
    (files / "Annotations" / "003.xml").unlink()
    pack("voc", files, str(tmp_path / "set"), Options(max_block=8 << 10))
    url = str(tmp_path / "set")
    own = open_box_set(url, 48, "target")
    assert own.held_out is not None
    everything = {*keys_of(own.train), *keys_of(own.held_out)}
    held_out, counts = [], np.zeros(2)
    for number in range(3):
        fold = open_box_set(url, 48, "target", Fold(number, 3))
        assert fold.held_out is not None
        assert held_out_split(fold) is fold.held_out
        mine, others = keys_of(fold.held_out), keys_of(fold.train)
        assert mine == keys_of(open_box_set(url, 48, "target", Fold(number, 3)).held_out)
        assert {*mine, *others} == everything
        assert len(mine) + len(others) == len(everything) == 11
        held_out.append(mine)
        result = evaluate_boxes(Detector(DetectorConfig(regions=8), 2), fold, CLASSES, CACHE, torch.device("cpu"))
        counts += [result.figures[f"n.{name}"] for name in CLASSES]
    assert sorted(map(len, held_out)) == [3, 3, 4]
    assert len({key for mine in held_out for key in mine}) == 10
    assert counts.tolist() == np.bincount(own.boxes.classes, minlength=2).tolist()
    with pytest.raises(InputError, match=r"10 annotated images for 11 folds: .*set; lower --folds"):
        open_box_set(url, 48, "target", Fold(0, 11))
