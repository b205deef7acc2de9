"""A session service without its API: the database, drivers, a scripted executor, and a record of what was published."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from aiagent.events.v1 import session_event_pb2
from aiagent.executor.v1 import executor_service_pb2, executor_service_pb2_grpc
from services.kernel.clock import SystemClock
from services.kernel.db import Database
from services.kernel.grpc import open_channel
from services.kernel.grpc.authentication import PUBLIC
from services.kernel.identity import generate_private_key
from services.kernel.ids import Uuid7Source, new_id
from services.kernel.testing import running_server
from services.session.domain import events
from services.session.domain.entities import Content, LogEvent
from services.session.domain.events import EventDraft
from services.session.domain.states import TurnState
from services.session.gateways.attempt_tokens import AttemptTokens
from services.session.gateways.executors import ExecutorGateway
from services.session.store import event_log, tables
from services.session.store.system_queries import DriverQueries
from services.session.usecases.contents import ContentKeeper
from services.session.usecases.driver import DriverPool
from services.session.usecases.driver.runner import DriverPorts

from .scripted_executor import ScriptedExecutor

POLICIES = {
    f"/aiagent.executor.v1.ExecutorService/{method.name}": PUBLIC
    for method in executor_service_pb2.DESCRIPTOR.services_by_name["ExecutorService"].methods
}


class RecordingFeed:
    """Keeps what was published."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []
        self.deltas: list[tuple[Any, ...]] = []

    async def publish_events(self, session_id: UUID, published: Sequence[LogEvent]) -> None:
        self.events.extend(published)

    async def publish_delta(self, *delta: Any) -> None:
        self.deltas.append(delta)

    async def wake_driver(self, session_id: UUID) -> None:
        return


class MemoryBlobs:
    """Blobs and workspaces, as far as a driver needs them."""

    def __init__(self) -> None:
        self.blobs: dict[tuple[UUID, UUID], bytes] = {}
        self.deleted: list[UUID] = []

    async def put(self, session_id: UUID, content_id: UUID, data: bytes) -> None:
        self.blobs[(session_id, content_id)] = data

    async def get(self, session_id: UUID, content_id: UUID) -> bytes:
        return self.blobs[(session_id, content_id)]

    async def delete_session(self, session_id: UUID) -> None:
        self.deleted.append(session_id)

    def path(self, session_id: UUID) -> str:
        return f"/workspaces/{session_id}"

    async def delete(self, session_id: UUID) -> None:
        self.deleted.append(session_id)


