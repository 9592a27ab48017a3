"""A folder and every kind of archive of it read the same; faults are reported."""

import tarfile
from pathlib import Path

import pytest
from pictures import Files, jpeg, put, tarred, zipped

from datasets.errors import InputError
from datasets.layouts.archive import name_of_source, open_archive, refuse_inside
from datasets.object_storage import open_objects

FILES: Files = {"a/x.jpg": jpeg(1), "a/b/y z.jpg": jpeg(2), "top.txt": b"text", "empty.txt": b""}
CLUTTER: Files = {".DS_Store": b"1", "a/Thumbs.db": b"2", "__MACOSX/a/x.jpg": b"3", "a/._x.jpg": b"4"}


def make(kind: str, root: Path, files: Files) -> Path:
    """The files as a folder or as an archive."""
    if kind == "folder":
        return put(root / "set", files)
    if kind == "zip":
        return zipped(root / "set.zip", files)
    return tarred(root / "set.tar", files, kind)


@pytest.mark.parametrize("kind", ["folder", "zip", "w", "w:gz", "w:xz", "w:bz2"])
def test_every_kind_lists_and_reads_the_same(kind: str, tmp_path: Path) -> None:
    path = make(kind, tmp_path, FILES | CLUTTER)
    before = sorted(tmp_path.rglob("*"))
    with open_archive(path) as source:
        assert source.sizes == {name: len(data) for name, data in sorted(FILES.items())}
        assert list(source.sizes) == sorted(FILES)
        assert {name: source.read(name) for name in reversed(source.sizes)} == FILES
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked


@pytest.mark.parametrize("kind", ["folder", "zip", "w:gz"])
def test_what_lies_in_s3_reads_as_what_lies_in_a_folder(kind: str, tmp_path: Path, s3_url: str) -> None:
    path = make(kind, tmp_path, FILES | CLUTTER)
    objects = open_objects(s3_url)
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        objects.put(file.relative_to(tmp_path).as_posix(), file.read_bytes())
    with open_archive(f"{s3_url}/{path.name}") as source, open_archive(path) as local:
        assert source.sizes == local.sizes
        assert {name: source.read(name) for name in source.sizes} == FILES
        assert source.open("a/x.jpg").read() == FILES["a/x.jpg"]
        assert source.place("a/x.jpg") == f"a/x.jpg in {s3_url}/{path.name}"
    assert name_of_source(f"{s3_url}/{path.name}") == name_of_source(path) == path.name
    with pytest.raises(InputError, match=rf"no such folder or archive: {s3_url}/none"), open_archive(f"{s3_url}/none"):
        pass


def test_a_container_in_s3_is_read_with_the_files_of_its_name(s3_url: str) -> None:
    for name, data in {"train.rec": b"1", "train.idx": b"22", "train.bin": b"3", "val.rec": b"4"}.items():
        open_objects(s3_url).put(name, data)
    with open_archive(f"{s3_url}/train.rec") as source:
        assert {name: source.read(name) for name in source.sizes} == {"train.idx": b"22", "train.rec": b"1"}


def test_a_destination_inside_the_source_is_refused(tmp_path: Path) -> None:
    for destination, source in (("s3://bucket/set/out", "s3://bucket/set/"), (str(tmp_path / "set" / "out"), tmp_path / "set")):
        with pytest.raises(InputError, match=f"the destination lies inside the source: {destination}"):
            refuse_inside(open_objects(destination), source)
        refuse_inside(open_objects(f"{destination}/../../beside" if isinstance(source, Path) else "s3://bucket/set2"), source)


