"""Deletes what has no more meaning."""

from __future__ import annotations

from typing import Final

import structlog

from services.auth.usecases.ports import Transactions
from services.kernel.clock import Clock
from services.kernel.errors import ServiceError

_log = structlog.get_logger(__name__)
_PERIOD_SECONDS: Final = 600.0


async def keep_house(transactions: Transactions, clock: Clock) -> None:
    """Purges every ten minutes, for ever; several replicas do not get in each other's way."""
    while True:
        try:
            while await purge(transactions, clock):
                pass
        except ServiceError as error:
            _log.warning("nothing purged", reason=error.reason)
        await clock.sleep(_PERIOD_SECONDS)


async def purge(transactions: Transactions, clock: Clock) -> int:
    """Deletes a bounded number of rows in one transaction; returns how many."""
    async with transactions.system() as transaction:
        return await transaction.purge(clock.now())
