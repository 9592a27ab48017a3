"""When schedules are due: compared with a check of every minute, at clock changes, and by each policy for missed times."""

from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cron import EPOCH, MAX_MISSED, ON_TIME, Due, Schedule, due, times
from cluster.errors import ClusterError

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def schedule(cron: str, **changes: Any) -> Schedule:
    return Schedule("nightly", cron, ("true",), **changes)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


numbers = st.integers(0, 59)


@settings(max_examples=50)
@given(st.sets(numbers, min_size=1, max_size=3), st.sets(st.integers(0, 23), min_size=1, max_size=3), st.integers(0, 5000))
def test_times_are_the_minutes_that_match(minutes: set[int], hours: set[int], start: int) -> None:
    found = schedule(f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * *")
    begin = NOON + start * MINUTE
    every = [begin + (k + 1) * MINUTE for k in range(2 * 1440)]
    wanted = [time for time in every if time.minute in minutes and time.hour in hours]
    assert list(islice(times(found, begin), len(wanted))) == wanted


CRONS = st.sampled_from(
    ["*/7 * * * *", "30 2 * * *", "0 */3 * * *", "15 1-3 * * SUN", "0 0 29 2 *", "59 23 L * *", "0 12 13 * FRI"]
)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])
MOMENTS = st.integers(0, 366 * 1440).map(lambda minute: datetime(2026, 1, 1, tzinfo=UTC) + minute * MINUTE)


@settings(max_examples=100)
@given(CRONS, ZONES, MOMENTS, st.lists(st.integers(1, 3 * 1440), min_size=1, max_size=6))
def test_every_time_is_handled_once_however_often_one_checks(cron: str, zone: str, begin: datetime, steps: list[int]) -> None:
    found = schedule(cron, zone=zone, missed="all")
    done, now, started = begin, begin, list[datetime]()
    for step in steps:
        now += step * MINUTE
        entries = due(found, done, now)
        assert all(done < entry.at <= now for entry in entries)
        started += [entry.at for entry in entries]
        done = entries[-1].at if entries else done
    wanted = []
    for time in times(found, begin):
        if time > now:
            break
        wanted.append(time)
    if len(wanted) <= MAX_MISSED:
        assert started == wanted


@settings(max_examples=100)
@given(CRONS, ZONES, MOMENTS, st.integers(0, 10 * 1440), st.sampled_from(["last", "all", "skip"]))
def test_every_time_is_started_or_recorded(cron: str, zone: str, done: datetime, minutes: int, missed: Any) -> None:
    now = done + minutes * MINUTE
    entries = due(schedule(cron, zone=zone, missed=missed), done, now)
    every = due(schedule(cron, zone=zone, missed="all"), done, now)
    assert len(entries) + sum(entry.passed for entry in entries) == len(every)
    assert [entry.at for entry in entries] == sorted({entry.at for entry in entries})
    late = [entry for entry in entries if entry.start and now - entry.at > ON_TIME]
    assert len(late) <= {"last": 1, "all": len(every), "skip": 0}[missed]
    on_time = [entry.at for entry in every if now - entry.at <= ON_TIME]
    assert on_time == [entry.at for entry in entries if entry.start and now - entry.at <= ON_TIME]


def test_each_policy_after_a_night_without_a_scheduler() -> None:
    hourly, done, now = "0 * * * *", at("2026-03-10T20:00"), at("2026-03-11T06:20")
    assert due(schedule(hourly), done, now) == [Due(at("2026-03-11T06:00"), True, 9)]
    assert due(schedule(hourly, missed="skip"), done, now) == [Due(at("2026-03-11T06:00"), False, 9)]
    assert [entry.at.hour for entry in due(schedule(hourly, missed="all"), done, now)] == [21, 22, 23, 0, 1, 2, 3, 4, 5, 6]
    assert due(schedule(hourly), done, at("2026-03-11T07:01")) == [Due(at("2026-03-11T07:00"), True, 10)]
    assert due(schedule(hourly), at("2026-03-11T07:00"), at("2026-03-11T07:59")) == []


def test_years_without_a_scheduler_are_limited() -> None:
    entries = due(schedule("* * * * *", missed="all"), EPOCH, NOON)
    assert len(entries) == MAX_MISSED
    assert entries[-1] == Due(NOON, True, 0)


def test_summer_time_neither_drops_nor_doubles_a_daily_time() -> None:
    berlin = schedule("30 2 * * *", zone="Europe/Berlin")  # 02:30 is not there on 29 March 2026, and twice there on 25 October
    spring = list(islice(times(berlin, at("2026-03-27T12:00")), 3))
    assert spring == [at("2026-03-28T01:30"), at("2026-03-29T01:00"), at("2026-03-30T00:30")]
    autumn = list(islice(times(berlin, at("2026-10-23T12:00")), 3))
    assert autumn == [at("2026-10-24T00:30"), at("2026-10-25T00:30"), at("2026-10-26T01:30")]


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("0 0 30 2 *", "never fires: '0 0 30 2"),
        ("0 0 31 4,6 *", "never fires"),
        ("0 0 32 * *", "not a cron expression .bad day-of-month"),
        ("61 * * * *", "not a cron expression .bad minute"),
        ("0 0 1 13 *", "not a cron expression .bad month"),
        ("* * * *", "it does not have five fields"),
        ("0 0 0 1 1 *", "it does not have five fields"),
        ("@daily", "it does not have five fields"),
    ],
)
def test_expressions_that_never_fire_are_refused(cron: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        schedule(cron)


@pytest.mark.parametrize(
    "changes", [{"name": "a/b"}, {"name": ""}, {"command": ()}, {"zone": "Mars/Base"}, {"zone": "../etc/passwd"}, {"retries": -1}]
)
def test_wrong_schedules_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ClusterError):
        Schedule(**{"name": "a", "cron": "* * * * *", "command": ("true",), **changes})