@pytest.mark.parametrize("kind", ["zip", "w"])
def test_a_name_that_leads_out_of_an_archive_is_not_there(kind: str, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_bytes(b"mine")
    with open_archive(make(kind, tmp_path, {"../secret.txt": b"1", "a/../../secret.txt": b"2", "a.txt": b"a"})) as source:
        assert list(source.sizes) == ["a.txt"]
        for name in ("../secret.txt", str(tmp_path / "secret.txt")):
            with pytest.raises(InputError, match="no such file"):
                source.read(name)


def test_a_folder_reads_only_what_it_listed(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_bytes(b"mine")
    with open_archive(put(tmp_path / "set", FILES)) as source, pytest.raises(InputError, match="no such file"):
        source.read("../secret.txt")


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    root = put(tmp_path / "set", {"a/x.jpg": b"x"})
    put(tmp_path / "elsewhere", {"y.jpg": b"y"})
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root)
    with open_archive(root) as source:
        assert sorted(source.sizes) == ["a/x.jpg", "b/y.jpg"]


def test_a_tar_with_dots_and_hard_links(tmp_path: Path) -> None:
    path = tarred(tmp_path / "set.tar", {"./a/x.jpg": b"x"})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("./a/twin.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "./a/x.jpg"
        archive.addfile(link)
        symlink = tarfile.TarInfo("a/out.jpg")
        symlink.type, symlink.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(symlink)
    with open_archive(path) as source:
        assert {name: source.read(name) for name in source.sizes} == {"a/x.jpg": b"x", "a/twin.jpg": b"x"}


@pytest.mark.parametrize(
    ("files", "what"), [(None, "no such folder or archive"), ({}, "holds no files"), (CLUTTER, "holds no files")]
)
def test_an_empty_or_missing_archive_is_reported(files: Files | None, what: str, tmp_path: Path) -> None:
    path = tmp_path / "set"
    if files is not None:
        path.mkdir()
        put(path, files)
    with pytest.raises(InputError, match=what) as error, open_archive(path):
        pass
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz", "w:xz"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_an_archive_that_is_cut_off_is_refused(kind: str, kept: float, tmp_path: Path) -> None:
    path = make(kind, tmp_path, {f"{i}.jpg": jpeg(i, 32, 32) for i in range(20)})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError) as error, open_archive(path) as source:
        _ = [source.read(name) for name in source.sizes]
    assert str(path) in str(error.value)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.rar").write_bytes(b"Rar!" + bytes(9000))
    with pytest.raises(InputError, match="neither a zip nor a tar"), open_archive(tmp_path / "set.rar"):
        pass


def test_a_damaged_zip_member_is_named(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", FILES)
    data = path.read_bytes()
    at = data.index(FILES["a/x.jpg"][300:310]) if FILES["a/x.jpg"][300:310] in data else data.index(b"a/x.jpg") + 40
    path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    with open_archive(path) as source, pytest.raises(InputError, match=r"cannot be read.*a/x\.jpg"):
        source.read("a/x.jpg")


def test_a_file_that_changed_or_went_is_named(tmp_path: Path) -> None:
    root = put(tmp_path / "set", FILES)
    with open_archive(root) as source:
        (root / "a/x.jpg").write_bytes(b"shorter")
        (root / "top.txt").unlink()
        with pytest.raises(InputError, match=r"has 7 bytes.*a/x\.jpg"):
            source.read("a/x.jpg")
        with pytest.raises(InputError, match=r"No such file.*top\.txt"):
            source.read("top.txt")


def test_a_tar_that_is_cut_in_a_header_is_refused(tmp_path: Path) -> None:
    """The standard library takes this for the end of the archive."""
    path = tarred(tmp_path / "set.tar", {"a.txt": b"a", "b.txt": b"b"})
    path.write_bytes(path.read_bytes()[: 1024 + 100])
    with pytest.raises(InputError, match="after byte 1024"), open_archive(path):
        pass


def test_a_tar_of_another_form_reads(tmp_path: Path) -> None:
    name = "a/" + "long" * 60 + "ü.txt"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tarred(tmp_path / "set.tar", {name: b"data", "b": b"b"}, "w", format=form)
        with open_archive(path) as source:
            assert source.read(name) == b"data"


def test_a_tar_without_members_holds_no_files(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    path.write_bytes(bytes(10240))  # what `tar -cf set.tar -T /dev/null` makes
    with pytest.raises(InputError, match="holds no files"), open_archive(path):
        pass


@pytest.mark.parametrize("kind", ["folder", "zip", "w", "w:gz"])
def test_every_kind_opens_a_file_to_seek_in(kind: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    with open_archive(make(kind, tmp_path, FILES | {"big.dat": data, "z.txt": b"after"})) as source:
        stream, other = source.open("big.dat"), source.open("a/x.jpg")
        assert stream.seek(-6, 2) == len(data) - 6
        assert (stream.read(), stream.read(), stream.tell()) == (data[-6:], b"", len(data))
        assert other.read(9) == FILES["a/x.jpg"][:9]
        stream.seek(70_000)
        assert stream.read(100_000) == data[70_000:170_000]
        assert source.read("z.txt") == b"after"
        assert other.read() == FILES["a/x.jpg"][9:]
        stream.seek(10)
        stream.seek(5, 1)
        assert stream.read(3) == data[15:18]
    assert stream.closed
    assert other.closed


def test_a_container_is_read_with_the_files_of_its_name_alone(tmp_path: Path) -> None:
    put(tmp_path, {"train.rec": b"1", "train.idx": b"22", "train.bin": b"3", "val.rec": b"4", "train.more.idx": b"5"})
    with open_archive(tmp_path / "train.rec") as source:
        assert source.sizes == {"train.idx": 2, "train.rec": 1}
        assert source.read("train.idx") == source.open("train.idx").read() == b"22"