class World:
    """What a test acts on."""

    def __init__(self, database: Database, executor: ScriptedExecutor, gateway: ExecutorGateway) -> None:
        self.database = database
        self.executor = executor
        self.feed = RecordingFeed()
        self.blobs = MemoryBlobs()
        self.executors = gateway
        self.pools: list[DriverPool] = []

    async def pool(self, *, hold_seconds: float = 600.0) -> DriverPool:
        """Starts the drivers of one more replica."""
        ids = Uuid7Source()
        pool = DriverPool(
            DriverPorts(
                store=DriverQueries(self.database),
                executors=self.executors,
                feed=self.feed,
                contents=ContentKeeper(self.blobs, ids),
                ids=ids,
            ),
            holder=str(new_id()),
            clock=SystemClock(),
            workspaces=self.blobs,
            blobs=self.blobs,
            hold_seconds=hold_seconds,
        )
        await pool.start()
        self.pools.append(pool)
        return pool

    async def session(self, **options: Any) -> UUID:
        """Creates a session."""
        session_id, organization_id, user_id = new_id(), new_id(), new_id()
        turn_timeout = options.pop("turn_timeout", timedelta(hours=1))
        mode = options.pop("mode", "INTERACTIVE")
        permission_timeout = options.pop("permission_timeout", timedelta(hours=1))
        async with self.database.system() as connection:
            await connection.execute(
                sa.insert(tables.sessions).values(
                    id=session_id,
                    organization_id=organization_id,
                    user_id=user_id,
                    name="test",
                    mode=mode,
                    state="CREATED",
                    sdk_options=options,
                    labels={},
                    permission_timeout=permission_timeout,
                    turn_timeout=turn_timeout,
                )
            )
            await connection.execute(
                sa.insert(tables.session_heads).values(session_id=session_id, organization_id=organization_id)
            )
        return session_id

    async def send(self, session_id: UUID, text: str = "do it") -> UUID:
        """Accepts a message, as the use case does."""
        turn_id, message_id = new_id(), new_id()
        async with self.database.system() as connection:
            head = await event_log.lock_head(connection, session_id)
            session = (
                await connection.execute(sa.select(tables.sessions).where(tables.sessions.c.id == session_id))
            ).one()
            number = (
                await connection.execute(
                    sa.select(sa.func.count())
                    .select_from(tables.turns)
                    .where(tables.turns.c.session_id == session_id)
                )
            ).scalar_one() + 1
            message = events.UserMessage(message_id, Content(text), session.user_id)
            written = await event_log.append(
                connection,
                head,
                [
                    EventDraft(message, turn_id),
                    EventDraft(events.TurnStateChanged(None, TurnState.QUEUED), turn_id),
                ],
            )
            await connection.execute(
                sa.insert(tables.turns).values(
                    id=turn_id,
                    session_id=session_id,
                    organization_id=session.organization_id,
                    user_id=session.user_id,
                    number=number,
                    state="QUEUED",
                    message_id=message_id,
                    message_text=text,
                    first_sequence=written[0].sequence,
                    last_sequence=written[-1].sequence,
                )
            )
        return turn_id

    async def turn(self, turn_id: UUID) -> Any:
        """The turn's row."""
        async with self.database.system() as connection:
            return (
                await connection.execute(sa.select(tables.turns).where(tables.turns.c.id == turn_id))
            ).one()

    async def rows(self, table: sa.Table, session_id: UUID) -> list[Any]:
        """All rows of a session in a table."""
        column = table.c.id if table is tables.sessions else table.c.session_id
        async with self.database.system() as connection:
            return list((await connection.execute(sa.select(table).where(column == session_id))).all())

    async def change(self, table: sa.Table, where: Any, **values: Any) -> None:
        """Changes rows, as a use case would."""
        async with self.database.system() as connection:
            await connection.execute(sa.update(table).where(where).values(values))

    async def log(self, session_id: UUID) -> list[tuple[int, str, session_event_pb2.SessionEventPayload]]:
        """The event log: sequence, kind, payload."""
        async with self.database.system() as connection:
            entries = await event_log.read(connection, session_id, 0, 1000)
        return [
            (entry.sequence, entry.kind, session_event_pb2.SessionEventPayload.FromString(entry.payload))
            for entry in entries
        ]

    async def until(self, condition: Any, timeout_seconds: float = 25.0) -> Any:
        """Polls the database until a coroutine function returns something true, and returns that."""
        async with asyncio.timeout(timeout_seconds):
            while True:
                found = await condition()
                if found:
                    return found
                # A poll of the database, which tells nobody when it changes.
                await SystemClock().sleep(0.02)

    async def ended(self, turn_id: UUID, timeout_seconds: float = 25.0) -> Any:
        """Waits for the turn's end."""

        async def over() -> Any:
            row = await self.turn(turn_id)
            return row if TurnState(row.state).final else None

        return await self.until(over, timeout_seconds)


@asynccontextmanager
async def world(database: Database, executor: ScriptedExecutor) -> AsyncIterator[World]:
    """Runs a scripted executor, and a `World` around it."""

    def register(server: Any) -> None:
        executor_service_pb2_grpc.add_ExecutorServiceServicer_to_server(executor, server)

    async with running_server(register=[register], policies=POLICIES, domain="executor.aiagent") as (
        server,
        _,
    ):
        target = f"127.0.0.1:{server.port}"
        channel = open_channel(target, signer=None, audience="executor")
        made = World(
            database, executor, ExecutorGateway({target: channel}, AttemptTokens(generate_private_key()))
        )
        try:
            yield made
        finally:
            for pool in made.pools:
                await pool.drain()
            await channel.close()
