"""The outbox: a fact is written in the transaction that makes it, and published afterwards.

Who writes what, under which lock, and what is so when the process dies on the next line:

1. `OutboxWriter` inserts rows in the transaction of the fact itself, under whatever locks that one holds. If it dies
   before its commit, neither fact nor row was ever there; after it, the row waits, and every relay of the service
   sees it.
2. A relay (`services/kernel/kafka/relay.py`) takes rows with `claim`, under their row locks, which other relays skip.
   If it dies, the locks go with its connection, and the rows are as unpublished as before.
3. It publishes, and awaits the broker's acknowledgement. If it dies now, the broker may have what the rows do not say
   yet: it is published again, under the same id.
4. It writes `publish_time` with `mark`, under the same locks, and commits. From then on only `purge` touches the row.

So a fact is published at least once, and consumers know repetitions by its id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.db.database import note
from services.kernel.ids import IdSource, Uuid7Source

WRITTEN: Final = "outbox"
"""What a transaction that wrote to an outbox is noted with; see `Database.on_commit`."""
MOST_PAYLOAD_BYTES: Final = 512 * 1024
"""Half of what brokers take by default: a row that none would take must not get in, all others would wait behind it."""
KEPT_PUBLISHED: Final = timedelta(hours=24)
"""How long published rows are kept, for whoever asks what was sent."""
KEPT_UNWANTED: Final = timedelta(days=7)
"""How long rows are kept where no broker is configured: one that is set up within that time still gets them."""


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
class NewOutboxMessage:
    """A fact to be written; otherwise as `OutboxMessage`."""

    id: UUID
    organization_id: UUID
    topic: str
    key: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """A fact to be published.

    Args:
        id: consumers recognise repetitions by it.
        topic: where it goes.
        key: facts of one key stay in one partition.
        payload: a serialized protobuf message.
        create_time: when its transaction began, by the database's clock.
    """

    id: UUID
    organization_id: UUID
    topic: str
    key: str
    payload: bytes
    create_time: datetime


class OutboxPublisher(Protocol):
    """Where the relay sends facts: at least once, in no certain order."""

    async def open(self) -> None:
        """Gets ready to publish, if it is not; raises `PublishError` if it cannot."""
        ...

    async def publish(self, messages: Sequence[OutboxMessage]) -> set[UUID]:
        """Returns the ids of those that were acknowledged; whatever is missing among them was not."""
        ...

    async def close(self) -> None:
        """Lets go of everything; `open` may follow."""
        ...


class PublishError(Exception):
    """The broker cannot be reached, or does not take anything; the message says why."""


class OutboxWriter:
    """Adds facts to a schema's outbox."""

    def __init__(self, table: sa.Table, ids: IdSource | None = None) -> None:
        """Args: table: what `outbox_table` returned."""
        self._insert = sa.insert(table)
        self._ids = ids or Uuid7Source()

    async def add(
        self, connection: AsyncConnection, topic: str, key: str, payload: bytes, organization_id: UUID
    ) -> UUID:
        """Writes one fact in the transaction of `connection`; returns its id.

        Raises:
            ValueError: the payload is larger than `MOST_PAYLOAD_BYTES`.
        """
        message_id = self._ids.new_id()
        await self.add_all(connection, [NewOutboxMessage(message_id, organization_id, topic, key, payload)])
        return message_id

    async def add_all(self, connection: AsyncConnection, messages: Sequence[NewOutboxMessage]) -> None:
        """Writes facts in the transaction of `connection`; their ids are UUIDv7 of `ids`. Otherwise as `add`."""
        if not messages:
            return
        for message in messages:
            if len(message.payload) > MOST_PAYLOAD_BYTES:
                raise ValueError(f"{len(message.payload)} bytes are too many for topic {message.topic}")
        await connection.execute(
            self._insert,
            [
                {
                    "id": message.id,
                    "organization_id": message.organization_id,
                    "topic": message.topic,
                    "key": message.key,
                    "payload": message.payload,
                }
                for message in messages
            ],
        )
        note(connection, WRITTEN)


class Outbox:
    """The relay's and the house-keeping's statements on a schema's outbox, in transactions of the system role."""

    def __init__(self, table: sa.Table) -> None:
        """Args: table: what `outbox_table` returned. Statements are built once: every replica asks once a second."""
        waiting = table.c.publish_time.is_(None)
        self._claim = (
            sa.select(table)
            .where(waiting)
            .order_by(table.c.id)
            .limit(sa.bindparam("most", type_=sa.Integer))
            .with_for_update(skip_locked=True)
        )
        self._mark = (
            sa.update(table)
            .where(table.c.id.in_(sa.bindparam("ids", expanding=True)))
            .values(publish_time=sa.func.clock_timestamp())
        )
        first = sa.select(table.c.create_time).where(waiting).order_by(table.c.id).limit(1).scalar_subquery()
        self._age = sa.select(sa.func.extract("epoch", sa.func.clock_timestamp() - first))
        before = sa.func.clock_timestamp() - sa.bindparam("age", type_=sa.Interval)
        # Ids begin with the time at which they were made: where the oldest rows are not due, no other is.
        oldest = (
            sa.select(table.c.id, table.c.publish_time, table.c.create_time)
            .order_by(table.c.id)
            .limit(sa.bindparam("most", type_=sa.Integer))
            .subquery()
        )
        self._purge_published, self._purge_all = (
            sa.delete(table).where(table.c.id.in_(sa.select(oldest.c.id).where(time < before)))
            for time in (oldest.c.publish_time, oldest.c.create_time)
        )

    async def claim(self, connection: AsyncConnection, most: int) -> list[OutboxMessage]:
        """Locks and returns unpublished rows that no other transaction has locked, the oldest first."""
        return [
            OutboxMessage(
                row.id, row.organization_id, row.topic, row.key, bytes(row.payload), row.create_time
            )
            for row in await connection.execute(self._claim, {"most": most})
        ]

    async def mark(self, connection: AsyncConnection, ids: Sequence[UUID]) -> None:
        """Marks rows that this transaction has claimed as published."""
        await connection.execute(self._mark, {"ids": list(ids)})

    async def age_seconds(self, connection: AsyncConnection) -> float:
        """How long the oldest unpublished row has been waiting; 0 when there is none."""
        return max(0.0, float((await connection.execute(self._age)).scalar_one() or 0.0))

    async def purge(self, connection: AsyncConnection, *, unwanted: bool, most: int = 1000) -> int:
        """Deletes those of the `most` oldest rows that have had their time; returns how many.

        Args:
            unwanted: nobody publishes here: rows go after `KEPT_UNWANTED`, published or not. Otherwise only published
                ones go, after `KEPT_PUBLISHED`; an unpublished row is kept for as long as it takes.
        """
        statement, age = (
            (self._purge_all, KEPT_UNWANTED) if unwanted else (self._purge_published, KEPT_PUBLISHED)
        )
        return int((await connection.execute(statement, {"age": age, "most": most})).rowcount)
