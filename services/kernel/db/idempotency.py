"""Idempotent mutations (AIP-155): the same request id answers as it did the first time.

The row is inserted first, in the use case's own transaction: a second call with the same id waits on the unique index
until the first has ended, then finds its response, or, when the first was rolled back, does the work itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, TIMESTAMP, insert
from sqlalchemy.dialects.postgresql import UUID as PgUuid
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.errors import ErrorKind, FieldViolation, ServiceError

DAY = timedelta(hours=24)
"""How long request ids are kept, unless a use case says otherwise."""


def idempotency_table(metadata: sa.MetaData, schema: str) -> sa.Table:
    """The table `idempotency_keys` of a service's schema."""
    return sa.Table(
        "idempotency_keys",
        metadata,
        sa.Column("caller_id", PgUuid(as_uuid=True), nullable=False),
        sa.Column("organization_id", PgUuid(as_uuid=True), nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("request_hash", sa.Text, nullable=False),
        sa.Column("response", BYTEA),
        sa.Column("create_time", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("expire_time", TIMESTAMP(timezone=True)),
        sa.PrimaryKeyConstraint("caller_id", "method", "request_id", name="idempotency_keys_pkey"),
        sa.Index("idempotency_keys_expired", "expire_time"),
        schema=schema,
    )


async def once(
    connection: AsyncConnection,
    table: sa.Table,
    *,
    caller_id: UUID,
    organization_id: UUID,
    method: str,
    request_id: str,
    request: bytes,
    run: Callable[[], Awaitable[bytes]],
    expire_after: timedelta | None = DAY,
) -> bytes:
    """Does a mutation once for each request id.

    Args:
        connection: The use case's transaction.
        table: The service's `idempotency_keys`.
        caller_id: Whose request id it is.
        organization_id: The caller's organization.
        method: The method's name; ids of different methods are different ids.
        request_id: The id; when empty, the work is simply done.
        request: The request in a canonical form, without its request id.
        run: Does the work in this transaction and returns the serialized response.
        expire_after: How long the id is kept; None for ever (its row goes with what it made).

    Returns:
        The response, of this call or of the first one.

    Raises:
        ServiceError: INVALID_ARGUMENT with REQUEST_ID_REUSED when the id came with another request before.
    """
    if not request_id:
        return await run()
    request_hash = hashlib.sha256(request).hexdigest()
    key = sa.and_(
        table.c.caller_id == caller_id, table.c.method == method, table.c.request_id == request_id
    )
    values = {
        "caller_id": caller_id,
        "organization_id": organization_id,
        "method": method,
        "request_id": request_id,
        "request_hash": request_hash,
        "response": None,
        "create_time": sa.func.now(),
        "expire_time": sa.func.now() + expire_after if expire_after is not None else None,
    }
    statement = insert(table).values(values)
    inserted = await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["caller_id", "method", "request_id"],
            set_={name: statement.excluded[name] for name in values if name not in _KEY},
            # An id whose time is over may be used anew.
            where=table.c.expire_time < sa.func.now(),
        ).returning(table.c.request_id)
    )
    if inserted.one_or_none() is not None:
        response = await run()
        await connection.execute(sa.update(table).where(key).values(response=response))
        return response
    known = (
        await connection.execute(sa.select(table.c.request_hash, table.c.response).where(key))
    ).one()
    if known.request_hash != request_hash:
        raise ServiceError(
            ErrorKind.INVALID_ARGUMENT,
            reason="REQUEST_ID_REUSED",
            message="the request_id was used before with another request",
            metadata={"request_id": request_id},
            violations=(
                FieldViolation(
                    "request_id", "was used before with another request", "REQUEST_ID_REUSED"
                ),
            ),
        )
    return bytes(known.response)


_KEY = frozenset({"caller_id", "method", "request_id"})


async def forget_expired(connection: AsyncConnection, table: sa.Table) -> int:
    """Removes request ids whose time is over; returns how many."""
    return (
        await connection.execute(sa.delete(table).where(table.c.expire_time < sa.func.now()))
    ).rowcount
