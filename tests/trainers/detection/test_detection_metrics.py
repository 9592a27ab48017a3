"""Average precisions: examples by hand, VOC's development kit, and COCO's figure against a second implementation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.tasks.detection.metrics import Prediction, Truth, detection_figures, voc_ap50

NAMES = ("a", "b")
Corners = tuple[float, float, float, float]


def truth(
    *boxes: tuple[float, float, float, float], classes: list[int] | None = None, ignored: list[bool] | None = None
) -> Truth:
    count = len(boxes)
    return Truth(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(classes or [0] * count, np.int64),
        np.array(ignored or [False] * count, np.bool_),
    )  # fmt: skip


def predicted(*boxes: Corners, scores: list[float], classes: list[int] | None = None) -> Prediction:
    own = np.array(classes or [0] * len(boxes), np.int64)
    return Prediction(np.array(boxes, np.float32).reshape(-1, 4), own, np.array(scores, np.float32))


ONE, TWO, FAR = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 30.0, 30.0), (50.0, 50.0, 60.0, 60.0)


def test_all_found_and_nothing_found() -> None:
    true = [truth(ONE, TWO, classes=[0, 1]), truth()]
    perfect = [predicted(ONE, TWO, scores=[0.9, 0.8], classes=[0, 1]), predicted(scores=[])]
    figures = detection_figures(true, perfect, NAMES)
    assert [figures[name] for name in ("mAP", "mAP50", "vocAP50")] == pytest.approx([1, 1, 1])
    assert (figures["n.a"], figures["n.b"]) == (1, 1)
    nothing = detection_figures(true, [predicted(scores=[]), predicted(scores=[])], NAMES)
    assert nothing["mAP"] == nothing["mAP50"] == nothing["vocAP50"] == 0
    swapped = detection_figures(true, [predicted(ONE, TWO, scores=[0.9, 0.8], classes=[1, 0]), predicted(scores=[])], NAMES)
    assert swapped["mAP50"] == 0


def test_a_class_without_boxes_is_left_out_of_the_mean() -> None:
    figures = detection_figures([truth(ONE)], [predicted(ONE, TWO, scores=[0.9, 0.9], classes=[0, 1])], NAMES)
    assert figures["mAP50"] == pytest.approx(1)
    assert "AP50.b" not in figures
    assert detection_figures([truth()], [predicted(scores=[])], NAMES)["mAP50"] == 0


def test_voc_by_hand() -> None:
    """Right, wrong, right of two true ones: precision 1 up to recall 1/2, then 2/3."""
    true = [truth(ONE, TWO)]
    found = [predicted(ONE, FAR, TWO, scores=[0.9, 0.8, 0.7])]
    assert voc_ap50(true, found, 0) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    twice = [predicted(ONE, ONE, scores=[0.9, 0.8])]
    assert voc_ap50([truth(ONE)], twice, 0) == pytest.approx(1)  # the second is wrong, and comes after everything was found
    assert voc_ap50([truth(ONE, TWO)], twice, 0) == pytest.approx(0.5)
    assert np.isnan(voc_ap50([truth()], twice, 0))


def test_a_miss_does_not_use_up_its_true_box() -> None:
    """The first overlaps by a third: it is wrong, and the second is right."""
    found = [predicted((0.0, 0.0, 10.0, 30.0), ONE, scores=[0.9, 0.8])]
    assert voc_ap50([truth(ONE)], found, 0) == pytest.approx(0.5, abs=1e-12)
    assert detection_figures([truth(ONE)], found, ("a",))["vocAP50"] == pytest.approx(0.5, abs=1e-12)


def test_boxes_without_an_area_are_mistakes() -> None:
    point = (5.0, 5.0, 5.0, 5.0)
    assert voc_ap50([truth(ONE, point)], [predicted(point, ONE, scores=[0.9, 0.8])], 0) == pytest.approx(0.5 * 0.5)


def devkit_ap(truth: list[Truth], predictions: list[Prediction], minoverlap: float = 0.5) -> float:
    """VOCevaldet.m and VOCap.m of the development kit (2010 and later), line by line but for the "+ 1" of its pixel boxes."""
    npos = sum(int((~one.ignored).sum()) for one in truth)
    det = [np.zeros(len(one.boxes), bool) for one in truth]
    ids = [i for i, one in enumerate(predictions) for _ in one.scores]
    bbs = [box for one in predictions for box in one.boxes.astype(np.float64)]
    si = np.argsort(-np.array([score for one in predictions for score in one.scores]), kind="stable")
    tp, fp = np.zeros(len(si)), np.zeros(len(si))
    for d, place in enumerate(si):
        i, bb, ovmax, jmax = ids[place], bbs[place], -np.inf, -1
        for j, bbgt in enumerate(truth[i].boxes.astype(np.float64)):
            bi = [max(bb[0], bbgt[0]), max(bb[1], bbgt[1]), min(bb[2], bbgt[2]), min(bb[3], bbgt[3])]
            iw, ih = bi[2] - bi[0], bi[3] - bi[1]
            if iw > 0 and ih > 0:
                ua = (bb[2] - bb[0]) * (bb[3] - bb[1]) + (bbgt[2] - bbgt[0]) * (bbgt[3] - bbgt[1]) - iw * ih
                ov = iw * ih / ua
                if ov > ovmax:
                    ovmax, jmax = ov, j
        if ovmax >= minoverlap:
            if not truth[i].ignored[jmax]:
                if not det[i][jmax]:
                    tp[d], det[i][jmax] = 1, True
                else:
                    fp[d] = 1
        else:
            fp[d] = 1
    fp, tp = fp.cumsum(), tp.cumsum()
    with np.errstate(invalid="ignore"):
        rec, prec = tp / npos, tp / (fp + tp)
    mrec, mpre = np.array([0, *rec, 1]), np.array([0, *np.nan_to_num(prec), 0])
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    i = np.flatnonzero(mrec[1:] != mrec[:-1]) + 1
    return float(((mrec[i] - mrec[i - 1]) * mpre[i]).sum())


@settings(max_examples=150)
@given(st.integers(0, 10**6))
def test_voc_is_the_development_kits_rule(seed: int) -> None:
    """On crowded images with difficult boxes, some answers near a true box, some anywhere, and many equal scores."""
    rng = np.random.default_rng(seed)
    true, found = [], []
    for _ in range(int(rng.integers(1, 5))):
        corners = rng.integers(0, 12, (int(rng.integers(0, 6)), 2))
        boxes = np.concatenate([corners, corners + rng.integers(1, 12, corners.shape)], axis=1)
        near = boxes[rng.integers(0, len(boxes), 5)] if len(boxes) else np.zeros((0, 4), int)
        near = np.concatenate([near + rng.integers(-2, 3, near.shape), rng.integers(0, 12, (2, 4)) + np.array([0, 0, 12, 12])])
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        true.append(truth(*boxes.tolist(), ignored=(rng.random(len(boxes)) < 0.3).tolist()))
        found.append(predicted(*near.tolist(), scores=(rng.integers(0, 6, len(near)) / 5).tolist()))
    if not any((~one.ignored).any() for one in true):
        assert np.isnan(voc_ap50(true, found, 0))
        return
    assert voc_ap50(true, found, 0) == pytest.approx(devkit_ap(true, found), abs=1e-12)


def test_what_is_ignored_is_no_mistake_and_need_not_be_found() -> None:
    true = [truth(ONE, TWO, ignored=[False, True])]
    for found in (predicted(ONE, scores=[0.5]), predicted(ONE, TWO, scores=[0.5, 0.9])):
        figures = detection_figures(true, [found], NAMES)
        assert [figures[name] for name in ("mAP50", "vocAP50")] == pytest.approx([1, 1])
        assert figures["n.a"] == 1


def test_a_shift_takes_the_stricter_overlaps_away() -> None:
    """An overlap of 8/12 = 0.667 counts at 0.5 .. 0.65: 4 of 10."""
    figures = detection_figures([truth(ONE)], [predicted((2.0, 0.0, 12.0, 10.0), scores=[0.9])], NAMES)
    assert figures["mAP50"] == pytest.approx(1)
    assert figures["mAP"] == pytest.approx(0.4)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_cocos_figure_is_that_of_101_recalls(seed: int) -> None:
    """On true boxes that are far apart, so that matching leaves no choice, COCO's AP50 follows from the sorted hits."""
    rng = np.random.default_rng(seed)
    images, hits, total = [], [], 0
    for image in range(4):
        count = int(rng.integers(0, 5))
        total += count
        boxes = [(30.0 * i, 100.0 * image, 30.0 * i + 10, 100.0 * image + 10) for i in range(count)]
        found, scores = [], []
        for i in range(count + 2):
            if rng.random() < 0.7:
                scores.append(float(np.float32(rng.random())))
                found.append((30.0 * i, 100.0 * image, 30.0 * i + 10, 100.0 * image + 10))
                hits.append((scores[-1], i < count))
        images.append((truth(*boxes), predicted(*found, scores=scores)))
    figures = detection_figures([t for t, _ in images], [f for _, f in images], ("a",))
    if not total:
        assert figures["mAP50"] == 0
        return
    right = np.array([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])], float)
    recall, precision = right.cumsum() / total, right.cumsum() / np.arange(1, len(right) + 1)
    expected = np.mean([max(precision[recall >= level], default=0.0) for level in np.linspace(0, 1, 101)])
    assert figures["AP50.a"] == pytest.approx(expected, abs=1e-6)
