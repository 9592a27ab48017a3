"""Folder and bucket behave the same; each error is one line that says what, where and what to do."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxy import FaultProxy, Faults
from s3server import SECRET, S3Server, free_ports

from datasets.errors import InputError
from datasets.object_storage import Bucket, Folder, checked, open_objects

MIB = 1 << 20
FIFO_BUFFER = 1 << 16  # bytes that a pipe takes before its reader has read any


@pytest.fixture(params=["folder", "bucket"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Folder | Bucket:
    """An empty place of objects."""
    if request.param == "folder":
        return open_objects(str(tmp_path / "a folder"))
    return open_objects(request.getfixturevalue("s3_url"))


def one_line(error: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    """Assert that the message is one line, names the parts, and gives no secret away."""
    message = str(error.value)
    assert "\n" not in message
    assert SECRET not in message
    assert all(part in message for part in parts), message


def test_what_is_put_is_listed_read_replaced_and_deleted(objects: Folder | Bucket) -> None:
    assert objects.sizes() == {}
    objects.put("index.json", b"old")
    objects.put("index.json", b"new one")
    objects.put("index/samples.parquet", bytes(range(256)))
    objects.put("index/empty", b"")
    assert objects.sizes() == {"index.json": 7, "index/empty": 0, "index/samples.parquet": 256}
    assert list(objects.sizes("index/")) == ["index/empty", "index/samples.parquet"]
    assert objects.get("index.json") == b"new one"
    assert objects.get("index/empty") == b""
    assert objects.get_range("index/samples.parquet", 254, 2) == b"\xfe\xff"
    assert objects.get_range("index/samples.parquet", 7, 0) == b""
    assert objects.exists("index/empty")
    objects.delete("index/empty")
    objects.delete("index/empty")
    assert not objects.exists("index/empty")
    assert not objects.exists("index")
    assert not objects.exists("index.jso")


def test_a_url_leads_back_to_its_objects(tmp_path: Path, s3_bucket: str) -> None:
    folder = tmp_path / "a folder"
    for url in (str(folder), os.path.relpath(folder), folder.as_uri(), s3_bucket, f"{s3_bucket}/", f"{s3_bucket}/some/prefix/"):
        open_objects(url).put("a", url.encode())
        assert open_objects(open_objects(url).url).get("a") == url.encode()
    assert (folder / "a").read_bytes() == folder.as_uri().encode()
    assert list(open_objects(s3_bucket).sizes()) == ["a", "some/prefix/a"]


def test_a_file_of_several_parts_arrives_whole(objects: Folder | Bucket, tmp_path: Path) -> None:
    data = os.urandom(20 * MIB + 1)
    (tmp_path / "shard").write_bytes(data)
    objects.put_file("train-000000.tar", tmp_path / "shard")
    assert objects.sizes() == {"train-000000.tar": len(data)}
    assert objects.get("train-000000.tar") == data
    assert objects.get_range("train-000000.tar", 8 * MIB - 1, 4) == data[8 * MIB - 1 : 8 * MIB + 3]
    assert isinstance(objects, Folder) or "-3" in objects.etags()["train-000000.tar"]  # S3's mark of three parts


def test_more_names_than_one_page_of_a_list(s3_url: str) -> None:
    objects = open_objects(s3_url)
    expected = {f"train-{number:06d}.tar": number % 3 for number in range(1003)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: objects.put(name, bytes(expected[name])), expected))
    open_objects(f"{s3_url}-others").put("x", b"")
    assert list(objects.sizes().items()) == list(expected.items())


def test_etags_change_with_the_bytes(s3_bucket: str) -> None:
    objects = Bucket(s3_bucket.removeprefix("s3://"))
    objects.put("a", b"1")
    objects.put("b", b"1")
    first = objects.etags()
    objects.put("b", b"2")
    assert set(first) == {"a", "b"}
    assert objects.etags()["a"] == first["a"]
    assert objects.etags()["b"] != first["b"]


def test_a_missing_object_is_wrong_input(objects: Folder | Bucket) -> None:
    objects.put("some", b"1")
    with pytest.raises(InputError) as whole:
        objects.get("none")
    one_line(whole, "no such", objects.url + "/none")
    with pytest.raises(InputError) as part:
        objects.get_range("none", 0, 1)
    one_line(part, "no such", objects.url + "/none")


def test_a_range_past_the_end_is_wrong_input(objects: Folder | Bucket) -> None:
    objects.put("three", b"123")
    assert objects.get_range("three", 2, 1) == b"3"
    for start, length in [(0, 4), (2, 2), (3, 1), (9, 1)]:
        with pytest.raises(InputError) as error:
            objects.get_range("three", start, length)
        one_line(error, "shorter than asked for", objects.url + "/three")


def test_a_missing_local_file_is_wrong_input(objects: Folder | Bucket, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        objects.put_file("a", tmp_path / "none")
    one_line(error, "no such file", str(tmp_path / "none"))


def test_a_writer_killed_in_the_middle_changes_nothing(objects: Folder | Bucket, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    objects.put("shard", b"old")
    code = "import sys, pathlib, datasets.object_storage as o; o.open_objects(sys.argv[1]).put_file('shard', pathlib.Path(sys.argv[2]))"  # noqa: E501
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, objects.url, str(fifo)]
    with subprocess.Popen(command, cwd=root) as child, fifo.open("wb", 0) as source:
        for _ in range(17):
            source.write(bytes(MIB))
        assert child.poll() is None  # in the middle: more than two parts of a multipart upload are read
        child.kill()
        child.wait()
        with pytest.raises(BrokenPipeError):
            source.write(bytes(2 * FIFO_BUFFER))
    assert objects.get("shard") == b"old"
    assert objects.sizes() == {"shard": 3}


def test_a_reader_of_the_old_file_reads_it_to_its_end(tmp_path: Path) -> None:
    objects = Folder(tmp_path)
    objects.put("a", b"old")
    with (tmp_path / "a").open("rb") as reader:
        objects.put("a", b"new")
        assert reader.read() == b"old"


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "pipe:cat x",
            "pipe: curl http://x",
            "s3://pipe:cat",
            "http://host/x",
            "gs://b/x",
            "s3:bucket",
            "s3://",
            "s3://B_d/x",
        ),
        *(
            "s3://bucket/../other",
            "s3://bucket/a//b",
            "file://host/x",
            "file:x",
            "data:text",
            "$(ls):x",
            "a\nb",
            "x\0",
            "s3://b\n",
        ),
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InputError) as error:
        open_objects(url)
    one_line(error, "s3://bucket/prefix" if ".." not in url and "//b" not in url[5:] else "relative path")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://My_Bucket/x", "'My_Bucket' is no name of a bucket: it has upper-case letters and has an underscore"),
        ("s3://bucket_1", "it has an underscore"),
        ("s3://ab/x", "it has 2 characters, where 3 to 63 are allowed"),
        ("s3://" + "a" * 64, "it has 64 characters"),
        ("s3:///prefix", "'' is no name of a bucket: it has 0 characters"),
        ("s3://a..b/x", "it has two dots side by side"),
        ("s3://-ab", "it begins or ends with . or -"),
        ("s3://ab./x", "it begins or ends with . or -"),
        ("s3://192.168.0.1/x", "it has the form of an IP address"),
        ("s3://my bucket/x", "it has other characters than a-z, 0-9, . and -"),
        ("s3://b\u00fccher/x", "it has other characters than"),
        ("s3://user@bucket/x", "it has other characters than"),
        ("s3:/bucket/x", "write s3://bucket/prefix, in lower case and with two slashes"),
        ("S3://bucket/x", "write s3://bucket/prefix, in lower case and with two slashes"),
        ("s3a://bucket/x", "write s3://bucket/prefix, in lower case and with two slashes"),
    ],
)
def test_a_wrong_s3_url_is_explained(url: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        open_objects(url)
    one_line(error, message, repr(url))


def test_keys_may_have_spaces_and_any_letters(s3_url: str) -> None:
    prefix = f"{s3_url}/a b/\u00fcn\u00ef+1%20 (x)/\u5199\u771f"
    objects = open_objects(prefix)
    objects.put("sh\u00e4rd 0&=?#.tar", b"12345")
    assert open_objects(prefix).sizes() == {"sh\u00e4rd 0&=?#.tar": 5}
    assert open_objects(prefix).get_range("sh\u00e4rd 0&=?#.tar", 1, 3) == b"234"
    assert objects.exists("sh\u00e4rd 0&=?#.tar")


def test_names_do_not_leave_the_url(objects: Folder | Bucket) -> None:
    for name in ("", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "a\nb", "a\0"):
        for call in (objects.get, objects.exists, objects.delete, lambda name: objects.put(name, b"")):
            with pytest.raises(InputError, match="not an object's name"):
                call(name)


@given(st.text(alphabet="./a\\ ~", max_size=12))
def test_a_checked_name_stays_below_any_folder(name: str) -> None:
    try:
        path = Path("/base/folder", checked(name))
    except InputError:
        return
    assert Path(os.path.normpath(path)).is_relative_to("/base/folder")
    assert os.path.normpath(path) != "/base/folder"


def test_an_unwritable_folder_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", Path("/proc/nothing")):
        with pytest.raises(InputError) as error:
            open_objects(str(folder)).put("a", b"1")
        one_line(error, str(folder / "a"), "permissions")


def test_a_folder_keeps_no_rest_of_a_put_that_failed(tmp_path: Path) -> None:
    objects = Folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        objects.put("a", b"1")
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    Folder(tmp_path).put("a", b"1")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


CALLS: list[Callable[[Folder | Bucket], object]] = [
    lambda objects: objects.put("a", b"1"),
    lambda objects: objects.put_file("a", Path(__file__)),
    lambda objects: objects.get("a"),
    lambda objects: objects.sizes(),
    lambda objects: objects.exists("a"),
    lambda objects: objects.delete("a"),
]


def refusals(url: str, *parts: str) -> None:
    """Assert that every call is refused in one line that names the parts."""
    objects = open_objects(url)
    for call in CALLS:
        with pytest.raises(InputError) as error:
            call(objects)
        one_line(error, *parts)


def test_a_missing_bucket_is_wrong_input(s3_server: S3Server) -> None:
    refusals("s3://there-is-none", "no such bucket: s3://there-is-none", f"at 127.0.0.1:{s3_server.ports['s3']}", "create it")


@pytest.mark.parametrize(("variable", "what"), [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "unknown")])
def test_wrong_credentials_are_wrong_input(s3_url: str, monkeypatch: pytest.MonkeyPatch, variable: str, what: str) -> None:
    monkeypatch.setenv(variable, "hunter2hunter2")
    refusals(s3_url, f"the credentials are {what}", s3_url, "check AWS_ACCESS_KEY_ID")
    with pytest.raises(InputError) as error:
        open_objects(s3_url).sizes()
    assert "hunter2" not in str(error.value)


def test_no_credentials_are_wrong_input(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError) as partial:
        open_objects(s3_bucket).sizes()
    one_line(partial, "AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    refusals(s3_bucket, "no credentials", s3_bucket, "set AWS_ACCESS_KEY_ID")


def test_an_unknown_profile_is_wrong_input(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InputError) as error:
        open_objects(s3_bucket)
    one_line(error, "nobody", "AWS_PROFILE")


def test_an_endpoint_that_nobody_serves_is_wrong_input(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_ports(1)[0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:{port}")
    with pytest.raises(InputError) as error:
        open_objects(s3_bucket).get("a")
    one_line(error, "is unreachable", f"at 127.0.0.1:{port}", "AWS_ENDPOINT_URL")


def test_an_endpoint_that_is_no_url_is_wrong_input(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:8333")
    with pytest.raises(InputError) as error:
        open_objects(s3_bucket)
    one_line(error, "AWS_ENDPOINT_URL", "http://host:port")


def test_an_endpoint_that_is_no_s3_service_is_wrong_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", "any"), ("SECRET_ACCESS_KEY", SECRET), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError) as error:
            open_objects("s3://no-such-folder").exists("a")
        server.shutdown()
    one_line(error, "S3 answered 404", "AWS_ENDPOINT_URL")


@pytest.mark.parametrize("faults", [Faults(slow_down=0.3), Faults(reset=0.3), Faults(truncate=0.3)])
def test_reads_outlive_faults(s3_url: str, s3_proxy: FaultProxy, faults: Faults) -> None:
    objects = open_objects(s3_url)
    data = os.urandom(100_000)
    objects.put("a", data)
    s3_proxy.faults = faults
    assert all(objects.get("a") == data for _ in range(6))
    assert s3_proxy.counts["gets"] > 6


def test_a_read_that_always_breaks_is_reported(s3_url: str, s3_proxy: FaultProxy) -> None:
    objects = open_objects(s3_url)
    objects.put("a", bytes(1000))
    s3_proxy.faults = Faults(truncate=1)
    with pytest.raises(InputError) as error:
        objects.get("a")
    one_line(error, "is unreachable", s3_url + "/a")
    assert s3_proxy.counts["truncate"] == 4
