"""Where a queued turn stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import structlog

from services.kernel.errors import ServiceError
from services.session.domain.entities import Turn
from services.session.domain.states import TurnState
from services.session.usecases.ports import SessionStore

_log = structlog.get_logger(__name__)


async def placed(store: SessionStore, turns: Sequence[Turn]) -> list[Turn]:
    """Adds what waits ahead in other sessions to the position of those turns that are queued.

    It is told, not relied on: when it cannot be had, a turn is shown with what is ahead in its own session.
    """
    queued = [turn.id for turn in turns if turn.state is TurnState.QUEUED]
    if not queued:
        return list(turns)
    try:
        ahead = await store.ahead(queued)
    except ServiceError as error:
        _log.info("places in the queue not counted", reason=error.reason)
        return list(turns)
    return [replace(turn, queue_position=turn.queue_position + ahead.get(turn.id, 0)) for turn in turns]
