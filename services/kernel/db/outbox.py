"""The outbox: a fact is written in the transaction that makes it, and published afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.ids import IdSource, Uuid7Source


def outbox_table(metadata: sa.MetaData, schema: str) -> sa.Table:
    """Declares `<schema>.outbox`. The application role may only insert; the relay uses the system role."""
    return sa.Table(
        "outbox",
        metadata,
        sa.Column("id", postgresql.UUID(as_uuid=True), primary_key=True),
        sa.Column("organization_id", postgresql.UUID(as_uuid=True), nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("payload", postgresql.BYTEA, nullable=False),
        sa.Column(
            "create_time", postgresql.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()
        ),
        sa.Column("publish_time", postgresql.TIMESTAMP(timezone=True)),
        sa.Index("outbox_unpublished", "id", postgresql_where=sa.text("publish_time IS NULL")),
        schema=schema,
    )


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """A fact to be published.

    Args:
        id: consumers recognise repetitions by it.
        topic: where it goes.
        key: facts of one key stay in one partition.
        payload: a serialized protobuf message.
    """

    id: UUID
    organization_id: UUID
    topic: str
    key: str
    payload: bytes
    create_time: datetime


class OutboxPublisher(Protocol):
    """Where the relay sends facts: at least once, in no certain order."""

    async def publish(self, messages: Sequence[OutboxMessage]) -> None:
        """Returns once all are acknowledged; raises if one is not."""
        ...


class OutboxWriter:
    """Adds facts to a schema's outbox."""

    def __init__(self, table: sa.Table, ids: IdSource | None = None) -> None:
        """Args: table: what `outbox_table` returned."""
        self._table = table
        self._ids = ids or Uuid7Source()

    async def add(
        self, connection: AsyncConnection, topic: str, key: str, payload: bytes, organization_id: UUID
    ) -> UUID:
        """Writes one fact in the transaction of `connection`; returns its id."""
        message_id = self._ids.new_id()
        await connection.execute(
            sa.insert(self._table).values(
                id=message_id, organization_id=organization_id, topic=topic, key=key, payload=payload
            )
        )
        return message_id
