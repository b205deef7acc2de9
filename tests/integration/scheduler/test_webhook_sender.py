"""Messages of webhooks from the end of a run to a receiver: once for each end, again until it is taken, in order."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
import sqlalchemy as sa
from google.protobuf import json_format

from aiagent.scheduler.v1 import run_pb2
from services.kernel.testing import a_caller
from services.scheduler.api import run_mapping
from services.scheduler.domain.runs import Outcome
from services.scheduler.domain.states import RunState
from services.scheduler.domain.webhooks import PER_RECEIVER, DeliveryState, Webhook, secret_bytes, signature
from services.scheduler.store import claims, recording
from services.scheduler.store.system_queries import WebhookQueries
from services.scheduler.store.webhooks import WEBHOOKS
from services.scheduler.usecases.tasks import UpdateTask
from services.scheduler.usecases.webhooks.ports import Answer, DeliveryFilter
from services.scheduler.usecases.worker.ports import Progress

from .receiver import answer, hang, receiving
from .sending import Hall

pytestmark = pytest.mark.integration


async def test_an_end_is_told_once_and_signed(hall: Hall) -> None:
    caller = a_caller()
    await hall.floor.worker()
    await hall.sender()
    task_id = await hall.floor.task(caller, webhook=Webhook(hall.receiver.url))
    run = await hall.floor.run(caller, task_id)
    ended = (await hall.floor.ended(run)).run
    delivery = await hall.until(ended.id, "SUCCEEDED")
    (request,) = hall.receiver.requests
    assert request.line == "POST /hook?a=1 HTTP/1.1"
    assert request.headers["host"] == f"127.0.0.1:{hall.receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == "aiagent-webhooks/1"
    assert request.headers["webhook-id"] == delivery["message_id"] == f"msg_{ended.id.hex}"
    stamp = int(request.headers["webhook-timestamp"])
    assert abs(stamp - ended.end_time.timestamp()) < 30  # type: ignore[union-attr]
    secret = await hall.floor.webhooks.get_secret(caller, task_id)
    expected = signature(secret_bytes(secret.text), delivery["message_id"], stamp, request.body)
    assert request.headers["webhook-signature"] == expected
    assert request.body == delivery["payload"]
    # What it says is what GetTaskRun says, as JSON.
    message = json.loads(request.body)
    assert message["type"] == "task_run.succeeded"
    assert message["data"]["result_truncated"] is False
    told = message["data"]["task_run"]
    assert (told["result"], told["session_id"]) == ("hello there", str(ended.session_id))
    shown = json_format.MessageToDict(
        run_mapping.run(ended), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # Trailing zeros of a fraction are written or not; as a message they are one time.
    read = json_format.ParseDict(told, run_pb2.TaskRun())
    plain = json_format.MessageToDict(
        read, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    both = told.keys() & shown.keys()
    assert {name: shown[name] for name in both} == {name: plain[name] for name in both}
    # Every field of a run but these: whoever adds one says here whether receivers get it.
    left_out = {"variables", "attempts", "skip_reason"} | {"failure", "fire_time"}
    assert told.keys() == set(run_pb2.TaskRun.DESCRIPTOR.fields_by_name) - left_out
    assert message["timestamp"] == told["end_time"]
    (attempt,) = await hall.attempts(delivery["id"])
    assert (attempt.http_status, attempt.error) == (204, "")
    assert attempt.duration > timedelta()


@pytest.mark.parametrize(
    ("states", "told"),
    [((), True), ((RunState.CANCELLED,), True), ((RunState.SUCCEEDED, RunState.FAILED), False)],
)
async def test_only_the_ends_that_are_wanted(hall: Hall, states: tuple[RunState, ...], told: bool) -> None:
    run_id = await hall.ended(webhook=Webhook(hall.receiver.url, states))
    assert len(await hall.deliveries(run_id)) == int(told)


async def test_a_run_that_goes_on_is_not_told_of(hall: Hall) -> None:
    caller = a_caller()
    run = await hall.floor.run(caller, webhook=Webhook(hall.receiver.url))
    queue, outcome = hall.floor.queue(), Outcome(RunState.FAILED)
    (claim,) = await queue.take("w", 1)
    assert await queue.end(claim, outcome, timedelta()) is RunState.QUEUED
    assert await hall.deliveries(run.run.id) == []
    (claim,) = await queue.take("w", 1)
    await queue.end(claim, outcome, None)
    (delivery,) = await hall.deliveries(run.run.id)
    assert delivery["event_type"] == "task_run.failed"


async def test_an_end_that_is_rolled_back_is_not_told_of(hall: Hall) -> None:
    woken = []
    hall.floor.database.on_commit(WEBHOOKS, lambda: woken.append(1))
    caller = a_caller()
    run = await hall.floor.run(caller, webhook=Webhook(hall.receiver.url))

    async def fail() -> None:
        async with hall.floor.database.system() as connection:
            (claim,) = (await claims.claim(connection, "w", 1))[0].runs
            await recording.record(connection, [Progress(claim, outcome=Outcome(RunState.SUCCEEDED))])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await hall.deliveries(run.run.id) == []
    assert woken == []
    await hall.floor.runs.cancel(caller, run.run.id, "")
    assert len(await hall.deliveries(run.run.id)) == 1
    assert woken == [1]


async def test_a_commit_wakes_the_sender_of_its_process(hall: Hall) -> None:
    sender = await hall.sender()
    # Nothing but the commit.
    sender._look_seconds = 3600.0
    hall.floor.database.on_commit(WEBHOOKS, sender.wake)
    sender.wake()
    await hall.until(await hall.ended(), "SUCCEEDED")


async def test_again_until_it_is_taken_with_the_same_id_and_body(hall: Hall) -> None:
    hall.receiver.replies = [answer(500, body=b"not\0now" + b"x" * 2000), answer(503, "retry-after: 7200")]
    await hall.sender()
    run_id = await hall.ended()
    first = await hall.until(run_id, "PENDING", attempts=1)
    pause = first["next_attempt_time"] - first["create_time"]
    assert timedelta(seconds=3.9) < pause < timedelta(seconds=20)
    await hall.due(run_id)
    second = await hall.until(run_id, "PENDING", attempts=2)
    # The receiver's wish is longer than the pause.
    assert second["next_attempt_time"] - first["create_time"] > timedelta(seconds=7200)
    await hall.due(run_id)
    delivery = await hall.until(run_id, "SUCCEEDED")
    assert len({(request.headers["webhook-id"], request.body) for request in hall.receiver.requests}) == 1
    attempts = await hall.attempts(delivery["id"])
    assert [(row.number, row.http_status, row.error) for row in attempts] == [
        (1, 500, "REFUSED"),
        (2, 503, "REFUSED"),
        (3, 204, ""),
    ]
    assert attempts[0].response_body == "not\ufffdnow" + "x" * (1024 - 7)


async def test_given_up_after_a_day(hall: Hall) -> None:
    run_id = await hall.ended()
    queue, refused = WebhookQueries(hall.floor.database), Answer(500, "REFUSED")
    (first,) = await queue.claim("it", 5)
    assert await queue.finish(first, refused, timedelta(days=2)) is DeliveryState.PENDING
    (waiting,) = await hall.deliveries(run_id)
    lasts = waiting["give_up_time"] - waiting["create_time"]
    assert timedelta(hours=24) < lasts < timedelta(hours=24, minutes=1)
    # A pause is cut to what is left: there is one last attempt.
    assert abs(waiting["next_attempt_time"] - waiting["give_up_time"]) < timedelta(seconds=1)
    await hall.due(run_id)
    (last,) = await queue.claim("it", 5)
    await hall.change(run_id, give_up_time=sa.func.clock_timestamp())
    assert await queue.finish(last, refused, timedelta(seconds=5)) is DeliveryState.FAILED
    assert (await hall.deliveries(run_id))[0]["attempt_count"] == 2


async def test_given_up_when_the_receiver_is_gone(hall: Hall) -> None:
    hall.receiver.reply = answer(410)
    await hall.sender()
    gone = await hall.until(await hall.ended(), "FAILED")
    assert gone["attempt_count"] == 1


async def test_a_sender_that_dies_leaves_it_to_another(hall: Hall) -> None:
    hall.receiver.replies = [hang]
    dead = await hall.sender(lease_seconds=1.0)
    run_id = await hall.ended()
    await hall.receiver.until(1)
    await hall.crash(dead)
    (held,) = await hall.deliveries(run_id)
    assert (held["state"], held["attempt_count"]) == ("PENDING", 1)
    assert held["lease_holder"]
    await hall.sender()
    delivery = await hall.until(run_id, "SUCCEEDED")
    ids = [request.headers["webhook-id"] for request in hall.receiver.requests]
    assert ids == [delivery["message_id"]] * 2
    assert [row.error for row in await hall.attempts(delivery["id"])] == ["SENDER_LOST", ""]


async def test_draining_gives_back_what_hangs(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.scheduler.usecases.webhooks.sender._DRAIN_SECONDS", 0.05)
    hall.receiver.replies = [hang]
    sender = await hall.sender()
    run_id = await hall.ended()
    await hall.receiver.until(1)
    await sender.drain()
    (held,) = await hall.deliveries(run_id)
    assert held["lease_holder"] is None
    await hall.sender()
    await hall.until(run_id, "SUCCEEDED")


async def test_who_lost_a_delivery_cannot_fail_it_but_can_tell_of_success(hall: Hall) -> None:
    run_id = await hall.ended()
    queue = WebhookQueries(hall.floor.database)
    (lost,) = await queue.claim("first", 5)
    assert await queue.claim("second", 5) == []
    await hall.due(run_id)
    (held,) = await queue.claim("second", 5)
    assert held.attempt == 2
    failed = Answer(error="TIMEOUT")
    assert await queue.finish(lost, failed, timedelta()) is DeliveryState.PENDING
    (row,) = await hall.deliveries(run_id)
    assert row["lease_holder"] == "second"
    await queue.release("first")
    (row,) = await hall.deliveries(run_id)
    assert row["lease_holder"] == "second"
    assert await queue.finish(lost, Answer(status=200), None) is DeliveryState.SUCCEEDED
    assert await queue.finish(held, failed, timedelta()) is DeliveryState.SUCCEEDED
    # Nothing is left to give back.
    await queue.release("second")
    (row,) = await hall.deliveries(run_id)
    assert row["state"] == "SUCCEEDED"


async def test_what_senders_lose_again_and_again_is_given_up_too(hall: Hall) -> None:
    run_id = await hall.ended()
    queue = WebhookQueries(hall.floor.database)
    await queue.claim("first", 5)
    await hall.change(run_id, give_up_time=sa.func.clock_timestamp())
    # It may be on its way yet.
    assert await queue.claim("second", 5) == []
    assert (await hall.deliveries(run_id))[0]["state"] == "PENDING"
    await hall.due(run_id)
    assert await queue.claim("second", 5) == []
    (delivery,) = await hall.deliveries(run_id)
    assert delivery["state"] == "FAILED"
    assert [row.error for row in await hall.attempts(delivery["id"])] == ["SENDER_LOST"]


async def test_a_receiver_that_hangs_holds_up_no_other(hall: Hall) -> None:
    async with receiving() as dead:
        dead.reply = hang
        caller = a_caller()
        for _ in range(3):
            # Three tasks of one receiver, which count together.
            task_id = await hall.floor.task(caller, webhook=Webhook(dead.url))
            for _ in range(3):
                run = await hall.floor.run(caller, task_id)
                await hall.floor.runs.cancel(caller, run.run.id, "")
        await hall.sender(places=8)
        await dead.until(PER_RECEIVER)
        for _ in range(3):
            await hall.until(await hall.ended(), "SUCCEEDED")
        assert len(dead.requests) == PER_RECEIVER
        for sender in list(hall.senders):
            await hall.crash(sender)


async def test_who_has_least_under_way_goes_first(hall: Hall) -> None:
    busy, other = a_caller(), a_caller()
    for last in range(1, 6):
        await hall.ended(busy, url=f"http://127.0.0.{last}:9/")
    queue = WebhookQueries(hall.floor.database)
    assert len(await queue.claim("a", 2)) == 2
    late = [await hall.ended(other, url="http://127.0.1.1:9/") for _ in range(2)]
    taken = {claim.delivery_id for claim in await queue.claim("a", 3)}
    assert {(await hall.deliveries(run_id))[0]["id"] for run_id in late} < taken
    assert len(taken) == 3


async def test_two_senders_share_what_is_due(hall: Hall) -> None:
    ids = [await hall.ended() for _ in range(12)]
    for _ in range(2):
        await hall.sender()
    for run_id in ids:
        await hall.until(run_id, "SUCCEEDED")
    sent = [request.headers["webhook-id"] for request in hall.receiver.requests]
    assert sorted(sent) == sorted(f"msg_{run_id.hex}" for run_id in ids)
    assert hall.receiver.most_open <= PER_RECEIVER


async def test_redelivery_is_the_same_message_to_where_the_webhook_points_now(hall: Hall) -> None:
    caller = a_caller()
    await hall.sender()
    task_id, run_id = await hall.told(caller)
    async with receiving() as moved:
        first = await hall.until(run_id, "SUCCEEDED")
        change = {"webhook": Webhook(moved.url)}
        await hall.floor.tasks.update(caller, UpdateTask(task_id, change, "", ""))
        made = await hall.floor.webhooks.redeliver(caller, first["id"], "again")
        again = await hall.floor.webhooks.redeliver(caller, first["id"], "again")
        assert made.delivery.id == again.delivery.id != first["id"]
        assert made.delivery.redelivery_of == first["id"]
        await hall.until(run_id, "SUCCEEDED")
        await moved.until(1)
        (sent,), (before,) = moved.requests, hall.receiver.requests
        assert sent.body == before.body
        assert sent.headers["webhook-id"] == before.headers["webhook-id"]


async def test_redelivery_ends_what_still_waits(hall: Hall) -> None:
    caller = a_caller()
    _, run_id = await hall.told(caller)
    (waiting,) = await hall.deliveries(run_id)
    made = await hall.floor.webhooks.redeliver(caller, waiting["id"], "")
    assert made.delivery.state is DeliveryState.PENDING
    old, new = await hall.deliveries(run_id)
    assert (old["state"], new["state"]) == ("CANCELLED", "PENDING")
    await hall.sender()
    await hall.until(run_id, "SUCCEEDED")
    assert len(hall.receiver.requests) == 1


async def test_both_secrets_sign_for_a_day(hall: Hall) -> None:
    caller = a_caller()
    task_id, run_id = await hall.told(caller)
    before = await hall.floor.webhooks.get_secret(caller, task_id)
    after = await hall.floor.webhooks.rotate_secret(caller, task_id, "once")
    assert after.text != before.text
    assert (await hall.floor.webhooks.rotate_secret(caller, task_id, "once")).text == after.text
    assert before.text not in repr(before)
    await hall.sender()
    await hall.until(run_id, "SUCCEEDED")
    (request,) = hall.receiver.requests
    stamp = int(request.headers["webhook-timestamp"])
    name = request.headers["webhook-id"]
    assert request.headers["webhook-signature"].split() == [
        signature(secret_bytes(secret.text), name, stamp, request.body) for secret in (after, before)
    ]
    async with hall.floor.database.system() as connection:
        await connection.execute(
            sa.text(
                "UPDATE scheduler.webhook_secrets SET previous_expire_time = now() WHERE previous IS NOT NULL"
            )
        )
        kept = (await connection.execute(sa.text("SELECT current FROM scheduler.webhook_secrets"))).scalars()
        # At rest it is sealed.
        assert all(secret_bytes(after.text) not in row for row in kept)
    made = await hall.floor.webhooks.redeliver(caller, (await hall.deliveries(run_id))[0]["id"], "")
    assert made.delivery.state is DeliveryState.PENDING
    await hall.receiver.until(2)
    assert len(hall.receiver.requests[1].headers["webhook-signature"].split()) == 1


async def test_a_secret_that_cannot_be_read_sends_nothing(hall: Hall) -> None:
    caller = a_caller()
    task_id, run_id = await hall.told(caller)
    async with hall.floor.database.system() as connection:
        await connection.execute(sa.text("UPDATE scheduler.webhook_secrets SET current = '\\x0102'"))
    await hall.sender()
    delivery = await hall.until(run_id, "PENDING", attempts=1)
    (attempt,) = await hall.attempts(delivery["id"])
    assert attempt.error == "SECRET_UNREADABLE"
    assert hall.receiver.requests == []
    await hall.floor.webhooks.rotate_secret(caller, task_id, "")
    await hall.due(run_id)
    await hall.until(run_id, "SUCCEEDED")


async def test_a_webhook_that_is_removed_tells_nobody(hall: Hall) -> None:
    caller = a_caller()
    task_id, run_id = await hall.told(caller)
    await hall.floor.tasks.update(caller, UpdateTask(task_id, {"webhook": None}, "", ""))
    await hall.sender()
    await hall.until(run_id, "CANCELLED")
    assert hall.receiver.requests == []


async def test_a_large_answer_is_cut_and_said_to_be(hall: Hall) -> None:
    caller = a_caller()
    run = await hall.floor.run(caller, webhook=Webhook(hall.receiver.url))
    (claim,) = await hall.floor.queue().take("w", 1)
    outcome = Outcome(
        RunState.SUCCEEDED, result="ü" * 40_000, structured_output_json='"' + "x" * 70_000 + '"'
    )
    await hall.floor.queue().end(claim, outcome, None)
    (delivery,) = await hall.deliveries(run.run.id)
    message = json.loads(delivery["payload"])
    assert message["data"]["task_run"]["result"] == "ü" * 32_768
    assert message["data"]["task_run"]["structured_output_json"] == ""
    assert message["data"]["result_truncated"]
    assert message["data"]["structured_output_omitted"]


async def test_others_see_nothing(hall: Hall) -> None:
    caller = a_caller()
    _, run_id = await hall.told(caller)
    shown = await hall.floor.webhooks.list_page(caller, DeliveryFilter(run_id=run_id), None, 10)
    assert [one.run_id for one in shown] == [run_id]
    for stranger in (a_caller(), a_caller(organization_id=caller.organization_id)):
        assert await hall.floor.webhooks.list_page(stranger, DeliveryFilter(), None, 10) == []
