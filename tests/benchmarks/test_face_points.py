"""Keypoints that a finder adds to a packed set: the folder packs again to the same images, splits and labels, and the points."""

from pathlib import Path

import numpy as np
from facedata import faces

from benchmarks.face_points import Images, write_with_points
from datasets.pack import Options, pack
from datasets.shards.index import read_index, split_of
from datasets.shards.labels import KEYPOINTS


def test_points_are_added_and_nothing_else_changes(tmp_path: Path) -> None:
    pack("attributes_csv", faces(tmp_path / "images", 40, ("gender", "age"), seed=1), str(tmp_path / "a"), Options(held_out=0.3))
    before = read_index(str(tmp_path / "a"))

    def find(images: Images) -> list[np.ndarray | None]:  # type: ignore[type-arg]
        """Points at known fractions of the image; none in every third image."""
        fractions = np.arange(10).reshape(5, 2) / 10
        return [fractions * image.shape[1::-1] if n % 3 else None for n, image in enumerate(images)]

    count, found = write_with_points(before, tmp_path / "folder", find)
    pack("attributes_csv", tmp_path / "folder", str(tmp_path / "b"), Options())
    after = read_index(str(tmp_path / "b"))
    assert (count, len(after)) == (40, 40)
    assert set(after.splits) == set(before.splits) == {"train", "test"}
    for name in before.splits:
        old, new = (split_of(index, name) for index in (before, after))
        assert len(old) == len(new)
        for label in ("gender", "age"):
            values = [np.sort(i.labels[label][s.samples(np.arange(len(s)))]) for i, s in ((before, old), (after, new))]
            np.testing.assert_array_equal(*values)
    points = np.stack([after.labels[column] for column in KEYPOINTS], axis=1)
    known = ~np.isnan(points).any(axis=1)
    assert known.sum() == found
    assert 0 < found < count
    np.testing.assert_allclose(points[known], np.tile(np.arange(10) / 10, (found, 1)), atol=1e-5)
