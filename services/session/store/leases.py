"""Leases: which replica drives a session. Expiry is judged by PostgreSQL's clock alone.

The epoch is the fencing token (Kleppmann, "How to do distributed locking", 2016): it rises with every holder, is
checked by every append of a driver, and is sent with every call to the executor.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.session.domain.entities import Lease
from services.session.store.tables import session_heads

LEASE_LIFE = timedelta(seconds=5)
"""How long a lease lives without being renewed."""

_NOW = sa.func.clock_timestamp()


async def acquire(connection: AsyncConnection, session_id: UUID, holder: str) -> Lease | None:
    """Takes the lease of a session if it is free or has run out.

    A head that is locked at this moment is left for the next sweep: waiting for a replica that is frozen in a
    transaction would take up the connections that other sessions need.

    Args:
        connection: A system transaction.
        session_id: The session.
        holder: The replica's own id, new at each start.

    Returns:
        The lease with its new epoch, or None when another holder has it, the head is locked, or the session is gone.
    """
    free = (
        sa.select(session_heads.c.session_id)
        .where(
            session_heads.c.session_id == session_id,
            sa.or_(session_heads.c.lease_holder.is_(None), session_heads.c.lease_expire_time < _NOW),
        )
        .with_for_update(skip_locked=True)
    )
    row = (
        await connection.execute(
            sa.update(session_heads)
            .where(session_heads.c.session_id.in_(free.scalar_subquery()))
            .values(
                lease_holder=holder,
                lease_epoch=session_heads.c.lease_epoch + 1,
                lease_expire_time=_NOW + LEASE_LIFE,
            )
            .returning(session_heads.c.organization_id, session_heads.c.lease_epoch)
        )
    ).one_or_none()
    if row is None:
        return None
    return Lease(
        session_id=session_id, organization_id=row.organization_id, holder=holder, epoch=row.lease_epoch
    )


async def renew(connection: AsyncConnection, leases: Sequence[Lease]) -> set[UUID]:
    """Renews leases that are still their holder's, even one that has run out but was not taken.

    A head that is locked at this moment is left for the next time: its holder is writing, and an append renews.

    Args:
        connection: A system transaction, on a connection of its own so that no queue delays it.
        leases: The leases to renew.

    Returns:
        The sessions whose lease is lost: another holder has a higher epoch, or the session is gone.
    """
    if not leases:
        return set()
    epochs = {lease.session_id: lease.epoch for lease in leases}
    held = sa.and_(session_heads.c.session_id.in_(epochs), session_heads.c.lease_holder == leases[0].holder)
    free = sa.select(session_heads.c.session_id).where(held).with_for_update(skip_locked=True)
    await connection.execute(
        sa.update(session_heads)
        .where(session_heads.c.session_id.in_(free.scalar_subquery()))
        .values(lease_expire_time=_NOW + LEASE_LIFE)
    )
    rows = await connection.execute(
        sa.select(session_heads.c.session_id, session_heads.c.lease_epoch).where(held)
    )
    current = {row.session_id for row in rows if row.lease_epoch == epochs[row.session_id]}
    return set(epochs) - current


async def release(connection: AsyncConnection, lease: Lease) -> None:
    """Gives a lease back; a lease that is lost already is left alone. What is open then is found by the next sweep."""
    await connection.execute(
        sa.update(session_heads)
        .where(
            session_heads.c.session_id == lease.session_id,
            session_heads.c.lease_epoch == lease.epoch,
            session_heads.c.lease_holder == lease.holder,
        )
        .values(lease_holder=None, lease_expire_time=None)
    )
