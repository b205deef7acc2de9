"""What a worker makes of events: hints at most."""

from __future__ import annotations

import pytest

from aiagent.events.v1 import task_run_fact_pb2 as pb
from services.kernel.ids import new_id
from services.kernel.kafka.app import StreamEvent
from services.kernel.telemetry import registry
from services.scheduler.streams.runs import waking

pytestmark = pytest.mark.unit


class Waker:
    def __init__(self) -> None:
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


@pytest.mark.parametrize(
    ("value", "woken", "unread"),
    [
        (pb.TaskRunFact(runs_queued={"run_count": 3}).SerializeToString(), 1, 0),
        # Whatever it says of itself.
        (pb.TaskRunFact(event_id="no id", runs_queued={"run_count": -1}).SerializeToString(), 1, 0),
        (pb.TaskRunFact(run_ended={"state": "FAILED"}).SerializeToString(), 0, 0),
        (b"\xff\xff\xff", 0, 1),
        (b"", 0, 1),
    ],
    ids=["queued", "nonsense", "ended", "garbage", "empty"],
)
async def test_only_queued_runs_wake(value: bytes, woken: int, unread: int) -> None:
    def dropped() -> float:
        return registry.get_sample_value("aiagent_task_run_events_unread_total") or 0.0

    before, waker = dropped(), Waker()
    await waking(waker)(StreamEvent(new_id(), new_id(), "anything", "key", value))
    assert (waker.woken, dropped() - before) == (woken, unread)
