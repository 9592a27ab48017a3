"""CUHK03's own file, written here as MATLAB writes it: its pixels come out as they went in, its protocols are followed."""

import io
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from pictures import put, zipped
from scipy.io import savemat

from datasets.errors import InputError
from datasets.layouts.archive import open_archive
from datasets.layouts.identities import LAYOUTS, Name
from datasets.media.decode import decode
from datasets.object_storage import open_objects
from datasets.pack import pack

PEOPLE = {1: 3, 2: 2}  # of each pair of cameras
COUNTS = {(1, 3): (1, 2)}  # images of a person in each camera; all others have as many as fit


def pixels_of(boxes: str, pair: int, person: int, number: int) -> np.ndarray:
    """An image [H, W, 3] unlike all others."""
    seed = (len(boxes), pair, person, number)
    return np.random.default_rng(seed).integers(0, 256, (12 + number, 6 + person, 3), dtype=np.uint8)


def names(boxes: str) -> dict[str, np.ndarray]:
    """The images by the names that torchreid gives them."""
    found = {}
    for pair, people in PEOPLE.items():
        for person in range(1, people + 1):
            for camera, count in enumerate(COUNTS.get((pair, person), (5, 4)), 1):
                for number in range(5 * (camera - 1) + 1, 5 * (camera - 1) + 1 + count):
                    found[f"{pair}_{person:03d}_{camera}_{number:02d}.png"] = pixels_of(boxes, pair, person, number)
    return found


def mat(damage: str = "") -> bytes:
    """A cuhk-03.mat: cells are references, arrays have their axes reversed, an empty cell is its own size."""
    file = io.BytesIO()
    with h5py.File(file, "w") as out:
        held = out.create_group("#refs#")

        def cell(content: np.ndarray, dtype: object = None) -> h5py.Reference:
            return held.create_dataset(str(len(held)), data=content, dtype=dtype).ref

        def cells(references: list[list[h5py.Reference]]) -> np.ndarray:
            return np.array(references, dtype=h5py.ref_dtype).T

        for boxes in ("detected", "labeled"):
            images = {name: pixels.astype(float) if damage == "float" else pixels for name, pixels in names(boxes).items()}
            pairs = []
            for pair, people in PEOPLE.items():
                rows = []
                for person in range(1, people + 1):
                    found = [images.get(f"{pair}_{person:03d}_{1 + (n > 5)}_{n:02d}.png") for n in range(1, 11)]
                    rows.append([cell(np.zeros(2, np.uint64) if image is None else image.T) for image in found])
                pairs.append(cell(cells(rows), h5py.ref_dtype))
            if damage != f"no {boxes}":
                out.create_dataset(boxes, data=cells([[pair] for pair in pairs]), dtype=h5py.ref_dtype)
        tests = [cell(np.array(chosen, float).T) for chosen in ([(1, 1), (1, 3)], [(2, 1)])]
        out.create_dataset("testsets", data=cells([[test] for test in tests]), dtype=h5py.ref_dtype)
    return file.getvalue()


def protocol(**lists: list[int]) -> bytes:
    """A list of the new protocol: numbers from 1 on of a list of files."""
    file, files = io.BytesIO(), np.empty((len(names("detected")), 1), object)
    files[:, 0] = list(names("detected"))
    given = {"train": list(range(1, 10)), "query": [28, 33], "gallery": [29, 30, 34, 35]} | lists
    savemat(file, {"filelist": files, **{f"{name}_idx": np.array([numbers]).T for name, numbers in given.items()}})
    return file.getvalue()


@pytest.mark.parametrize("kind", ["file", "folder", "zip"])
@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_packed_pixels_are_those_of_the_file(boxes: str, kind: str, tmp_path: Path) -> None:
    files = {"cuhk03_release/cuhk-03.mat": mat(), "cuhk03_release/README.md": b"hello"}
    source = zipped(tmp_path / "c.zip", files) if kind == "zip" else put(tmp_path / "c", files)
    source = source / "cuhk03_release" / "cuhk-03.mat" if kind == "file" else source
    index = pack("cuhk03_detected" if boxes == "detected" else "cuhk03_labeled", source, str(tmp_path / "set"))
    objects, found = open_objects(index.url), []
    for row in range(len(index)):
        shard = index.shards[index.blocks["shard"][index.samples["block"][row]]].name
        data = objects.get_range(shard, int(index.samples["offset"][row]), int(index.samples["size"][row]))
        found.append((index.identities[index.identity_of(np.array([row]))[0]], decode(data).tobytes()))
    assert sorted(found) == sorted((name[:5], pixels.tobytes()) for name, pixels in names(boxes).items())


