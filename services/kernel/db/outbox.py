"""The outbox: facts to publish, written in the transaction that makes them.

A relay publishes them later and marks them; it is at least once, and consumers go by the event's id.
"""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, TIMESTAMP
from sqlalchemy.dialects.postgresql import UUID as PgUuid
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.ids import new_id


def outbox_table(metadata: sa.MetaData, schema: str) -> sa.Table:
    """The table `outbox` of a service's schema."""
    return sa.Table(
        "outbox",
        metadata,
        sa.Column("id", PgUuid(as_uuid=True), primary_key=True),
        sa.Column("organization_id", PgUuid(as_uuid=True), nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("payload", BYTEA, nullable=False),
        sa.Column(
            "create_time", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()
        ),
        sa.Column("publish_time", TIMESTAMP(timezone=True)),
        sa.Index("outbox_unpublished", "id", postgresql_where=sa.text("publish_time IS NULL")),
        schema=schema,
    )


class OutboxPublisher(Protocol):
    """Where a relay publishes facts."""

    async def publish(self, topic: str, key: str, event_id: UUID, payload: bytes) -> None:
        """Publishes a fact and returns when it is acknowledged."""


async def add(
    connection: AsyncConnection,
    table: sa.Table,
    *,
    organization_id: UUID,
    topic: str,
    key: str,
    payload: bytes,
) -> UUID:
    """Adds a fact in the transaction that makes it.

    Args:
        connection: That transaction.
        table: The service's `outbox`.
        organization_id: Whose fact it is.
        topic: Where it is to be published.
        key: What orders it: facts with one key keep their order within one relay.
        payload: The serialized event.

    Returns:
        The event's id.
    """
    event_id = new_id()
    await connection.execute(
        sa.insert(table).values(
            id=event_id, organization_id=organization_id, topic=topic, key=key, payload=payload
        )
    )
    return event_id
