# ruff: noqa: E501 - one example a line
"""When schedules fire: worked examples, bounds, intervals and jitter."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kernel.errors import ServiceError
from services.scheduler.domain.fires import IntervalTimes, RunLimit, ScheduleSpec
from services.scheduler.domain.local_time import ZoneError, check_zone
from services.scheduler.domain.specs import read_spec

pytestmark = pytest.mark.unit
HOUR = timedelta(hours=1)


def fires(expression: str, zone: str, start: str, end: str) -> list[str]:
    """Fires from `start` to `end`, both local, as `day time offset`."""
    there = ZoneInfo(zone)
    after = datetime.fromisoformat(start).replace(tzinfo=there) - timedelta(seconds=1)
    until = datetime.fromisoformat(end).replace(tzinfo=there)
    found = read_spec(cron_expression=expression, time_zone=zone).between(after, until, 1000)
    assert all(fire.utcoffset() == timedelta() for fire in found)
    return [fire.astimezone(there).strftime("%d %H:%M %z") for fire in found]


@pytest.mark.parametrize(
    ("expression", "zone", "start", "end", "wanted"),
    [
        # In Berlin 29 March 2026 has no 02:00 to 03:00, and 25 October has them twice.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28", "2026-03-31", ["28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24", "2026-10-27", ["24 02:30 +0200", "25 02:30 +0200", "26 02:30 +0100"]),
        # Those that are skipped meet in one fire, with the one that stands at that instant itself, too.
        ("0,20,40 2-3 * * *", "Europe/Berlin", "2026-03-29", "2026-03-29 12:00", ["29 03:00 +0200", "29 03:20 +0200", "29 03:40 +0200"]),
        ("10,50 2 * * *", "Europe/Berlin", "2026-03-29", "2026-03-29 12:00", ["29 03:00 +0200"]),
        ("*/15 * * * *", "Europe/Berlin", "2026-03-29 01:30", "2026-03-29 03:15",
         ["29 01:30 +0100", "29 01:45 +0100", "29 03:00 +0200", "29 03:15 +0200"]),
        ("*/15 * * * *", "Europe/Berlin", "2026-10-25 01:45", "2026-10-25 03:00",
         ["25 01:45 +0200", "25 02:00 +0200", "25 02:15 +0200", "25 02:30 +0200", "25 02:45 +0200",
          "25 02:00 +0100", "25 02:15 +0100", "25 02:30 +0100", "25 02:45 +0100", "25 03:00 +0100"]),
        ("20 * * * *", "Europe/Berlin", "2026-03-29 01:00", "2026-03-29 04:00", ["29 01:20 +0100", "29 03:20 +0200"]),
        ("0 */2 * * *", "Europe/Berlin", "2026-10-25", "2026-10-25 06:00",
         ["25 00:00 +0200", "25 02:00 +0200", "25 02:00 +0100", "25 04:00 +0100", "25 06:00 +0100"]),
        ("0 1-3 * * *", "Europe/Berlin", "2026-10-25", "2026-10-25 06:00", ["25 01:00 +0200", "25 02:00 +0200", "25 03:00 +0100"]),
        # Lord Howe moves its clocks by half an hour, from and to 02:00.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03", "2026-10-05 12:00", ["03 02:15 +1030", "04 02:30 +1100", "05 02:15 +1100"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04", "2026-04-06 12:00", ["04 01:45 +1100", "05 01:45 +1100", "06 01:45 +1030"]),
        ("*/15 * * * *", "Australia/Lord_Howe", "2026-04-05 01:30", "2026-04-05 02:00",
         ["05 01:30 +1100", "05 01:45 +1100", "05 01:30 +1030", "05 01:45 +1030", "05 02:00 +1030"]),
        # Midnight itself may be missing.
        ("0 0 * * *", "Asia/Beirut", "2026-03-28", "2026-03-30 12:00", ["28 00:00 +0200", "29 01:00 +0300", "30 00:00 +0300"]),
        ("0 0 * * sun", "Asia/Beirut", "2026-03-23", "2026-03-30 12:00", ["29 01:00 +0300"]),
        # Samoa had no 30 December 2011.
        ("0 9 * * *", "Pacific/Apia", "2011-12-29", "2011-12-31 12:00", ["29 09:00 -1000", "31 00:00 +1400", "31 09:00 +1400"]),
        ("0 */12 * * *", "Pacific/Apia", "2011-12-29", "2011-12-31 12:00",
         ["29 00:00 -1000", "29 12:00 -1000", "31 00:00 +1400", "31 12:00 +1400"]),
        # Kwajalein had no 21 August 1993.
        ("30 6 21 8 *", "Pacific/Kwajalein", "1993-08-01", "1993-08-31", ["22 00:00 +1200"]),
        # Once a year, beside a change.
        ("0 1 29 3 *", "Europe/Berlin", "2024-06-01", "2026-06-01", ["29 01:00 +0100", "29 01:00 +0100"]),
        ("30 2 29 3 *", "Europe/Berlin", "2024-06-01", "2026-06-01", ["29 02:30 +0100", "29 03:00 +0200"]),
        ("0 0 29 2 *", "Europe/Berlin", "2026-01-01", "2037-01-01", ["29 00:00 +0100", "29 00:00 +0100", "29 00:00 +0100"]),
        ("0 0 L 2 *", "Europe/Berlin", "2026-01-01", "2029-01-01", ["28 00:00 +0100", "28 00:00 +0100", "29 00:00 +0100"]),
    ],
)  # fmt: skip
def test_worked_examples(expression: str, zone: str, start: str, end: str, wanted: list[str]) -> None:
    assert fires(expression, zone, start, end) == wanted


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def daily(**bounds: Any) -> ScheduleSpec:
    return read_spec(cron_expression="0 12 * * *", **bounds)


def test_start_and_end_are_included() -> None:
    spec = daily(start_time=at("2026-05-01 12:00"), end_time=at("2026-05-03 12:00"))
    wanted = [at(f"2026-05-0{day} 12:00") for day in (1, 2, 3)]
    assert spec.preview(at("2020-01-01"), 10) == wanted
    assert spec.next_after(wanted[-1]) is None
    assert spec.between(wanted[0], wanted[1], 10) == wanted[1:2], (
        "from the one excluded to the other included"
    )
    assert spec.between(at("2020-01-01"), at("2030-01-01"), 2) == wanted[:2]
    later = daily(start_time=at("2026-05-01 12:00") + timedelta(microseconds=1))
    assert later.next_after(at("2020-01-01")) == at("2026-05-02 12:00")


def test_instants_are_taken_in_any_zone() -> None:
    tokyo = datetime(2026, 5, 1, 20, 59, tzinfo=ZoneInfo("Asia/Tokyo"))
    assert daily().next_after(tokyo) == at("2026-05-01 12:00")


def test_limits_of_runs() -> None:
    assert len(daily().preview(at("2026-01-01"), 5, RunLimit(3))) == 3
    assert len(daily().preview(at("2026-01-01"), 5, RunLimit())) == 5
    assert (
        RunLimit(3).cut(2) == 2 and RunLimit(3).after(2) == RunLimit(1) and RunLimit().after(2) == RunLimit()
    )
    assert RunLimit(0).exhausted and not RunLimit(1).exhausted and not RunLimit().exhausted


def test_the_end_of_the_calendar() -> None:
    assert daily().next_after(datetime(9999, 12, 31, tzinfo=UTC)) is None
    assert read_spec(interval=HOUR).next_after(datetime(9999, 12, 31, tzinfo=UTC)) is None


def test_intervals_keep_their_phase_through_changes_of_clocks() -> None:
    spec = read_spec(interval=7 * HOUR, time_zone="Europe/Berlin", start_time=at("2026-03-28 05:00"))
    found = spec.preview(at("2026-01-01"), 8)
    assert found[0] == at("2026-03-28 05:00")
    assert {b - a for a, b in pairwise(found)} == {7 * HOUR}


def test_an_anchor_sets_the_phase_alone() -> None:
    spec = read_spec(interval=HOUR, anchor=at("2026-05-01 10:20"), start_time=at("2026-04-01 00:00"))
    assert spec.preview(at("2026-01-01"), 2) == [at("2026-04-01 00:20"), at("2026-04-01 01:20")]
    assert read_spec(interval=HOUR).next_after(at("2026-04-01 00:20")) == at("2026-04-01 01:00")


@given(
    every=st.integers(1, 10**6),
    anchor=st.integers(0, 4 * 10**9),
    instant=st.integers(0, 4 * 10**9),
    span=st.integers(0, 10**6),
)
def test_any_interval(every: int, anchor: int, instant: int, span: int) -> None:
    first, after = (datetime.fromtimestamp(value, UTC) for value in (anchor, instant))
    times = IntervalTimes(timedelta(seconds=every), first)
    found = times.next_after(after)
    assert found is not None
    assert after < found <= after + times.every
    assert (found - first) % times.every == timedelta()
    until = after + timedelta(seconds=span)
    if span < 1000 * every:
        assert times.count(after, until) == len(ScheduleSpec(times).between(after, until, 10_000))


def test_jitter_is_the_same_for_the_same_fire_and_spreads_schedules() -> None:
    spec = daily(jitter=HOUR)
    fire = at("2026-05-01 12:00")
    due = [spec.due_time(f"schedule-{number}", fire) for number in range(200)]
    assert due == [spec.due_time(f"schedule-{number}", fire) for number in range(200)]
    assert all(fire <= moment < fire + HOUR for moment in due)
    assert {int((moment - fire) / timedelta(minutes=6)) for moment in due} == set(range(10))
    assert len({spec.due_time("one", day) - day for day in spec.preview(fire, 20)}) == 20
    assert daily().due_time("one", fire) == fire
    assert spec.due_time("one", fire.astimezone(ZoneInfo("Asia/Tokyo"))) == spec.due_time("one", fire)


@settings(max_examples=50)
@given(name=st.text(max_size=9), minutes=st.integers(1, 120))
def test_jitter_keeps_fires_in_their_order(name: str, minutes: int) -> None:
    spec = read_spec(cron_expression="*/7 3,4 * * *", jitter=timedelta(minutes=minutes))
    nominal = spec.preview(at("2026-05-01"), 20)
    due = [spec.due_time(name, fire) for fire in nominal]
    assert all(a < b for a, b in pairwise(due))
    assert all(moment < following for moment, following in zip(due, nominal[1:], strict=False))


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, [("cron_expression", "REQUIRED")]),
        ({"cron_expression": "* * * * *", "interval": HOUR}, [("interval", "AMBIGUOUS")]),
        ({"cron_expression": "0 0 30 2 *"}, [("cron_expression", "NEVER_FIRES")]),
        ({"cron_expression": "nonsense", "time_zone": "Europe/Bonn"}, [("cron_expression", "SYNTAX"), ("time_zone", "UNKNOWN_ZONE")]),
        ({"cron_expression": "@daily", "time_zone": ""}, [("time_zone", "UNKNOWN_ZONE")]),
        ({"cron_expression": "@daily", "time_zone": "../../etc/passwd"}, [("time_zone", "UNKNOWN_ZONE")]),
        ({"cron_expression": "@daily", "time_zone": "/etc/localtime"}, [("time_zone", "UNKNOWN_ZONE")]),
        ({"cron_expression": "@daily", "time_zone": "Europe"}, [("time_zone", "UNKNOWN_ZONE")]),
        ({"cron_expression": "@daily", "time_zone": "posixrules"}, [("time_zone", "UNKNOWN_ZONE")]),
        ({"cron_expression": "@daily", "time_zone": "Factory"}, [("time_zone", "UNKNOWN_ZONE")]),
        ({"cron_expression": "@daily", "time_zone": "Europe/Berlin\0"}, [("time_zone", "UNKNOWN_ZONE")]),
        ({"interval": timedelta()}, [("interval", "OUT_OF_RANGE")]),
        ({"interval": -HOUR}, [("interval", "OUT_OF_RANGE")]),
        ({"interval": timedelta(seconds=1.5)}, [("interval", "OUT_OF_RANGE")]),
        ({"interval": timedelta(days=367)}, [("interval", "OUT_OF_RANGE")]),
        ({"interval": HOUR, "jitter": -HOUR}, [("jitter", "OUT_OF_RANGE")]),
        ({"interval": HOUR, "jitter": 25 * HOUR}, [("jitter", "OUT_OF_RANGE")]),
        ({"interval": HOUR, "start_time": at("2026-05-02"), "end_time": at("2026-05-01")}, [("end_time", "OUT_OF_RANGE")]),
        ({"interval": HOUR, "start_time": at("9998-05-02")}, [("start_time", "OUT_OF_RANGE")]),
        ({"interval": HOUR, "end_time": at("2026-05-01"), "now": at("2026-05-01")}, [("end_time", "NEVER_FIRES")]),
    ],
)  # fmt: skip
def test_what_is_refused(asked: dict[str, Any], wanted: list[tuple[str, str]]) -> None:
    with pytest.raises(ServiceError) as refused:
        read_spec(**asked, path="spec")
    assert refused.value.reason == "INVALID_REQUEST"
    assert [(v.field, v.reason) for v in refused.value.violations] == [(f"spec.{f}", r) for f, r in wanted]


def test_a_zone_in_other_letters_is_refused_with_its_spelling() -> None:
    with pytest.raises(ServiceError, match="Europe/Berlin is meant"):
        read_spec(cron_expression="@daily", time_zone="europe/berlin")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("Europe/Berln", "Europe/Berlin"), ("asia/calcuta", "Asia/Calcutta"), ("Nowhere", ""), ("x" * 64, "")],
)
def test_a_zone_that_is_none_is_told_the_likely_one(name: str, meant: str) -> None:
    with pytest.raises(ZoneError) as refused:
        check_zone(name)
    assert str(refused.value).endswith(f"; {meant} is meant, perhaps" if meant else "such as Europe/Berlin")
