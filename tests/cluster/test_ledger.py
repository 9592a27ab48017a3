"""Records: written completely or not at all, with one creator each, in a folder and in a bucket."""

import errno
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.ledger import Ledger, open_ledger
from cluster.scheduler import schedules, start_record
from datasets.object_storage import open_objects


@pytest.fixture(params=["folder", "bucket"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    return open_ledger(str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3_url"))


def test_records_are_read_as_written(ledger: Ledger) -> None:
    assert ledger.names("a") == []
    assert ledger.get("a/x.json") is None
    ledger.put("a/x.json", {"n": 1})
    ledger.put("a/x.json", {"n": 2})
    assert ledger.get("a/x.json") == {"n": 2}
    assert not ledger.create("a/x.json", {"n": 3})
    assert ledger.create("a/y.json", {"n": 3})
    assert ledger.create("ab/z.json", {})
    assert ledger.names("a") == ["a/x.json", "a/y.json"]
    ledger.delete("a/x.json")
    ledger.delete("a/x.json")
    assert ledger.names("a") == ["a/y.json"]


def test_one_of_many_writers_creates_a_record(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda k: (k % 10, ledger.create(f"r/{k % 10}.json", {"by": k})), range(80)))
    assert sorted(place for place, ours in won if ours) == list(range(10))
    assert len(ledger.names("r")) == 10


def test_no_unfinished_file_is_left_in_a_folder(tmp_path: Path) -> None:
    ledger = open_ledger(str(tmp_path))
    ledger.create("a/x.json", {})
    ledger.create("a/x.json", {})
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["x.json"]


def test_an_unwritable_storage_is_one_line(tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match=r"cannot be read or written .file exists.: .*file"):
        open_ledger(str(tmp_path / "file")).put("a.json", {})
    with pytest.raises(ClusterError, match=r"S3 answered NoSuchBucket"):
        open_ledger("s3://no-such-bucket-here/x").create("a.json", {})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    with pytest.raises(ClusterError, match="S3 answered ") as caught:
        open_ledger(s3_url).put("a.json", {})
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b"null", b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_one_line(ledger: Ledger, data: bytes) -> None:
    open_objects(ledger.url).put("a/x.json", data)
    with pytest.raises(ClusterError, match=r"the record is not a JSON object: .*a/x\.json; repair or remove it"):
        ledger.get("a/x.json")


@pytest.mark.parametrize("url", ["S3://bucket/x", "s3:/bucket/x", "s3:bucket"])
def test_a_wrong_url_makes_no_folder(url: str) -> None:
    with pytest.raises(ClusterError, match="write s3://bucket/prefix"):
        open_ledger(url)


def test_records_of_schedules_with_wrong_fields_are_one_line(tmp_path: Path) -> None:
    ledger = open_ledger(str(tmp_path))
    right = {"name": "a", "cron": "0 3 * * *", "command": ["x"], "created": "2026-01-01T00:00:00+00:00"}
    ledger.put("schedules/a.json", right)
    assert schedules(ledger)[0].command == ("x",)
    for wrong in ({"created": 3}, {"created": "x"}, {"command": None}, {"cron": 5}, {"name": []}, {"retries": "x"}, {"more": 1}):
        ledger.put("schedules/a.json", {**right, **wrong})
        with pytest.raises(ClusterError, match=r"the record of a schedule is damaged: .*a\.json"):
            schedules(ledger)
    start = {"at": "2026-01-01T00:00:00+00:00", "attempt": 1, "state": "failed", "job": "a-1", "note": "", "passed": 0}
    ledger.put("starts/a/x.json", start)
    assert start_record(ledger, "starts/a/x.json") == start
    wrong_starts = ({"at": "x"}, {"at": 3}, {"at": "2026-01-01"}, {"attempt": "1"}, {"state": None}, {"state": "claimed"})
    for other in wrong_starts:
        ledger.put("starts/a/x.json", {**start, **other})
        with pytest.raises(ClusterError, match=r"the record of a start is damaged: .*x\.json; remove it"):
            start_record(ledger, "starts/a/x.json")


def test_the_age_of_a_record_is_by_the_clock_of_the_storage(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.put("a/x.json", {})
    monkeypatch.setattr("time.time", lambda: 0.0)
    time.sleep(2)
    assert 1 <= ledger.age("a/x.json") <= 60
    ledger.put("a/x.json", {})
    assert ledger.age("a/x.json") < 2
    assert ledger.age("a/y.json") == 0


def test_one_creates_a_record_on_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*paths: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("os.link", link)
    ledger = open_ledger(str(tmp_path))
    assert [ledger.create("a/x.json", {"n": n}) for n in (1, 2)] == [True, False]
    assert ledger.get("a/x.json") == {"n": 1}