def test_the_first_test_set_is_held_out_where_the_new_protocol_is_not_there(tmp_path: Path) -> None:
    with open_archive(put(tmp_path, {"cuhk-03.mat": mat()})) as source:
        found = LAYOUTS["cuhk03_detected"](source, None)  # type: ignore[arg-type]  # takes no notice of it
    assert {s.identity for s in found.samples if s.split == "train"} == {"1_002", "2_001", "2_002"}
    assert sorted((s.identity, s.camera, s.name[-6:-4]) for s in found.samples if s.split == "query") == [
        ("1_001", "c1", "01"), ("1_001", "c2", "06"), ("1_003", "c2", "06"),
    ]  # fmt: skip
    assert Counter(s.identity for s in found.samples if s.split == "gallery") == {"1_001": 7, "1_003": 2}
    assert found.splits_by == "the first test set of cuhk-03.mat"


def test_the_new_protocol(tmp_path: Path) -> None:
    files = {"a/cuhk-03.mat": mat(), "cuhk03_new_protocol_config_detected.mat": protocol()}
    with open_archive(put(tmp_path, files)) as source:
        found = LAYOUTS["cuhk03_detected"](source, None)  # type: ignore[arg-type]
        labeled = LAYOUTS["cuhk03_labeled"](source, None)  # type: ignore[arg-type]
    listed = list(names("detected"))
    assert {s.name: s.split for s in found.samples} == {
        **dict.fromkeys(listed[:9], "train"), **dict.fromkeys([listed[27], listed[32]], "query"),
        **dict.fromkeys([listed[28], listed[29], listed[33], listed[34]], "gallery"),
    }  # fmt: skip
    assert labeled.splits_by == "the first test set of a/cuhk-03.mat"  # the lists are of the detected boxes


NEW = "cuhk03_new_protocol_config_detected.mat"


@pytest.mark.parametrize(
    ("layout", "files", "match"),
    [
        ("cuhk03_detected", {"cuhk-03.mat": mat()[:-5000]}, r"not a cuhk-03\.mat that can be read"),
        ("cuhk03_detected", {"cuhk-03.mat": b"MATLAB 5.0 MAT-file"}, r"not a cuhk-03\.mat that can be read"),
        ("cuhk03_detected", {"cuhk-03.mat": b""}, r"not a cuhk-03\.mat that can be read"),
        ("cuhk03_labeled", {"cuhk-03.mat": mat("no labeled")}, "no variable labeled"),
        ("cuhk03_detected", {"cuhk-03.mat": mat("float")}, r"an image of float64 \[13, 7, 3\]"),
        ("cuhk03_detected", {"other.mat": mat()}, r"no cuhk-03\.mat"),
        ("cuhk03_detected", {"cuhk-03.mat": mat(), NEW: b"nothing"}, "not a list of the protocol"),
        ("cuhk03_detected", {"cuhk-03.mat": mat(), NEW: protocol()[:200]}, "not a list of the protocol"),
        ("cuhk03_detected", {"cuhk-03.mat": mat(), NEW: protocol(query=[99])}, "image 99 of its query list"),
        ("cuhk03_detected", {"cuhk-03.mat": mat(), NEW: protocol(query=[0])}, "image 0 of its query list"),
        ("cuhk03_detected", {"cuhk-03.mat": mat(), NEW: protocol(query=[1])}, "image 1 of its query list"),
    ],
)
def test_faults_are_one_line(layout: Name, files: dict[str, bytes], match: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match) as error, open_archive(put(tmp_path, files)) as source:
        LAYOUTS[layout](source, None)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_variable_that_leads_to_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(range(256)))
    with h5py.File(tmp_path / "cuhk-03.mat", "w") as out:
        out["detected"] = h5py.ExternalLink(str(tmp_path / "secret"), "x")
        image = out.create_dataset("image", (3, 8, 8), np.uint8, external=[(str(tmp_path / "secret"), 0, 192)])
        row = out.create_dataset("row", data=np.array([[image.ref]], h5py.ref_dtype), dtype=h5py.ref_dtype)
        out.create_dataset("labeled", data=np.array([[row.ref]], h5py.ref_dtype), dtype=h5py.ref_dtype)
    for layout, match in (("cuhk03_detected", "no variable detected"), ("cuhk03_labeled", "stored in another file")):
        with pytest.raises(InputError, match=match), open_archive(tmp_path / "cuhk-03.mat") as source:
            LAYOUTS[layout](source, None)  # type: ignore[index,arg-type]
