"""A mutation with a `request_id` happens once: the second one gets the first one's answer."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.errors import FieldViolation, ServiceError, invalid_argument

KEPT_FOR: Final = timedelta(hours=24)
"""How long an id is known that lives with nothing in particular: what the contracts promise."""
_NOW = sa.func.clock_timestamp()


def idempotency_table(metadata: sa.MetaData, schema: str, *columns: sa.Column[Any] | sa.Index) -> sa.Table:
    """Declares `<schema>.idempotency_keys`. The migration gives it row-level security by organization.

    Args:
        columns: what the schema adds, such as a reference to what an id lives with; see `once`.
    """
    return sa.Table(
        "idempotency_keys",
        metadata,
        sa.Column("organization_id", postgresql.UUID(as_uuid=True), primary_key=True),
        sa.Column("caller_id", postgresql.UUID(as_uuid=True), primary_key=True),
        sa.Column("method", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("request_hash", postgresql.BYTEA, nullable=False),
        sa.Column("response", postgresql.BYTEA),
        sa.Column(
            "create_time", postgresql.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()
        ),
        sa.Column("expire_time", postgresql.TIMESTAMP(timezone=True)),
        *columns,
        sa.Index("idempotency_keys_expire_time", "expire_time"),
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
    expire_after: timedelta | None,
    run: Callable[[], Awaitable[bytes]],
    columns: Mapping[str, Any] | None = None,
) -> bytes:
    """Runs `run` unless this caller has done so with this id; returns its answer, or the one it gave then.

    The id is written in the caller's transaction before anything else, so a concurrent duplicate waits for the first
    one's commit (or does the work itself if that rolls back). Whatever `run` writes commits with the id or not at all.

    Args:
        connection: the transaction of the mutation.
        table: what `idempotency_table` returned for the schema.
        caller_id: whose id it is: the user, or a fixed UUID for calls without one.
        organization_id: the tenant.
        method: name of the method; an id counts for one method.
        request_id: as sent; empty means that the caller wants no such promise.
        request: the request in a canonical form without the `request_id` itself, e.g. the deterministic serialization
            of a copy whose field is cleared.
        expire_after: after this the id may be used anew; None keeps it for good.
        run: does the work on the same connection; returns the serialized answer.
        columns: values of the columns that the schema has added.

    Raises:
        ServiceError: INVALID_ARGUMENT, REQUEST_ID_REUSED, when the id came with another request before.
    """
    if not request_id:
        return await run()
    digest = hashlib.sha256(request).digest()
    key: dict[str, Any] = {
        "organization_id": organization_id,
        "caller_id": caller_id,
        "method": method,
        "request_id": request_id,
    }
    values: dict[str, Any] = {
        "request_hash": digest,
        "response": None,
        "create_time": _NOW,
        "expire_time": _NOW + expire_after if expire_after is not None else None,
        **(columns or {}),
    }
    claim = (
        postgresql.insert(table)
        .values(key | values)
        .on_conflict_do_update(index_elements=list(key), set_=values, where=table.c.expire_time <= _NOW)
        .returning(sa.literal(1))
    )
    matches = sa.and_(*(table.c[name] == value for name, value in key.items()))
    if (await connection.execute(claim)).first() is None:
        stored = (await connection.execute(sa.select(table).where(matches))).one()
        if stored.request_hash != digest:
            raise _reused(request_id, f"{table.schema}.aiagent")
        return bytes(stored.response)
    response = await run()
    await connection.execute(sa.update(table).where(matches).values(response=response))
    return response


async def purge_expired(connection: AsyncConnection, table: sa.Table, *, limit: int = 1000) -> int:
    """Deletes ids that have expired, at most `limit`; returns how many. For the system role."""
    names = [column.name for column in table.primary_key.columns]
    expired = (
        sa.select(*(table.c[name] for name in names))
        .where(table.c.expire_time <= _NOW)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .subquery()
    )
    outcome = await connection.execute(
        sa.delete(table).where(
            sa.tuple_(*(table.c[name] for name in names)).in_(sa.select(*(expired.c[name] for name in names)))
        )
    )
    return outcome.rowcount


def _reused(request_id: str, domain: str) -> ServiceError:
    description = "was used before with another request"
    return invalid_argument(
        "REQUEST_ID_REUSED",
        f"request_id: {description}",
        domain=domain,
        violations=(FieldViolation("request_id", description, "REQUEST_ID_REUSED"),),
        metadata={"request_id": request_id},
    )
