"""Which schedules there can be: what is asked for is checked field by field, and becomes a `ScheduleSpec`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from services.kernel.errors import FieldViolation
from services.scheduler.domain.cron import CronError, CronExpression
from services.scheduler.domain.fires import CronTimes, IntervalTimes, ScheduleSpec
from services.scheduler.domain.local_time import ZoneError, check_zone
from services.scheduler.domain.violations import refuse

MIN_INTERVAL: Final = timedelta(seconds=1)
MAX_INTERVAL: Final = timedelta(days=366)
MAX_JITTER: Final = timedelta(days=1)
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9998, 1, 1, tzinfo=UTC)
_Violate = Callable[[str, str, str], None]


def read_spec(
    *,
    cron_expression: str | None = None,
    interval: timedelta | None = None,
    time_zone: str = "UTC",
    anchor: datetime | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    jitter: timedelta = timedelta(),
    now: datetime | None = None,
    path: str = "",
) -> ScheduleSpec:
    """Checks when a schedule is to fire.

    Args:
        cron_expression: five or six fields, or an alias such as `@daily`; None if there is an interval.
        interval: from one fire to the next, in whole seconds; None if there is a cron expression.
        time_zone: name in the IANA database, which a cron expression is read in.
        anchor: an instant at which an interval fires; None for `start_time`, else for the beginning of 1970.
        start_time: earliest nominal time, itself included; None for no bound.
        end_time: latest nominal time, itself included; None for no bound.
        jitter: how long after its nominal time a fire may be due.
        now: if given, the schedule must fire later than this.
        path: what the names of fields begin with in violations, such as `schedule.spec`.

    Raises:
        ServiceError: INVALID_ARGUMENT with INVALID_REQUEST, and a violation for each field at fault. Their reasons:
            REQUIRED, AMBIGUOUS, SYNTAX, TOO_LONG, NEVER_FIRES, UNKNOWN_ZONE, OUT_OF_RANGE.
    """
    found: list[FieldViolation] = []

    def violate(field: str, reason: str, description: str) -> None:
        found.append(FieldViolation(f"{path}.{field}" if path else field, description, reason))

    for field, value in (("anchor", anchor), ("start_time", start_time), ("end_time", end_time)):
        if value is not None and not _EARLIEST <= value < _LATEST:
            violate(field, "OUT_OF_RANGE", "must be an instant from 1970 to 9997")
    if start_time is not None and end_time is not None and end_time < start_time:
        violate("end_time", "OUT_OF_RANGE", "must not be before start_time")
    if not timedelta() <= jitter <= MAX_JITTER:
        violate("jitter", "OUT_OF_RANGE", f"must be 0 to {MAX_JITTER // timedelta(seconds=1)} seconds")
    times: CronTimes | IntervalTimes | None = None
    if cron_expression is not None and interval is not None:
        violate("interval", "AMBIGUOUS", "must not be given beside cron_expression")
    elif cron_expression is not None:
        times = _read_cron(cron_expression, time_zone, violate)
    elif interval is not None:
        if not MIN_INTERVAL <= interval <= MAX_INTERVAL or interval % MIN_INTERVAL:
            violate(
                "interval",
                "OUT_OF_RANGE",
                f"must be 1 to {MAX_INTERVAL // MIN_INTERVAL} seconds, and whole ones",
            )
        else:
            times = IntervalTimes(interval, (anchor or start_time or _EARLIEST).astimezone(UTC))
    else:
        violate("cron_expression", "REQUIRED", "must be given, or an interval")
    if times is None or found:
        raise refuse(found)
    spec = ScheduleSpec(times, start_time, end_time, jitter)
    if now is not None and spec.next_after(now) is None:
        violate("end_time", "NEVER_FIRES", "must leave the schedule a time at which it fires")
        raise refuse(found)
    return spec


def _read_cron(text: str, time_zone: str, violate: _Violate) -> CronTimes | None:
    expression = None
    try:
        expression = CronExpression.read(text)
    except CronError as error:
        violate("cron_expression", error.reason, str(error))
    try:
        check_zone(time_zone)
    except ZoneError as error:
        violate("time_zone", "UNKNOWN_ZONE", str(error))
        return None
    return None if expression is None else CronTimes(expression, time_zone)
