"""A mutation with a `request_id` happens once: the second one gets the first one's answer."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
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
    added = columns or {}
    statements = _statements(table, tuple(added))
    key = {
        "organization_id": organization_id,
        "caller_id": caller_id,
        "method": method,
        "request_id": request_id,
    }
    claim = {**key, **added, "request_hash": digest, "response": None, "kept_for": expire_after}
    matches = {f"the_{name}": value for name, value in key.items()}
    if (await connection.execute(statements.claim, claim)).first() is None:
        stored = (await connection.execute(statements.stored, matches)).one()
        if stored.request_hash != digest:
            raise _reused(request_id, f"{table.schema}.aiagent")
        return bytes(stored.response)
    response = await run()
    await connection.execute(statements.answer, {**matches, "response": response})
    return response


@dataclass(frozen=True, slots=True)
class _Statements:
    """The statements of `once` for one table: what they cost to build is more than what they cost to run."""

    claim: sa.Executable
    stored: sa.Executable
    answer: sa.Executable


@cache
def _statements(table: sa.Table, added: tuple[str, ...]) -> _Statements:
    key = [column.name for column in table.primary_key.columns]
    insert = postgresql.insert(table).values(
        # An id without an end has none: a time and NULL make NULL.
        create_time=_NOW,
        expire_time=_NOW + sa.bindparam("kept_for", type_=sa.Interval),
    )
    overwritten = ("request_hash", "response", "create_time", "expire_time", *added)
    matches = sa.and_(
        *(table.c[name] == sa.bindparam(f"the_{name}", type_=table.c[name].type) for name in key)
    )
    return _Statements(
        claim=insert.on_conflict_do_update(
            index_elements=key,
            set_={name: insert.excluded[name] for name in overwritten},
            where=table.c.expire_time <= _NOW,
        ).returning(sa.literal(1)),
        stored=sa.select(table.c.request_hash, table.c.response).where(matches),
        answer=sa.update(table).where(matches),
    )


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
