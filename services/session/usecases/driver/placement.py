"""Chooses the executor of a turn: where the session's client lives, else the least loaded."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from services.session.domain.turn_items import ExecutorInfo


def choose_executor(
    executors: Sequence[ExecutorInfo],
    session_id: UUID,
    last_executor_id: str | None,
    lost_on: str | None = None,
) -> ExecutorInfo | None:
    """Chooses an executor.

    Args:
        executors: Those that answered.
        session_id: The session; an executor that keeps its idle client needs no new process.
        last_executor_id: Where its last attempt ran: of those equally loaded it has the conversation's files.
        lost_on: Where an attempt at this turn was lost: of those equally loaded another one is better.

    Returns:
        The executor, or None when none has room: an idle client of another session is room, a busy one is not.
    """
    with_client = [executor for executor in executors if session_id in executor.idle_session_ids]
    if with_client:
        return with_client[0]
    with_room = [executor for executor in executors if executor.busy_clients < executor.max_live_clients]
    if not with_room:
        return None
    return min(
        with_room,
        key=lambda executor: (
            executor.busy_clients / executor.max_live_clients,
            executor.executor_id == lost_on,
            executor.executor_id != last_executor_id,
            executor.live_clients,
            executor.executor_id,
        ),
    )
