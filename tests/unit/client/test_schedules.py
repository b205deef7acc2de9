"""`ai-agent schedules` and `client.schedules`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from typer.testing import CliRunner

from aiagent.scheduler.v1.schedule_pb2 import Schedule, ScheduleBackfill, ScheduleSpec
from aiagent_client import Client
from aiagent_client.cli import app
from tests.unit.client.scripted_server import ScriptedServer
from tests.unit.client.terminal import CommandLine

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "nightly"],
        ["create", "nightly", "--cron", "@daily", "--every", "1h"],
        ["create", "nightly", "--every", "often"],
        ["create", "nightly", "--cron", "@daily", "--start", "tomorrow"],
        ["create", "nightly", "--cron", "@daily", "--variable", "a"],
        ["create", "nightly", "--cron", "@daily", "--variable", "a:=many"],
        ["create", "nightly", "--cron", "@daily", "--overlap", "twice"],
        ["create", "nightly", "--cron", "@daily", "--runs", "0"],
        ["preview"],
        ["preview", "weekdays", "--cron", "@daily"],
        ["preview", "--time-zone", "UTC"],
        ["preview", "weekdays", "--count", "0"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_2(tmp_path: Path, arguments: list[str]) -> None:
    environment = {"AIAGENT_CONFIG_DIR": str(tmp_path)}
    result = CliRunner().invoke(app, ["schedules", *arguments], env=environment, input="")
    assert result.exit_code == 2, result.output


async def test_schedules_from_creation_to_deletion(server: ScriptedServer, command: CommandLine) -> None:
    task = server.new_task(name="nightly", prompt_template="x")
    created = await command.run(
        "schedules", "create", "nightly", "--cron", "30 9 * * mon-fri", "-z", "Europe/Berlin", "--name", "weekdays",
        "--variable", "repository=core", "--variable", "limit:=5", "--overlap", "buffer-one", "--catch-up", "1h",
        "--jitter", "30s", "--end", "2031-01-01T00:00+00:00", "--pause-on-failure", "--runs", "7", "-o", "json",
    )  # fmt: skip
    assert created.code == 0, created.err
    sent = MessageToDict(server.calls["CreateSchedule"][0], preserving_proto_field_name=True)
    assert sent.pop("request_id")
    assert sent == {
        "task_id": task.id,
        "name": "weekdays",
        "spec": {
            "cron_expression": "30 9 * * mon-fri",
            "time_zone": "Europe/Berlin",
            "jitter": "30s",
            "end_time": "2031-01-01T00:00:00Z",
        },
        "variables": {"repository": "core", "limit": 5.0},
        "overlap_policy": "BUFFER_ONE",
        "catch_up_window": "3600s",
        "pause_on_failure": True,
        "remaining_runs": "7",
    }
    identity = created.json["id"]
    shown = await command.run("schedules", "get", "weekdays")
    for text in (
        identity,
        "30 9 * * mon-fri (Europe/Berlin)",
        'limit=5, repository="core"',
        "buffer one",
        "pauses",
    ):
        assert text in shown.out
    paused = await command.run("schedules", "pause", "weekdays", "--note", "away \x1b[31m")
    assert "paused" in paused.out
    assert "\x1b" not in paused.out
    assert server.schedules[identity].note == "away \x1b[31m"
    listed = await command.run("schedules", "list", "--task", "nightly", "--state", "paused", "-o", "json")
    assert [schedule["id"] for schedule in listed.json] == [identity]
    assert (await command.run("schedules", "list", "--state", "ended")).err == "no schedules\n"
    assert (await command.run("schedules", "resume", identity[:8])).code == 0
    fires = await command.run("schedules", "preview", "weekdays", "--count", "5")
    assert fires.out.count("2026-03-29T03:00:00+02:00") == 2
    request = server.calls["PreviewSchedule"][0]
    assert (request.schedule_id, request.count, request.HasField("spec")) == (identity, 5, False)
    assert (await command.run("schedules", "delete", "weekdays")).code == 2
    assert (await command.run("schedules", "delete", "weekdays", "--yes")).out == f"deleted {identity}\n"
    assert not server.schedules


async def test_a_spec_is_previewed_before_it_is_kept(server: ScriptedServer, command: CommandLine) -> None:
    shown = await command.run(
        "schedules", "preview", "--cron", "30 2 * * *", "-z", "Europe/Berlin", "--after", "2026-03-28T00:00Z"
    )
    assert shown.code == 0, shown.err
    (request,) = server.calls["PreviewSchedule"]
    assert MessageToDict(request, preserving_proto_field_name=True) == {
        "spec": {"cron_expression": "30 2 * * *", "time_zone": "Europe/Berlin"},
        "count": 10,
        "after": "2026-03-28T00:00:00Z",
    }


async def test_an_update_changes_what_is_given_of_the_spec(
    server: ScriptedServer, command: CommandLine
) -> None:
    server.new_task(name="nightly", prompt_template="x")
    made = await command.run(
        "schedules", "create", "nightly", "--cron", "@daily", "-z", "Europe/Berlin", "-o", "json"
    )
    identity = made.json["id"]
    done = await command.run(
        "schedules", "update", identity, "--every", "2h", "--runs", "0", "--no-pause-on-failure"
    )
    assert done.code == 0, done.err
    (sent,) = server.calls["UpdateSchedule"]
    assert set(sent.update_mask.paths) == {"spec", "remaining_runs", "pause_on_failure"}
    assert (sent.etag, sent.HasField("remaining_runs")) == ('"1"', False)
    spec = server.schedules[identity].spec
    assert (spec.WhichOneof("times"), spec.interval.seconds, spec.time_zone) == (
        "interval",
        7200,
        "Europe/Berlin",
    )
    nothing = await command.run("schedules", "update", identity)
    assert (nothing.code, len(server.calls["UpdateSchedule"])) == (2, 1)


async def test_the_client_sends_what_it_is_given(server: ScriptedServer, client: Client) -> None:
    task = server.new_task(name="nightly", prompt_template="x")
    made = await client.schedules.create(
        task.id,
        ScheduleSpec(cron_expression="@daily"),
        variables={"limit": 5},
        catch_up_window=timedelta(hours=1),
    )
    assert (made.variables["limit"], made.catch_up_window.seconds) == (5, 3600)
    changed = await client.schedules.update(made.id, name="daily", remaining_runs=3, variables={})
    assert (changed.name, changed.remaining_runs, dict(changed.variables)) == ("daily", 3, {})
    assert not (await client.schedules.update(made.id, remaining_runs=-1)).HasField("remaining_runs")
    assert [schedule.id async for schedule in client.schedules.list(task_id=task.id)] == [made.id]
    assert len(await client.schedules.preview(ScheduleSpec(cron_expression="@daily"), count=1)) == 1
    assert (await client.schedules.pause(made.id, "away")).note == "away"
    assert (await client.schedules.resume(made.id)).note == ""
    await client.schedules.delete(made.id)
    assert not server.schedules


async def test_backfills_from_the_wish_to_its_end(server: ScriptedServer, command: CommandLine) -> None:
    server.new_task(name="nightly", prompt_template="x")
    await command.run("schedules", "create", "nightly", "--cron", "@daily", "--name", "core")
    made = await command.run(
        "tasks", "backfill", "core", "--from", "2026-11-01T00:00Z", "--to", "2026-11-07T23:59+01:00",
        "--overlap", "allow-all",
    )  # fmt: skip
    assert made.code == 0, made.err
    (identity,) = server.backfills
    (sent,) = server.calls["BackfillSchedule"]
    assert sent.request_id
    assert (sent.start_time.ToJsonString(), sent.end_time.ToJsonString()) == (
        "2026-11-01T00:00:00Z",
        "2026-11-07T22:59:00Z",
    )
    assert sent.overlap_policy == Schedule.ALLOW_ALL
    for text in (identity, "running", "allow all"):
        assert text in made.out
    assert made.err == f"its runs: ai-agent tasks runs --backfill {identity}\n"
    plain = await command.run(
        "schedules", "backfill", "core", "--from", "2026-11-01", "--to", "2026-11-02", "-o", "json"
    )
    assert (plain.err, plain.json["overlap_policy"]) == ("", "SKIP")
    assert server.calls["BackfillSchedule"][1].overlap_policy == Schedule.OVERLAP_POLICY_UNSPECIFIED
    listed = await command.run("schedules", "backfills", "core", "-o", "json")
    assert [backfill["id"] for backfill in listed.json] == [plain.json["id"], identity]
    assert identity in (await command.run("tasks", "backfills", "core")).out
    assert (await command.run("tasks", "cancel-backfill", identity[:8])).code == 2
    assert "cancelled" in (await command.run("tasks", "cancel-backfill", identity.upper())).out
    await command.run("tasks", "runs", "--backfill", identity, "--schedule", "core")
    asked = server.calls["ListTaskRuns"][-1]
    assert (asked.backfill_id, asked.schedule_id) == (identity, sent.schedule_id)


@pytest.mark.parametrize("span", [[], ["--from", "2026-11-01"], ["--from", "then", "--to", "2026-11-02"]])
def test_a_backfill_has_both_ends(tmp_path: Path, span: list[str]) -> None:
    environment = {"AIAGENT_CONFIG_DIR": str(tmp_path)}
    result = CliRunner().invoke(app, ["tasks", "backfill", "core", *span], env=environment, input="")
    assert result.exit_code == 2, result.output


async def test_what_a_task_has_of_schedules(server: ScriptedServer, command: CommandLine) -> None:
    server.new_task(name="nightly", prompt_template="x")
    made = await command.run(
        "schedules", "create", "nightly", "--cron", "@daily", "--name", "core", "-o", "json"
    )
    schedule = server.schedules[made.json["id"]]
    schedule.missed_fires = 3
    schedule.last_fire_time.FromJsonString("2026-03-29T01:00:00Z")
    paused = await command.run("tasks", "pause", "core", "--note", "away")
    assert (paused.code, schedule.note) == (0, "away")
    for text in ("missed", "3 fires", "last fire"):
        assert text in paused.out
    assert (await command.run("tasks", "resume", "core")).code == 0
    assert "2026-03-29T03:00:00+02:00" in (await command.run("tasks", "preview", "core")).out
    shown = await command.run("tasks", "pause", "--help")
    assert "ai-agent tasks pause weekdays" in shown.out
    assert "ai-agent schedules" not in shown.out


async def test_the_client_pages_backfills(server: ScriptedServer, client: Client) -> None:
    task = server.new_task(name="nightly", prompt_template="x")
    schedule = await client.schedules.create(task.id, ScheduleSpec(cron_expression="@daily"))
    span = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 2, tzinfo=UTC)
    made = [(await client.schedules.backfill(schedule.id, *span)).id for _ in range(5)]
    found = [backfill.id async for backfill in client.schedules.backfills(schedule.id, page_size=2)]
    assert found == made[::-1]
    assert (await client.schedules.get_backfill(made[0])).start_time.ToDatetime(UTC) == span[0]
    cancelled = await client.schedules.cancel_backfill(made[0])
    assert cancelled.state == ScheduleBackfill.CANCELLED
