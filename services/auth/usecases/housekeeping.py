"""Deletes what has no more meaning."""

from __future__ import annotations

from services.auth.usecases.ports import Transactions
from services.kernel.clock import Clock


async def purge(transactions: Transactions, clock: Clock) -> int:
    """Deletes a bounded number of rows in one transaction; returns how many."""
    async with transactions.system() as transaction:
        return await transaction.purge(clock.now())
