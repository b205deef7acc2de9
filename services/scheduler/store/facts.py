"""What other processes are told of runs: rows of the outbox, in the transaction that makes what they tell.

Runs that wait for a worker are told of once for each organization; a run that is over once for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db.outbox import NewOutboxMessage, Outbox, OutboxWriter
from services.kernel.ids import new_id
from services.kernel.kafka.topics import Topic
from services.scheduler import codec
from services.scheduler.domain.runs import EndedRun
from services.scheduler.store.tables import outbox

TASK_RUNS: Final = Topic("runs", "aiagent.events.v1.TaskRunFact")
OUTBOX: Final = Outbox(outbox)
_WRITER: Final = OutboxWriter(outbox)


async def add_queued(connection: AsyncConnection, organization_id: UUID, count: int) -> None:
    """Tells that runs of an organization wait for a worker.

    Args:
        connection: The transaction that queued them.
        organization_id: Whose they are.
        count: How many.
    """
    event_id = new_id()
    await _WRITER.add_all(
        connection,
        [
            _message(
                event_id,
                organization_id,
                organization_id,
                codec.runs_queued(event_id, organization_id, count),
            )
        ],
    )


async def add_ended(connection: AsyncConnection, ended: Sequence[EndedRun]) -> None:
    """Tells of runs that are over.

    Args:
        connection: The transaction that ended them.
        ended: The runs.
    """
    messages = []
    for run in ended:
        event_id = new_id()
        messages.append(_message(event_id, run.organization_id, run.run_id, codec.run_ended(event_id, run)))
    await _WRITER.add_all(connection, messages)


def _message(event_id: UUID, organization_id: UUID, key: UUID, payload: bytes) -> NewOutboxMessage:
    return NewOutboxMessage(event_id, organization_id, TASK_RUNS.name, str(key), payload)
