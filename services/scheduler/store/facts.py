"""What other processes are told of runs: rows of the outbox, written in the transaction that they tell of.

Whoever queues runs, or ends them, calls this in the same transaction and under the locks that it holds anyway: a
process that dies before the commit has neither queued nor told, and after it the row waits for any relay of the
service. What is told of queued runs only wakes: who misses it finds the runs by looking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db.database import note
from services.kernel.db.outbox import NewOutboxMessage, Outbox, OutboxWriter
from services.kernel.ids import new_id
from services.kernel.kafka.topics import Topic
from services.scheduler import codec
from services.scheduler.domain.runs import EndedRun
from services.scheduler.store.tables import outbox

__all__ = ["OUTBOX", "RUNS_QUEUED", "TASK_RUNS", "EndedRun", "add_ended", "add_queued", "add_queued_of_each"]

TASK_RUNS: Final = Topic("runs", "aiagent.events.v1.TaskRunFact")
OUTBOX: Final = Outbox(outbox)
RUNS_QUEUED: Final = "runs queued"
"""What a transaction that queued runs is noted with; see `Database.on_commit`."""
_WRITER: Final = OutboxWriter(outbox)


async def add_queued(connection: AsyncConnection, organization_id: UUID, count: int) -> None:
    """Writes that runs wait for a worker: once for all that a transaction has queued for one organization.

    Args:
        connection: The transaction that queued them, of the tenant or of the system role.
        organization_id: The tenant.
        count: How many; nothing is written for none.
    """
    if count < 1:
        return
    event_id = new_id()
    payload = codec.queued(event_id, organization_id, count)
    message = NewOutboxMessage(event_id, organization_id, TASK_RUNS.name, str(organization_id), payload)
    await _WRITER.add_all(connection, [message])
    note(connection, RUNS_QUEUED)


async def add_queued_of_each(connection: AsyncConnection, organization_ids: Iterable[UUID]) -> int:
    """Does so for runs of several organizations.

    Args:
        connection: The transaction that queued them, or gave their leases back.
        organization_ids: For each run its tenant.

    Returns:
        How many runs these are.
    """
    queued = Counter(organization_ids)
    for organization_id in sorted(queued):
        await add_queued(connection, organization_id, queued[organization_id])
    return queued.total()


async def add_ended(connection: AsyncConnection, ended: Sequence[EndedRun]) -> None:
    """Writes that runs are over, a fact for each.

    Args:
        connection: The transaction that ended them, of the tenant or of the system role.
        ended: What is told of each.
    """
    messages = []
    for run in ended:
        event_id = new_id()
        payload = codec.ended(event_id, run)
        messages.append(
            NewOutboxMessage(event_id, run.organization_id, TASK_RUNS.name, str(run.run_id), payload)
        )
    await _WRITER.add_all(connection, messages)
