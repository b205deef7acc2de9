"""Hears that runs wait, and wakes the worker of this process.

An event is a hint from outside: nothing of it is believed but that it may be worth looking. Which runs there are, and
whose they become, the claim decides (0083); an event that comes twice makes the worker look twice.
"""

from __future__ import annotations

from typing import Final

import structlog
from prometheus_client import Counter

from services.kernel.kafka.app import Handler, StreamEvent
from services.kernel.telemetry import registry
from services.scheduler import codec
from services.scheduler.usecases.runs import WorkerWaker

_log = structlog.get_logger(__name__)
GROUP: Final = "scheduler-workers"
UNREAD: Final = Counter(
    "aiagent_task_run_events_unread_total",
    "Events of the topic of runs that nothing is known of; they were dropped.",
    registry=registry,
)


def waking(worker: WorkerWaker) -> Handler:
    """Makes the handler of the topic of runs.

    Args:
        worker: Woken by each event that says that runs are queued; others are none of its business.
    """

    async def handle(event: StreamEvent) -> None:
        kind = codec.kind_of(event.value)
        if kind == "runs_queued":
            worker.wake()
        elif kind is None:
            UNREAD.inc()
            _log.debug("event not read", event_id=str(event.id), message=event.message)

    return handle
