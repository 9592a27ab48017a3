"""Tars of other tools are indexed correctly, or refused in one line; nothing is guessed."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import Files, jpeg, png, tarred
from test_scan import identities, run, stored

from datasets.errors import InputError
from datasets.export import export
from datasets.inspect import faults
from datasets.object_storage import open_objects
from datasets.shards.index import read_index, write_index
from datasets.shards.scan import Rules, scan
from datasets.shards.tar import members


def pairs(count: int = 6, folder: str = "data/") -> Files:
    """Images and, side by side, labels of two identities."""
    files: Files = {}
    for i in range(count):
        files |= {f"{folder}{i:04}.jpg": jpeg(i), f"{folder}{i:04}.cls": b"%d" % (1 + i * 2 // count)}
    return files


def refused(root: Path, rules: Rules = Rules()) -> str:  # noqa: B008 - a constant
    """The line that a scan of these shards ends with."""
    with pytest.raises(InputError) as error:
        scan(str(root), rules)
    assert "\n" not in str(error.value)
    return str(error.value)


def whole(root: Path) -> list[str]:
    """Index the shards; the lines that the command prints, after the index was found sound."""
    index, keys, found = scan(str(root), Rules())
    write_index(open_objects(str(root)), index, keys)
    assert list(faults(read_index(str(root)), read=True)) == []
    return found.lines()


# ---- samples and labels


def test_members_that_do_not_lie_side_by_side(tmp_path: Path) -> None:
    files = pairs()
    apart = sorted(files, key=lambda name: name.endswith("cls"))
    tarred(tmp_path / "t-0.tar", {name: files[name] for name in apart})
    message = refused(tmp_path)
    assert "do not lie side by side: data/0000.jpg and data/0000.cls" in message
    assert f"{tmp_path}/t-0.tar; write the tar sorted by name: tar --sort=name" in message
    tarred(tmp_path / "t-0.tar", {name: files[name] for name in sorted(files)})
    assert identities(scan(str(tmp_path), Rules())[0]) == ["1"] * 3 + ["2"] * 3


def test_the_same_key_in_another_shard_is_another_sample(tmp_path: Path) -> None:
    for shard in ("a", "b"):
        tarred(tmp_path / f"{shard}.tar", pairs())
    assert len(scan(str(tmp_path), Rules())[0]) == 12


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/0.jpg", "a/0.jpg"], "two members of one name: a/0.jpg in"),
        (["a/0.jpg", "a/0.JPG"], "two members of one name: a/0.JPG in"),
        (["a/0.jpg", "./a/0.jpg"], "two members of one name: a/0.jpg in"),
        (["a/0.jpg", "a/1.jpg", "a/0.jpg"], "two samples of one name: a/0.jpg in"),
        (["a/0.jpg", "a/1.jpg", "a/0.png"], "do not lie side by side: a/0.jpg and a/0.png"),
    ],
)
def test_names_that_come_twice(names: list[str], message: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(jpeg(0))
            tar.addfile(info, io.BytesIO(jpeg(0)))
    assert message in refused(tmp_path)


@pytest.mark.parametrize("missing", ["data/0000.cls", "data/0004.cls"])
def test_a_label_that_is_missing_is_never_made_up(missing: str, tmp_path: Path) -> None:
    tarred(tmp_path / "t.tar", {name: data for name, data in pairs().items() if name != missing})
    message = refused(tmp_path)
    assert missing.replace("cls", "jpg") in message
    assert ("data/0000.jpg has no label and data/0001.jpg has a .cls" in message) == (missing == "data/0000.cls")
    assert "label it or leave it out, or give --identity" in message or "label all of them, or give --identity" in message
    assert scan(str(tmp_path), Rules(identity="key"))[0].identities == ("data",)


def test_identities_come_from_json_where_there_is_no_cls(tmp_path: Path) -> None:
    files: Files = {}
    for i, who in enumerate("aab"):
        files |= {f"x/{i}.jpg": jpeg(i), f"x/{i}.json": b'{"pid": "%s"}' % who.encode()}
    tarred(tmp_path / "t.tar", files)
    index, _, found = scan(str(tmp_path), Rules())
    assert identities(index) == list("aab")
    assert found.identity_reader.named_by == "the field 'pid' of each .json"
    for other in (b"{}", b"[]", None):
        changed = {**files, "x/2.json": other}
        tarred(tmp_path / "t.tar", {name: data for name, data in changed.items() if data is not None})
        assert "x/0.jpg has a .json that names the identity, and x/2.jpg has none" in refused(tmp_path)
    tarred(tmp_path / "t.tar", {**files, "x/0.json": b'{"caption": "x"}'})
    assert "x/0.jpg has no label and x/1.jpg has a .json" in refused(tmp_path)


@pytest.mark.parametrize("first", ["images", "labels"])
def test_labels_in_a_folder_of_their_own_are_refused(first: str, tmp_path: Path) -> None:
    images = {f"images/{i}.jpg": jpeg(i) for i in range(3)}
    labels = {f"labels/{i}.cls": b"1" for i in range(3)}
    tarred(tmp_path / "t.tar", images | labels if first == "images" else labels | images)
    message = refused(tmp_path)
    assert "a label lies apart from the images, as images/0.jpg has none: labels/0.cls in" in message


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("data/0003.cls", b"\xff\xfe\xff", "not a text in UTF-8"),
        ("data/0003.cls", b"caf\xe9", "not a text in UTF-8"),
        ("data/0003.cls", b" \n", "the identity is empty"),
        ("data/0003.cls", b"", "the identity is empty"),
        ("data/0003.cls", b"1" * 70_000, "a label of 70,000 bytes, of which 65,536 are read at most"),
        ("data/0000.json", b"[" * 100_000, "nested too deep"),
        ("data/0000.json", b'{"pid": ' * 100_000, "nested too deep"),
        ("data/0000.json", b" " * (17 << 20), "a label of 17,825,792 bytes"),
        ("data/0000.json", b'{"pid": "\xff"}', "not a text in UTF-8"),
        ("data/0000.json", b'{"pid": ["a"]}', "the .json field 'pid' is neither a number nor a text"),
        ("data/0000.json", b'{"pid": {}}', "the .json field 'pid' is neither a number nor a text"),
        ("data/0000.json", b'{"pid": null}', "no field 'pid'"),
        ("data/0000.json", b'{"pid": 1e999}', "neither a number nor a text"),
        ("data/0000.json", b'{"pid": %s}' % (b"9" * 5000), "not a JSON document"),
    ],
)
def test_labels_that_are_none(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    files = {file: content for file, content in pairs().items() if name.endswith("cls") or file.endswith("jpg")}
    if name.endswith("json"):
        files = {"data/0000.jpg": jpeg(0), name: data} | files
    else:
        files[name] = data
    tarred(tmp_path / "t.tar", files)
    ended = refused(tmp_path)
    assert message in ended
    assert name.rpartition(".")[0] in ended


# ---- names


def test_what_desktops_leave_behind_is_no_sample(tmp_path: Path) -> None:
    files: Files = {"._data": b"\0", "data/.DS_Store": b"x", "Thumbs.db": b"x", "data/desktop.ini": b"x"}
    for name, data in pairs().items():
        files |= {name.replace("/", "/._"): b"\0\5\26\7", f"__MACOSX/{name}": b"\0", name: data}
    tarred(tmp_path / "t-0.tar", files)
    (tmp_path / "._t-0.tar").write_bytes(b"\0\5\26\7")
    lines = whole(tmp_path)
    assert "left out 29, hidden files and what desktops leave behind: ._t-0.tar, ._data, data/.DS_Store (+26 more)" in lines
    assert "41 files seen: 6 images indexed, 29 left out, 6 beside the images" in lines
    assert "splits: 6 train; by default, as no name says a split" in lines
    assert "identities: by each sample's .cls: 1, 2" in lines
    assert identities(read_index(str(tmp_path))) == ["1"] * 3 + ["2"] * 3
    assert len(read_index(str(tmp_path)).blocks["size"]) == 2  # litter in between breaks no block
    (tmp_path / "index.json").unlink()
    ended = run(tmp_path)
    assert ended.returncode == 0
    assert ended.stderr.splitlines()[:4] == lines
    export(str(tmp_path), ("dali", "wids"))
    assert (tmp_path / "t-0.idx").read_text().startswith("v1.2 6\n")


@pytest.mark.parametrize(
    ("folder", "key"),
    [
        ("./data/", "data/"),
        (".//data//", "data/"),
        ("/data/", "data/"),
        ("data\\", "data/"),
        (".\\data\\", "data/"),
        ("my data (1)/", "my data (1)/"),
        ("\u5199\u771f/", "\u5199\u771f/"),
        ("caf\udce9/", "caf\\xe9/"),
        ("a\tb\n/", "a\\tb\\n/"),
    ],
)
def test_names_as_tools_write_them(folder: str, key: str, tmp_path: Path) -> None:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        tarred(tmp_path / "t.tar", pairs(folder=folder), "w", format=form)
        whole(tmp_path)
        index = read_index(str(tmp_path))
        assert list(index.keys) == [f"{key}{i:04}" for i in range(6)]
        assert stored(tmp_path, index) == [jpeg(i) for i in range(6)]
    export(str(tmp_path), ("dali", "wids", "energon"))


def test_very_long_names(tmp_path: Path) -> None:
    folder = "/".join(["x" * 200] * 15) + "/"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        tarred(tmp_path / "t.tar", pairs(folder=folder), "w", format=form)
        assert list(scan(str(tmp_path), Rules())[1]) == [f"{folder}{i:04}" for i in range(6)]


def test_links_sparse_files_and_others_are_named(tmp_path: Path) -> None:
    files = pairs()
    with tarfile.open(tarred(tmp_path / "t.tar", files), "a") as tar:
        for name, kind in (("d/a.jpg", tarfile.SYMTYPE), ("d/b.jpg", tarfile.LNKTYPE), ("d/c", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "data/0000.jpg"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("d/README"))
        folder = tarfile.TarInfo("d/e.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        info = tarfile.TarInfo("d/f.jpg")
        info.pax_headers = {"GNU.sparse.map": "0,100,4096,10", "GNU.sparse.size": "5000", "GNU.sparse.name": "d/f.jpg"}
        info.size = 110
        tar.addfile(info, io.BytesIO(bytes(110)))
    lines = whole(tmp_path)
    for line in (
        "left out 2, links: d/a.jpg, d/b.jpg",
        "left out 1, neither files nor folders: d/c",
        "left out 1, files without an ending: d/README",
        "left out 1, sparse files: d/f.jpg",
        "17 files seen: 6 images indexed, 5 left out, 6 beside the images",
    ):
        assert line in lines


def test_second_images_and_compressed_shards_are_named(tmp_path: Path) -> None:
    tarred(tmp_path / "t.tar", {"a/0.jpg": jpeg(0), "a/0.png": png(1), "a/0.mask.png": png(2), "b/0.jpg": jpeg(3)})
    tarred(tmp_path / "u.tar.gz", pairs(), "w:gz")
    lines = whole(tmp_path)
    assert "left out 1, images beside the first of a sample: a/0.png" in lines
    assert "left out 1, tars that are compressed, or do not end in .tar: u.tar.gz" in lines
    assert "5 files seen: 2 images indexed, 2 left out, 1 beside the images" in lines
    assert "identities: by each key: a, b" in lines


# ---- splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("set-train-00.tar", "train"),
        ("set-validation-00.tar", "val"),
        ("VALID.00.tar", "val"),
        ("dev/0.tar", "val"),
        ("Testing/0.tar", "test"),
        ("test/train-0.tar", "train"),
        ("gallery/part/0.tar", "gallery"),
        ("val/query/0.tar", "query"),
        ("latest/contest.tar", "train"),
    ],
)
def test_splits_are_read_from_names(name: str, split: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    tarred(tmp_path / name, pairs())
    tarred(tmp_path / "other-train.tar", pairs(2))
    index, _, found = scan(str(tmp_path), Rules())
    assert {shard.name: shard.split for shard in index.shards} == {name: split, "other-train.tar": "train"}
    lines = [line for line in found.lines() if line.startswith("splits")]
    if name == "latest/contest.tar":
        assert lines == ["splits: 6 train; by default, as no name says a split", "splits: 2 train; by the shards' names"]
    else:
        counts = "8 train" if split == "train" else f"2 train, 6 {split}"
        assert lines == [f"splits: {counts}; by the shards' names"]


def test_folders_of_splits_within_a_shard_are_refused(tmp_path: Path) -> None:
    tarred(tmp_path / "0.tar", pairs(folder="train/") | pairs(folder="val/"))
    message = refused(tmp_path)
    assert "val/0000 lies in a folder of val, and the shard's name says no split" in message
    assert "--split" in message
    index, _, found = scan(str(tmp_path), Rules(split="validation"))
    assert index.splits == ("val",)
    assert "splits: 12 val; by --split" in found.lines()
    with pytest.raises(InputError, match=r"split 'vall': --split; train, val"):
        Rules(split="vall")


# ---- sizes


def forged(name: str, size: bytes, data: bytes = b"", kind: bytes = b"0") -> bytes:
    """A member whose header has the size in these 12 bytes, with a right checksum."""
    head = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    head[124:136], head[156:157], head[148:156] = size, kind, b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data + bytes(-len(data) % 512)


def base256(number: int) -> bytes:
    """A size of 12 bytes in base 256, as GNU tar writes what octal digits cannot."""
    return bytes([0x80 if number >= 0 else 0xFF]) + number.to_bytes(11, signed=True)


PAX_NEGATIVE = forged("p", b"%011o\0" % 12, b"12 size=-512"[:11] + b"\n", b"x") + forged("a/0.jpg", b"%011o\0" % 5, b"hello")
CHAIN = b"".join(forged("p", b"%011o\0" % 9, b"9 a=bcd\n\0", b"x") for _ in range(3000)) + forged("a/0.jpg", b"%011o\0" % 0)


@pytest.mark.parametrize(
    "data",
    [
        forged("a/0.jpg", base256(-512)) * 2,
        forged("a/0.jpg", base256(1 << 62)),
        forged("a/0.jpg", base256(1 << 80)),
        forged("a/0.jpg", b"77777777777\0"),
        forged("a/0.jpg", b"-0000001000\0"),
        forged("a/0.jpg", b"not a number"),
        forged("a/0.jpg", base256(1 << 62), kind=b"S"),
        forged("a/0.jpg", base256(1 << 40), kind=b"L") + forged("a/0.jpg", b"%011o\0" % 0),
        forged("a/0.jpg", base256(1 << 40), kind=b"x") + forged("a/0.jpg", b"%011o\0" % 0),
        forged("a/0.jpg", base256(-1), kind=b"g") + forged("a/0.jpg", b"%011o\0" % 0),
        PAX_NEGATIVE,
        CHAIN,
        forged("p", b"%011o\0" % 15, b"15 size=1000000"[:14] + b"\n", b"g") + forged("a/0.jpg", b"%011o\0" % 5, b"hello"),
        forged("p", b"%011o\0" % 40, b"22 GNU.sparse.major=1\n18 GNU.sparse.minor=0\n"[:40], b"x"),
        forged("p", b"%011o\0" % 26, b"26 GNU.sparse.size=number\n", b"x") + forged("a/0.jpg", b"%011o\0" % 0),
        forged("p", b"%011o\0" % 18, b"18 hdrcharset=\xff\xff\xff\n", b"x") + forged("a/0.jpg", b"%011o\0" % 0),
        forged("p", b"%011o\0" % 60_000, b"2 " * 29_999 + b"a=", b"x") + forged("a/0.jpg", b"%011o\0" % 0),
    ],
)
@pytest.mark.parametrize("mode", ["r|", "r:"])
def test_headers_that_lie(data: bytes, mode: str, tmp_path: Path) -> None:
    """In a stream the first of them would be read on for ever, and so it would be asked for ever where data are passed over."""
    data = forged("b/0.jpg", b"%011o\0" % len(jpeg(0)), jpeg(0)) + data + bytes(1024)
    (tmp_path / "t.tar").write_bytes(data)
    if mode == "r|":
        assert "t.tar" in refused(tmp_path)
    else:
        with (tmp_path / "t.tar").open("rb") as file, pytest.raises(InputError):
            list(members(file, "t.tar", "r:"))


def test_a_sample_that_is_too_large_is_named_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.shards.tar_reader.MAX_SAMPLE", 3000)
    for files in ({"a/0.jpg": bytes(4000)}, {"a/0.jpg": jpeg(0), "a/0.npy": bytes(2900)}, {"x": bytes(1500), "y": bytes(1500)}):
        tarred(tmp_path / "t.tar", files)
        assert "a sample, or what lies before one, has more than" in refused(tmp_path)
    monkeypatch.setattr("datasets.shards.tar_reader.MAX_SAMPLE", 256 << 20)
    with (tmp_path / "t.tar").open("wb") as file:  # a hole: nothing of it may be read
        file.write(forged("a/0.jpg", base256(1 << 40)))
        file.truncate((1 << 40) + 2048)
    assert "a/0.jpg in" in refused(tmp_path)


def test_what_follows_the_end_of_a_tar_is_not_lost_silently(tmp_path: Path) -> None:
    first, second = (tarred(tmp_path / name, pairs(folder=f"{name}/")).read_bytes() for name in ("a.tar", "b.tar"))
    (tmp_path / "b.tar").unlink()
    (tmp_path / "a.tar").write_bytes(first + second)
    message = refused(tmp_path)
    assert "the tar ends at byte" in message
    assert "join tars by `tar --concatenate`" in message
    (tmp_path / "a.tar").write_bytes(first + bytes(20 << 10))
    assert len(scan(str(tmp_path), Rules())[0]) == 6


def test_a_tar_cut_off_at_any_record(tmp_path: Path) -> None:
    path = tarred(tmp_path / "t.tar", pairs(2))
    data = path.read_bytes()
    end = len(data.rstrip(b"\0")) + 1
    for cut in [*range(0, end, 256), end]:
        path.write_bytes(data[:cut])
        assert "t.tar" in refused(tmp_path)


# ---- any bytes


def outcome(root: Path) -> None:
    """Index what is there by every rule: an index, which is sound, or InputError."""
    for identity in ("auto", "key", "json"):
        try:
            index, keys, _ = scan(str(root), Rules(identity=identity))  # type: ignore[arg-type]
        except InputError:
            continue
        write_index(open_objects(str(root)), index, keys)
        found = list(faults(read_index(str(root)), read=True))
        assert not [fault for fault in found if "cannot be decoded" not in fault]


def mixed_tar(form: int) -> bytes:
    """A small tar with most of what tars may hold."""
    out, long = io.BytesIO(), "n" * 120
    files = {"./._x.jpg": b"\0", f"{long}/0.jpg": b"im", f"{long}/0.json": b'{"pid": 1}', **pairs(2)}
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), {"comment": "x"}
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("a/l.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * 120
        tar.addfile(link)
    return out.getvalue()


TARS = [mixed_tar(form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 1 << 20),  # where, modulo the length
        st.sampled_from(["set", "size", "kind", "cut", "double"]),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def changed(data: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    """A tar with changes; headers keep a right checksum, else nothing behind it would be reached."""
    out = bytearray(data)
    for place, what, new in changes:
        at = place % len(out)
        head = at // 512 * 512
        if what == "cut":
            del out[at : at + len(new) * 100]
        elif what == "double":
            out[head:head] = out[head : head + 512]
        else:
            start = {"set": at, "size": head + 124, "kind": head + 156}[what]
            new = new[: 1 if what == "kind" else 12]
            out[start : start + len(new)] = new
        if not out:
            return b""
        block = out[head : head + 512]
        if what != "cut" and len(block) == 512 and block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            out[head + 148 : head + 156] = b"%06o\0 " % sum(block)
    return bytes(out)


@given(which=st.sampled_from(range(len(TARS))), changes=CHANGES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(which: int, changes: list[tuple[int, str, bytes]], tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(changed(TARS[which], changes))
    outcome(tmp_path)


@pytest.mark.slow
@given(which=st.sampled_from(range(len(TARS))), changes=CHANGES)
@settings(max_examples=6000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_at_length(which: int, changes: list[tuple[int, str, bytes]], tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(changed(TARS[which], changes))
    outcome(tmp_path)
