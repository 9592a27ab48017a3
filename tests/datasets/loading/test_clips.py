"""Batches of clips depend only on the step, and their frames, lengths and labels belong together."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipdata import moving, npz_folder
from hypothesis import given
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.loading.batches import LoaderConfig, RankSlice
from datasets.loading.cache import CacheConfig
from datasets.loading.clips import (
    ClipConfig,
    ClipSet,
    ClipStream,
    ClipViews,
    View,
    cut_of,
    cuts_of_views,
    drawn,
    open_clips,
    seen,
)
from datasets.loading.workers import load_in_workers
from datasets.media.augment import resize
from datasets.media.flow import STILL
from datasets.pack_videos import VideoOptions, pack_videos

WORDS = [("right",), ("up", "down"), ("left",), ("down",), ("up",), ("left", "left", "up")]
ALONE = RankSlice(0, 1)
CONFIG = ClipConfig(frames=8, size=(16, 24), test_clips=2)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipSet:
    root = tmp_path_factory.mktemp("clips")
    pack_videos(
        "frames_npz",
        npz_folder(root / "npz", WORDS, frame_actions=True),
        str(root / "set"),
        VideoOptions(test="round=2", min_frames=1),
    )
    return open_clips(str(root / "set"))


def stream(clips: ClipSet, part: RankSlice = ALONE, start: int = 0, stop: int = 4, **more: Any) -> ClipStream:
    chosen = clips.clips_of("train")
    return ClipStream(clips, chosen, CONFIG, 4, LoaderConfig(workers=0), CacheConfig(), part, 7, start, stop, **more)


def test_batches_belong_to_their_step(clips: ClipSet) -> None:
    whole = list(stream(clips))
    assert [batch["step"] for batch in whole] == [0, 1, 2, 3]
    halves = [list(stream(clips, RankSlice(rank, 2), start=2)) for rank in range(2)]
    for step in (2, 3):
        for name in ("clips", "labels", "positions"):
            joined = np.concatenate([half[step - 2][name] for half in halves])
            np.testing.assert_array_equal(joined, whole[step][name])
    workers = list(load_in_workers(stream(clips), 2))
    for here, there in zip(whole, workers, strict=True):
        np.testing.assert_array_equal(here["clips"], there["clips"].numpy())


def test_a_bucket_gives_what_a_folder_gives(clips: ClipSet, s3_url: str, tmp_path: Path) -> None:
    pack_videos(
        "frames_npz", npz_folder(tmp_path / "npz", WORDS, frame_actions=True), s3_url, VideoOptions(test="round=2", min_frames=1)
    )
    cache, chosen = CacheConfig(folder=str(tmp_path / "cache")), clips.clips_of("train")
    remote = ClipStream(open_clips(s3_url), chosen, CONFIG, 4, LoaderConfig(), cache, ALONE, 7, 0, 4)
    for here, there in zip(stream(clips), load_in_workers(remote, 0), strict=True):
        np.testing.assert_array_equal(here["clips"], there["clips"].numpy())
        assert not there["bad"]


def test_labels_are_those_of_the_clips(clips: ClipSet) -> None:
    chosen = clips.clips_of("train")
    for batch in stream(clips):
        assert batch["clips"].shape == (4, 8, 16, 24, 3)
        assert [clips.class_names[label] for label in batch["labels"]] == [WORDS[chosen[p]][0] for p in batch["positions"]]
    (batch,) = stream(clips, stop=1, whole=True, frame_targets=clips.frame_actions())
    for row, position in enumerate(batch["positions"]):
        word = [clips.class_names.index(action) for action in WORDS[chosen[position]]]
        assert batch["targets"][row].tolist() == word + [-1] * (batch["targets"].shape[1] - len(word))
        assert batch["lengths"][row] == 10 * len(word)
        assert batch["frame_targets"][row, : batch["lengths"][row]].tolist() == np.repeat(word, 10).tolist()
        assert not batch["clips"][row, batch["lengths"][row] :].any()


@given(seed=st.integers(0, 9), batch=st.integers(1, 9), count=st.integers(1, 9))
def test_every_clip_comes_once_an_epoch(seed: int, batch: int, count: int) -> None:
    order = np.concatenate([drawn(seed, step, batch, count) for step in range(2 * count)])
    for epoch in range(len(order) // count):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(total=st.integers(1, 60), frames=st.integers(1, 20), stride=st.integers(1, 4), place=st.floats(0, 1))
def test_a_cut_lies_within_its_clip(total: int, frames: int, stride: int, place: float) -> None:
    cut = cut_of(total, ClipConfig(frames=frames, stride=stride), place)
    assert len(cut) == frames
    assert cut.min() >= 0
    assert cut.max() < total
    if total >= (frames - 1) * stride + 1:
        assert set(np.diff(cut)) <= {stride}
    first, last = (cut_of(total, ClipConfig(frames=frames, stride=stride), end) for end in (0.0, 1.0))
    assert first[0] == 0
    assert last.max() == total - 1 or total < (frames - 1) * stride + 1


@given(total=st.integers(1, 60), frames=st.integers(1, 20), place=st.floats(0, 1))
def test_frames_spread_evenly_are_each_of_its_part(total: int, frames: int, place: float) -> None:
    cut = cut_of(total, ClipConfig(frames=frames, stride=3, sample="even"), place)
    assert len(cut) == frames
    assert cut.max() < total
    for part, frame in enumerate(cut.tolist()):
        assert math.floor(part * total / frames) <= frame <= (part + 1) * total / frames
    first, last = (cut_of(total, ClipConfig(frames=frames, sample="even"), end) for end in (0.0, 1.0))
    assert first[0] == 0
    assert last[-1] == total - 1


def test_views(clips: ClipSet) -> None:
    chosen = clips.clips_of("test")
    items = list(
        ClipViews(clips, chosen, ClipConfig(frames=4, size=(16, 24), test_clips=2, test_crops=3), CacheConfig(), RankSlice(0, 1))
    )
    assert [item["position"] for item in items] == [0, 1]
    assert items[0]["clips"].shape == (6, 4, 16, 24, 3)
    whole = list(ClipViews(clips, chosen, CONFIG, CacheConfig(), RankSlice(0, 1), whole=True))
    assert [item["clips"].shape[:2] for item in whole] == [(1, 10), (1, 30)]
    shares = [
        item["position"] for rank in range(2) for item in ClipViews(clips, chosen, CONFIG, CacheConfig(), RankSlice(rank, 2))
    ]
    assert sorted(shares) == [0, 1]
    packed = np.concatenate([item["clips"] for item in ClipViews(clips, chosen[:1], CONFIG, CacheConfig(), RankSlice(0, 1))])
    direct = cuts_of_views(np.repeat(moving(WORDS[2], seed=2)[..., None], 3, axis=3), CONFIG, "rgb")
    assert np.abs(packed.astype(int) - direct).mean() < 6  # but for the JPEG


def test_places_and_mirrors() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3)).astype(np.uint8)
    config = ClipConfig(size=(16, 24), margin=0.0)
    np.testing.assert_array_equal(seen(frame, config, View(), "rgb")[0], resize(frame[0], (16, 24)))
    np.testing.assert_array_equal(seen(frame, config, View(flip=True), "rgb")[0], resize(frame[0], (16, 24))[:, ::-1])
    still = np.full((1, 32, 48, 3), STILL, np.uint8)
    np.testing.assert_array_equal(seen(still, config, View(flip=True), "flow")[0], np.full((16, 24, 3), STILL))
    moved = still.copy()
    moved[..., 0] = STILL + 10
    assert (seen(moved, config, View(flip=True), "flow")[..., 0] == STILL - 10).all()
    wide = ClipConfig(size=(16, 16), margin=0.0)
    corners = [seen(frame, wide, View(0.0, right), "rgb")[0] for right in (0.0, 1.0)]
    np.testing.assert_array_equal(corners[0], resize(frame[0], (16, 24))[:, :16])
    np.testing.assert_array_equal(corners[1], resize(frame[0], (16, 24))[:, 8:])


def test_a_bad_clip_is_replaced_and_named(clips: ClipSet, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    pack_videos("frames_npz", npz_folder(tmp_path / "npz", WORDS), str(copy), VideoOptions(test="round=2", min_frames=1))
    damaged = open_clips(str(copy))
    clip = int(damaged.clips_of("train")[0])
    offset = int(damaged.index.samples["offset"][damaged.first[clip]])
    with (copy / "train-000000.tar").open("r+b") as file:
        file.seek(offset)
        file.write(bytes(40))
    batches = list(stream(damaged, stop=1))
    assert len(batches[0]["bad"]) == 1
    assert damaged.index.identities[clip] in batches[0]["bad"][0]
    assert 0 not in batches[0]["positions"]
    assert torch.from_numpy(batches[0]["clips"]).float().std() > 0
    (view,) = ClipViews(damaged, np.array([clip]), CONFIG, CacheConfig(), RankSlice(0, 1))
    assert view["bad"]
    assert not len(view["clips"])


@pytest.mark.parametrize(
    "wrong", [{"frames": 0}, {"stride": 0}, {"size": (8, 8)}, {"margin": 2.0}, {"test_crops": 2}, {"test_clips": 0}]
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ClipConfig(**wrong)
