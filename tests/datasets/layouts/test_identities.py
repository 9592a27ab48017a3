"""Each layout reads its data set's names, from any folder or archive, and reports what does not fit."""

import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from pictures import Files, market, omniglot, put, tarred, zipped
from torchvision.datasets import ImageFolder

from datasets.errors import InputError
from datasets.layouts.archive import open_archive
from datasets.layouts.identities import LAYOUTS, Name
from datasets.layouts.listing import Listing, Sample, clean
from datasets.splits import HeldOut

DUKE = ("bounding_box_train/0001_c2_f0046182.jpg", "query/0005_c2_f0046985.jpg", "bounding_box_test/0005_c5_f0051781.jpg")
IMAGE = b"never read here"


def listing(layout: Name, root: Path, files: Files, held_out: HeldOut | None = None) -> Listing:
    """What the layout makes of the files."""
    with open_archive(put(root, files)) as source:
        return LAYOUTS[layout](source, held_out or HeldOut())


def by_split(samples: list[Sample]) -> dict[str, list[Sample]]:
    """The samples of each split."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.split].append(sample)
    return found


def refused(layout: Name, root: Path, files: Files, match: str) -> None:
    """Assert that the layout refuses the files on one line that names the source."""
    with pytest.raises(InputError, match=match) as error:
        listing(layout, root, files)
    assert str(root) in str(error.value)
    assert "\n" not in str(error.value)


def test_market1501(tmp_path: Path) -> None:
    found = listing("market1501", tmp_path, market(people=4, images=6))
    splits = by_split(found.samples)
    assert {split: len(samples) for split, samples in splits.items()} == {"train": 24, "query": 4, "gallery": 26}
    assert Sample("train", "0002", "c1", "bounding_box_train/0002_c1s1_000000_00.jpg") in found.samples
    assert Sample("gallery", "-1", "c2", "bounding_box_test/-1_c2s1_000401_03.jpg") in found.samples
    assert Sample("gallery", "0", "c1", "bounding_box_test/0000_c1s1_000151_01.jpg") in found.samples
    assert (found.size, found.mirror) == ((256, 128), True)


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_market1501_in_an_archive_below_a_folder(form: str, tmp_path: Path) -> None:
    files = {f"Market-1501-v15.09.15/{name}": data for name, data in market().items()}
    path = zipped(tmp_path / "m.zip", files) if form == "zip" else tarred(tmp_path / "m.tar", files)
    with open_archive(path) as source:
        samples = LAYOUTS["market1501"](source, HeldOut()).samples
    assert len(samples) == 54
    assert all(sample.name in files for sample in samples)


def test_junk_and_distractors_are_not_trained_on(tmp_path: Path) -> None:
    extra = {"bounding_box_train/-1_c1s1_000000_00.jpg": IMAGE, "bounding_box_train/0000_c1s1_000000_00.jpg": IMAGE}
    identities = {s.identity for s in listing("market1501", tmp_path, market() | extra).samples if s.split == "train"}
    assert identities == {"0002", "0003", "0004", "0005"}


def test_dukemtmc(tmp_path: Path) -> None:
    found = listing("dukemtmc", tmp_path, dict.fromkeys(DUKE, IMAGE))
    assert [(s.split, s.identity, s.camera) for s in found.samples] == [
        ("train", "0001", "c2"), ("query", "0005", "c2"), ("gallery", "0005", "c5"),
    ]  # fmt: skip


def test_occluded_duke_has_duke_s_folders_and_names(tmp_path: Path) -> None:
    found = listing("dukemtmc", tmp_path, {f"Occluded_Duke/{name}": IMAGE for name in DUKE})
    assert [(s.split, s.identity) for s in found.samples] == [("train", "0001"), ("query", "0005"), ("gallery", "0005")]


def test_veri776(tmp_path: Path) -> None:
    names = (
        "image_train/0001_c001_00016450_0.jpg",
        "image_query/0002_c002_00030600_0.jpg",
        "image_test/0002_c014_00031040_0.jpg",
    )
    found = listing("veri776", tmp_path, {f"VeRi/{name}": IMAGE for name in names} | {"VeRi/train_label.xml": b"<a/>"})
    assert [(s.split, s.identity, s.camera) for s in found.samples] == [
        ("train", "0001", "c001"), ("query", "0002", "c002"), ("gallery", "0002", "c014"),
    ]  # fmt: skip
    assert found.size == (256, 256)
    refused("veri776", tmp_path / "b", {names[0]: IMAGE}, "an empty or missing folder: image_query")
    bad = dict.fromkeys(names, IMAGE) | {"image_test/somebody.jpg": IMAGE}
    refused("veri776", tmp_path / "c", bad, r"no person and camera: image_test/somebody\.jpg")


VEHICLES = {
    "train_list.txt": b"0000001 7\n0000002 7\n0000003 0\n", "test_list_800.txt": b"0000004 9\n0000005 9\n0000006 10\n",
    "test_list_1600.txt": b"0000004 9\n",
}  # fmt: skip


def vehicles(lists: Files) -> Files:
    """VehicleID with seven images."""
    files = {f"VehicleID_V1.0/train_test_split/{name}": data for name, data in lists.items()}
    return files | {f"VehicleID_V1.0/image/{number:07d}.jpg": IMAGE for number in range(1, 8)}


def test_vehicleid_has_the_images_of_the_test_list_in_one_split(tmp_path: Path) -> None:
    found = listing("vehicleid800", tmp_path, vehicles(VEHICLES))
    assert [(s.split, s.identity, s.camera, s.name[-11:]) for s in found.samples] == [
        ("train", "7", "train", "0000001.jpg"), ("train", "7", "train", "0000002.jpg"), ("train", "id-0", "train", "0000003.jpg"),
        ("test", "9", "test", "0000004.jpg"), ("test", "9", "test", "0000005.jpg"), ("test", "10", "test", "0000006.jpg"),
    ]  # fmt: skip
    assert len(listing("vehicleid1600", tmp_path, {}).samples) == 4
    refused("vehicleid2400", tmp_path, {}, r"no such file: .*test_list_2400\.txt")


@pytest.mark.parametrize(
    ("lists", "match"),
    [
        ({"train_list.txt": b"0000001\n"}, r"line 1 of .*train_list\.txt"),
        ({"train_list.txt": b"\n0000001 seven\n"}, r"line 2 of .*train_list\.txt"),
        ({"test_list_800.txt": b"0000009 9\n"}, r"the image '0000009' is not there: line 1 of .*test_list_800\.txt"),
        ({"test_list_800.txt": b"0000004 7\n"}, "identity 7 is in train and in test"),
    ],
)
def test_vehicleid_says_what_a_list_gets_wrong(lists: Files, match: str, tmp_path: Path) -> None:
    refused("vehicleid800", tmp_path, vehicles(VEHICLES | lists), match)


@pytest.mark.parametrize("wrapped", ["", "last/"])
@pytest.mark.parametrize("with_val", [True, False])
def test_last(wrapped: str, with_val: bool, tmp_path: Path) -> None:
    names = ["train/000000/000000_0001_a.jpg", "test/query/0_1.jpg", "test/gallery/0000/0_2.jpg", "test/gallery/0001/1_3.jpg"]
    names += ["val/query/5_1.jpg", "val/gallery/5/5_2.jpg"] if with_val else []
    found = listing("last", tmp_path, {f"{wrapped}{name}": IMAGE for name in names})
    expected = [("train", "train-0", "train"), ("query", "test-0", "query")]
    expected += [("gallery", "test-0", "gallery"), ("gallery", "test-1", "gallery")]
    expected += [("val", "val-5", "query"), ("val", "val-5", "gallery")] if with_val else []
    assert sorted((s.split, s.identity, s.camera) for s in found.samples) == sorted(expected)


def test_last_says_what_does_not_fit(tmp_path: Path) -> None:
    files: Files = {"train/0/0_1.jpg": IMAGE, "test/gallery/0/0_2.jpg": IMAGE}
    refused("last", tmp_path / "a", {"train/0/0_1.jpg": IMAGE}, "no gallery")
    refused("last", tmp_path / "b", files, "an empty or missing folder: test/query")
    refused("last", tmp_path / "c", files | {"test/query/who.jpg": IMAGE}, r"a name that says no person: test/query/who\.jpg")


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
@pytest.mark.parametrize("wrapped", ["", "MSMT17/"])
def test_msmt17(folders: tuple[str, str], wrapped: str, tmp_path: Path) -> None:
    name = "0000/0000_000_{camera}_0303morning_0015_0.jpg"
    lists = {"train": ("01", 0), "val": ("02", 0), "query": ("11", 1), "gallery": ("12", 1)}
    files = {f"{wrapped}list_{part}.txt": f"{name.format(camera=c)} 0\n".encode() for part, (c, _) in lists.items()}
    files |= {f"{wrapped}{folders[test]}/{name.format(camera=c)}": IMAGE for c, test in lists.values()}
    found = listing("msmt17", tmp_path, files)
    assert [(s.split, s.identity, s.camera) for s in found.samples] == [
        ("train", "train-0", "c01"), ("train", "train-0", "c02"), ("query", "test-0", "c11"), ("gallery", "test-0", "c12"),
    ]  # fmt: skip
    assert {s.name for s in found.samples} == {name for name in files if name.endswith(".jpg")}


def test_msmt17_says_what_a_list_gets_wrong(tmp_path: Path) -> None:
    lists: Files = dict.fromkeys(["list_query.txt", "list_gallery.txt"], b"")
    refused("msmt17", tmp_path / "a", lists | {"list_train.txt": b"0000/a.jpg\n"}, r"line 1 of list_train\.txt")
    missing = b"\n0000/0000_000_01_0303morning_0015_0.jpg 0\n"
    refused("msmt17", tmp_path / "b", lists | {"list_train.txt": missing}, r"train/0000/0000_000_01_0303morning_0015_0\.jpg")
    refused("msmt17", tmp_path / "c", {"list_train.txt": b""}, r"list_query\.txt")
    refused("msmt17", tmp_path / "d", lists | {"list_train.txt": b"\xff\xfa"}, r"not a text.*list_train\.txt")


def cuhk(rows: list[str]) -> Files:
    """CUHK03 in manifest form."""
    files: Files = {row.split(",")[0]: IMAGE for row in rows}
    files["manifest.csv"] = "\n".join(["path,pid,cam,split", *rows]).encode()
    return {f"cuhk03_60x160/{name}": data for name, data in files.items()}


def test_cuhk03_queries_are_the_first_of_each_camera_and_all_find_something(tmp_path: Path) -> None:
    rows = ["train/0000_00.jpg,t0000,a,train", "train/0000_05.jpg,t0000,b,train"]
    rows += [f"val/0000_{k:02d}.jpg,v0000,{'a' if k < 5 else 'b'},val" for k in range(10)]
    rows += ["val/0001_00.jpg,v0001,a,val", "val/0001_05.jpg,v0001,b,val", "val/0001_06.jpg,v0001,b,val"]
    splits = by_split(listing("cuhk03", tmp_path, cuhk(rows)).samples)
    assert [s.identity for s in splits["train"]] == ["t0000", "t0000"]
    assert {(s.camera, s.name) for s in splits["query"]} == {
        ("a", "cuhk03_60x160/val/0000_00.jpg"), ("b", "cuhk03_60x160/val/0000_05.jpg"), ("b", "cuhk03_60x160/val/0001_05.jpg"),
    }  # fmt: skip
    for query in splits["query"]:
        assert any(s.identity == query.identity and s.camera != query.camera for s in splits["gallery"])


def test_cuhk03_says_what_its_manifest_gets_wrong(tmp_path: Path) -> None:
    refused("cuhk03", tmp_path / "a", cuhk(["x.jpg,p,a,train", "y.jpg,p,b,val"]), "identity p is in train and in val")
    refused("cuhk03", tmp_path / "b", cuhk(["x.jpg,p,a,both"]), r"split 'both': line 2 of cuhk03_60x160/manifest\.csv")
    refused("cuhk03", tmp_path / "c", {"manifest.csv": b"path,who\nx.jpg,1\n"}, "no column pid, cam, split")
    refused("cuhk03", tmp_path / "d", {"manifest.csv": b"path,pid,cam,split\nx.jpg,1,a,train\n"}, r"x\.jpg")
    refused("cuhk03", tmp_path / "e", {"x.jpg": IMAGE}, r"no manifest\.csv")


def test_cuhk03_as_published_here() -> None:
    folder = os.environ.get("HARDSHARD_TEST_DATA")
    if not folder or not (Path(folder) / "cuhk03.tar").is_file():
        pytest.skip("HARDSHARD_TEST_DATA names no folder with cuhk03.tar (its licence does not let the repository hold it)")
    with open_archive(Path(folder) / "cuhk03.tar") as source:
        splits = by_split(LAYOUTS["cuhk03"](source, HeldOut()).samples)
    assert {split: len(samples) for split, samples in splits.items()} == {"train": 7239, "query": 199, "gallery": 739}
    assert {split: len({s.identity for s in samples}) for split, samples in splits.items()} == {
        "train": 743, "query": 100, "gallery": 100,
    }  # fmt: skip


def people(names: str, images: int = 10) -> Files:
    """A folder of images for each name."""
    return {f"{name}/{i}.jpg": IMAGE for name in names.split() for i in range(images)}


@pytest.mark.parametrize("wrapped", ["", "photos/"])
def test_folders_holds_identities_out(wrapped: str, tmp_path: Path) -> None:
    files = {f"{wrapped}{name}": data for name, data in people("a b c d e f g h").items()}
    splits = by_split(listing("folders", tmp_path, files, HeldOut(0.25, seed=3)).samples)
    train, query, gallery = ({s.identity for s in splits[split]} for split in ("train", "query", "gallery"))
    assert (len(train), len(query)) == (6, 2)
    assert query == gallery
    assert not train & query
    assert set(Counter(s.identity for s in splits["query"]).values()) == {2}
    assert {s.camera for s in splits["query"]}.isdisjoint({s.camera for s in splits["gallery"]})  # the rule takes nothing away


def test_held_out_identities_are_drawn_by_seed(tmp_path: Path) -> None:
    files = people(" ".join("abcdefghijkl"))
    drawn = [
        frozenset(s.identity for s in listing("folders", tmp_path, files, HeldOut(0.25, seed)).samples if s.split == "query")
        for seed in (0, 0, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 2
    assert all(s.split == "train" for s in listing("folders", tmp_path, files, HeldOut(0)).samples)


def test_an_only_image_of_a_held_out_identity_is_in_the_gallery(tmp_path: Path) -> None:
    splits = by_split(listing("folders", tmp_path, people("a b c", images=1), HeldOut(0.5)).samples)
    assert "query" not in splits
    assert len(splits["gallery"]) == 2


def test_deeper_folders_belong_to_the_identity_above_them_as_in_torchvision(tmp_path: Path) -> None:
    files: Files = {"a/1.jpg": IMAGE, "a/deep/er/2.jpg": IMAGE, "b/other/3.jpg": IMAGE, "b/4.jpg": IMAGE}
    found = listing("folders", tmp_path / "set", files, HeldOut(0))
    theirs = ImageFolder(tmp_path / "set", is_valid_file=lambda path: path.endswith(".jpg"))
    named = [(str(Path(path).relative_to(tmp_path / "set")), theirs.classes[label]) for path, label in theirs.samples]
    assert sorted((s.name, s.identity) for s in found.samples) == sorted(named)


@pytest.mark.parametrize("test", ["test", "val"])
def test_folders_with_train_and_test(test: str, tmp_path: Path) -> None:
    files = people("train/a train/b") | people(f"{test}/c {test}/d")
    splits = by_split(listing("folders", tmp_path, files).samples)
    assert {split: len(samples) for split, samples in splits.items()} == {"train": 20, "query": 4, "gallery": 16}
    assert {s.identity for s in splits["query"]} == {"c", "d"}


def test_folders_with_train_query_and_gallery(tmp_path: Path) -> None:
    found = listing("folders", tmp_path, people("train/a train/b query/c gallery/c gallery/d", images=2))
    assert Counter((s.split, s.identity) for s in found.samples) == Counter(
        {("train", "a"): 2, ("train", "b"): 2, ("query", "c"): 2, ("gallery", "c"): 2, ("gallery", "d"): 2}
    )


def test_folders_says_what_does_not_fit(tmp_path: Path) -> None:
    refused("folders", tmp_path / "a", people("a b") | {"lost.jpg": IMAGE}, r"outside any identity's folder: lost\.jpg")
    refused("folders", tmp_path / "b", people("train/a val/b more/c"), "the folders more, train, val")
    refused("folders", tmp_path / "c", people("a b") | {"a/film.avi": IMAGE}, r"not an image by its name: a/film\.avi")
    refused("folders", tmp_path / "d", people("a~b a!b"), "'a!b' and 'a~b' both become 'a-b'")


def test_omniglot(tmp_path: Path) -> None:
    found = listing("omniglot", tmp_path, omniglot(characters=8, drawers=20))
    splits = by_split(found.samples)
    assert {split: len(samples) for split, samples in splits.items()} == {"train": 120, "query": 8, "gallery": 32}
    assert {s.identity for s in splits["query"]} == {s.identity for s in splits["gallery"]}
    assert not {s.identity for s in splits["query"]} & {s.identity for s in splits["train"]}
    assert "Japanese_-katakana-_character01" in {s.identity for s in found.samples}
    for sample in found.samples:
        assert sample.camera == f"drawer{sample.name[-6:-4]}"
    assert (found.size, found.mirror) == ((64, 64), False)


def test_omniglot_takes_an_alphabet_that_is_there_twice_once(tmp_path: Path) -> None:
    greek = [name for name in omniglot() if name.startswith("images/Greek/")]
    files = {f"{part}/{name.removeprefix('images/')}": IMAGE for part in ("small1", "small2") for name in greek}
    samples = listing("omniglot", tmp_path, files).samples
    assert len(samples) == len(greek)


def test_omniglot_says_what_does_not_fit(tmp_path: Path) -> None:
    refused(
        "omniglot",
        tmp_path / "a",
        {"Greek/character01/alpha.png": IMAGE},
        r"not a name of Omniglot's: Greek/character01/alpha\.png",
    )
    refused("omniglot", tmp_path / "b", {"character01/0394_01.png": IMAGE}, r"character01/0394_01\.png")


@pytest.mark.parametrize("layout", ["market1501", "dukemtmc"])
def test_three_folders_say_what_does_not_fit(layout: Name, tmp_path: Path) -> None:
    files: Files = dict.fromkeys(DUKE, IMAGE)
    refused(layout, tmp_path / "a", {"x.jpg": IMAGE}, "no bounding_box_train")
    refused(layout, tmp_path / "b", {DUKE[0]: IMAGE}, "an empty or missing folder: query")
    refused(layout, tmp_path / "c", files | {"query/someone.jpg": IMAGE}, r"no person and camera: query/someone\.jpg")
    refused(layout, tmp_path / "d", files | {"query/0005_c2_f0046985.gif": IMAGE}, "not an image by its name")


def test_duke_refuses_market(tmp_path: Path) -> None:
    refused("dukemtmc", tmp_path, market(), r"a name like 0001_c2_f0046182\.jpg is expected")


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_wrong_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="held-out fraction"):
        HeldOut(fraction)


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("ok_Name-1", "ok_Name-1"),
        ("a.b c", "a-b-c"),
        ("0", "id-0"),
        ("-1", "id--1"),
        ("中", "u4e2d"),
        ("../x", "---x"),
        ("", "id-"),
    ],
)
def test_names_are_made_safe(name: str, cleaned: str) -> None:
    assert clean(name) == cleaned


def test_image_endings_in_any_case(tmp_path: Path) -> None:
    endings = ["jpg", "JPG", "jpeg", "Jpeg", "PNG", "bmp", "WebP"]
    files = {f"{who}/{i}.{ending}": IMAGE for who in "ab" for i, ending in enumerate(endings)}
    assert len(listing("folders", tmp_path, files | {"a/notes.txt": b"", "README": b"", "LICENSE": b""}).samples) == 14
