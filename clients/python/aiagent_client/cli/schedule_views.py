"""How schedules are shown to people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text

from aiagent.scheduler.v1.schedule_pb2 import Schedule, ScheduleBackfill, ScheduleFire, ScheduleSpec
from aiagent_client.cli.output import facts, local_time, plain, table, word
from aiagent_client.cli.tables import Column, fitted
from aiagent_client.cli.text import count_of, duration, json_text


def _when(spec: ScheduleSpec) -> str:
    if spec.HasField("interval"):
        return f"every {duration(spec.interval.ToMilliseconds())}"
    return f"{spec.cron_expression} ({spec.time_zone})"


def rows_of(found: Sequence[Schedule], width: int) -> Text:
    """Returns schedules as a table that fits into the width."""
    return fitted(
        [
            Column("ID", "id"),
            Column("NAME", "text"),
            Column("STATE"),
            Column("WHEN", "text", spare=2),
            Column("NEXT", spare=1),
        ],
        [
            (
                schedule.id,
                plain(schedule.name, 30),
                word(Schedule.State, schedule.state),
                plain(_when(schedule.spec), 50),
                local_time(schedule.next_fire_time),
            )
            for schedule in found
        ],
        width,
    )


def facts_of(schedule: Schedule) -> Any:
    """Returns all about one schedule."""
    spec = schedule.spec
    rows: list[tuple[str, Text | str]] = [
        ("id", schedule.id),
        ("name", plain(schedule.name)),
        ("task", schedule.task_id),
        ("state", word(Schedule.State, schedule.state)),
        ("note", plain(schedule.note, 400)),
        ("when", plain(_when(spec))),
        ("next fire", local_time(schedule.next_fire_time)),
        ("last fire", local_time(schedule.last_fire_time)),
        ("missed", count_of(schedule.missed_fires, "fire") if schedule.missed_fires else ""),
        ("start", _optional(spec, "start_time")),
        ("end", _optional(spec, "end_time")),
        ("jitter", duration(spec.jitter.ToMilliseconds()) if spec.HasField("jitter") else ""),
        ("variables", plain(_variables(schedule))),
        ("overlap", word(Schedule.OverlapPolicy, schedule.overlap_policy)),
        ("catch-up", duration(schedule.catch_up_window.ToMilliseconds())),
        ("on failure", "pauses" if schedule.pause_on_failure else ""),
        ("runs left", str(schedule.remaining_runs) if schedule.HasField("remaining_runs") else ""),
        ("created", local_time(schedule.create_time)),
        ("changed", local_time(schedule.update_time)),
    ]
    return facts(rows)


def _optional(spec: ScheduleSpec, field: str) -> str:
    moment: Timestamp = getattr(spec, field)
    return local_time(moment) if spec.HasField(field) else ""  # type: ignore[arg-type]


def _variables(schedule: Schedule) -> str:
    given: dict[str, Any] = MessageToDict(schedule.variables)
    return ", ".join(f"{name}={json_text(value)}" for name, value in sorted(given.items()))


def fires_of(fires: Sequence[ScheduleFire]) -> Any:
    """Returns fires that are to come as a table."""
    return table(
        [("IN ITS ZONE", {"no_wrap": True}), ("HERE", {"no_wrap": True})],
        [(fire.local_time, local_time(fire.fire_time)) for fire in fires],
    )


def facts_of_backfill(backfill: ScheduleBackfill) -> Any:
    """Returns all about one backfill."""
    rows: list[tuple[str, Text | str]] = [
        ("id", backfill.id),
        ("schedule", backfill.schedule_id),
        ("state", word(ScheduleBackfill.State, backfill.state)),
        ("from", local_time(backfill.start_time)),
        ("to", local_time(backfill.end_time)),
        ("overlap", word(Schedule.OverlapPolicy, backfill.overlap_policy)),
        ("fires made", f"{backfill.fire_count:,}"),
        ("created", local_time(backfill.create_time)),
        ("completed", local_time(backfill.complete_time)),
    ]
    return facts(rows)


def rows_of_backfills(found: Sequence[ScheduleBackfill], width: int) -> Text:
    """Returns backfills as a table that fits into the width; their ids are whole, for they are named by no less."""
    return fitted(
        [
            Column("ID"),
            Column("STATE"),
            Column("FROM", spare=1),
            Column("TO", spare=2),
            Column("FIRES", right=True),
        ],
        [
            (
                backfill.id,
                word(ScheduleBackfill.State, backfill.state),
                local_time(backfill.start_time),
                local_time(backfill.end_time),
                f"{backfill.fire_count:,}",
            )
            for backfill in found
        ],
        width,
    )
