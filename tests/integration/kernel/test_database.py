"""Tenancy, idempotency, outbox and outages on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import errno
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from services.kernel.db import Database
from services.kernel.db.idempotency import once, purge_expired
from services.kernel.db.migrations import upgrade
from services.kernel.db.outbox import OutboxWriter
from services.kernel.errors import ErrorKind, ServiceError
from services.kernel.identity import Caller, Role
from services.kernel.testing import a_caller
from tests.integration.kernel.conftest import MIGRATIONS, SCHEMA, Postgres, a_database
from tests.integration.kernel.tables import idempotency_keys, notes, outbox

pytestmark = pytest.mark.integration


async def write_note(database: Database, caller: Caller, text: str = "note", **other: Any) -> UUID:
    note_id = uuid4()
    values = {"organization_id": caller.organization_id, "user_id": caller.user_id} | other
    async with database.tenant(caller) as connection:
        await connection.execute(sa.insert(notes).values(id=note_id, text=text, **values))
    return note_id


async def visible(database: Database, caller: Caller) -> set[UUID]:
    async with database.tenant(caller) as connection:
        return set(await connection.scalars(sa.select(notes.c.id)))


async def test_a_tenant_sees_only_its_own_rows(database: Database) -> None:
    organization = uuid4()
    ann, bob = a_caller(organization_id=organization), a_caller(organization_id=organization)
    stranger = a_caller()
    of_ann, of_bob = await write_note(database, ann), await write_note(database, bob)
    of_stranger = await write_note(database, stranger)

    assert await visible(database, ann) == {of_ann}
    assert await visible(database, bob) == {of_bob}
    assert await visible(database, stranger) == {of_stranger}
    admin = a_caller(organization_id=organization, role=Role.ADMIN)
    assert await visible(database, admin) == {of_ann, of_bob}


@pytest.mark.parametrize("foreign", ["organization_id", "user_id"])
async def test_a_tenant_cannot_write_rows_of_another(database: Database, foreign: str) -> None:
    with pytest.raises(exc.DBAPIError, match="row-level security"):
        await write_note(database, a_caller(), **{foreign: uuid4()})


async def test_a_tenant_cannot_change_rows_of_another(database: Database) -> None:
    note_id = await write_note(database, a_caller())
    async with database.tenant(a_caller(role=Role.ADMIN)) as connection:
        changed = await connection.execute(sa.update(notes).where(notes.c.id == note_id).values(text="mine"))
        deleted = await connection.execute(sa.delete(notes).where(notes.c.id == note_id))
    assert (changed.rowcount, deleted.rowcount) == (0, 0)


async def test_without_a_tenant_there_are_no_rows(postgres: Postgres) -> None:
    # Both "system" and "application" connect as the application role: nothing sets a tenant.
    role = postgres.url(f"{SCHEMA}_application")
    bare = Database(role, role, system_pool_size=1)
    caller = a_caller()
    try:
        await write_note(bare, caller)
        for _ in range(2):  # before any tenant was set on the connection, and after one was
            async with bare.system() as connection:
                assert list(await connection.scalars(sa.select(notes.c.id))) == []
                await connection.execute(
                    sa.text("SELECT set_config('aiagent.organization_id', :id, true)"), {"id": str(uuid4())}
                )
    finally:
        await bare.close()


async def test_the_system_role_sees_every_tenant(database: Database) -> None:
    first, second = await write_note(database, a_caller()), await write_note(database, a_caller())
    for transaction in (database.system, database.dedicated_system):
        async with transaction() as connection:
            assert {first, second} <= set(await connection.scalars(sa.select(notes.c.id)))


async def test_a_tenant_ends_with_its_transaction(postgres: Postgres) -> None:
    database = a_database(postgres, pool_size=1)
    try:
        ann, bob = a_caller(), a_caller()
        note_id = await write_note(database, ann)
        assert await visible(database, bob) == set()
        assert await visible(database, ann) == {note_id}
    finally:
        await database.close()


async def test_an_error_rolls_back(database: Database) -> None:
    caller = a_caller()

    class Refused(Exception):
        pass

    with pytest.raises(Refused):
        async with database.tenant(caller) as connection:
            await connection.execute(
                sa.insert(notes).values(
                    id=uuid4(), organization_id=caller.organization_id, user_id=caller.user_id, text=""
                )
            )
            raise Refused
    assert await visible(database, caller) == set()


async def test_a_cancelled_transaction_rolls_back_and_gives_its_connection_back(postgres: Postgres) -> None:
    database = a_database(postgres, pool_size=1, pool_timeout_seconds=2)
    caller = a_caller()
    inside = asyncio.Event()

    async def work() -> None:
        async with database.tenant(caller) as connection:
            await connection.execute(
                sa.insert(notes).values(
                    id=uuid4(), organization_id=caller.organization_id, user_id=caller.user_id, text=""
                )
            )
            inside.set()
            await connection.execute(sa.text("SELECT pg_sleep(60)"))

    try:
        task = asyncio.create_task(work())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await visible(database, caller) == set()
    finally:
        await database.close()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ConnectionResetError(), TimeoutError()])
async def test_what_fails_beside_the_database_is_not_an_outage(database: Database, error: OSError) -> None:
    with pytest.raises(type(error)) as raised:
        async with database.system():
            raise error
    assert raised.value is error


async def test_an_error_of_a_lost_connection_is_an_outage(database: Database) -> None:
    with pytest.raises(ServiceError) as raised:
        async with database.system() as connection:
            assert connection.sync_connection is not None
            connection.sync_connection.connection.driver_connection.terminate()
            raise ConnectionResetError("as the driver raises it")
    assert raised.value.reason == "DATABASE_UNAVAILABLE"


async def test_a_wrong_statement_is_not_an_outage(database: Database) -> None:
    with pytest.raises(exc.DBAPIError):
        async with database.system() as connection:
            await connection.execute(sa.text("SELECT 1 / 0"))


@pytest.mark.parametrize(
    ("settings", "statement"),
    [
        ({"statement_timeout_seconds": 0.05}, "SELECT pg_sleep(30)"),
        ({"pool_timeout_seconds": 0.05, "system_pool_size": 1}, None),
    ],
)
async def test_a_busy_database_says_so(
    postgres: Postgres, settings: dict[str, Any], statement: str | None
) -> None:
    database = a_database(postgres, **settings)
    try:
        with pytest.raises(ServiceError) as caught:
            async with database.system() as connection:
                if statement is not None:
                    await connection.execute(sa.text(statement))
                else:
                    async with database.system():
                        pass
        assert (caught.value.kind, caught.value.reason) == (ErrorKind.UNAVAILABLE, "DATABASE_BUSY")
    finally:
        await database.close()


async def test_a_call_waits_shortly_for_what_another_one_holds(postgres: Postgres) -> None:
    database, caller = a_database(postgres, tenant_lock_timeout_seconds=0.1), a_caller()
    try:
        note_id = await write_note(database, caller)
        locked = sa.select(notes.c.id).where(notes.c.id == note_id).with_for_update()
        async with database.system() as holder:
            await holder.execute(locked)
            async with asyncio.timeout(2):
                with pytest.raises(ServiceError) as caught:
                    async with database.tenant(caller) as connection:
                        await connection.execute(locked)
        assert (caught.value.kind, caught.value.reason) == (ErrorKind.UNAVAILABLE, "DATABASE_BUSY")
        # The system's work waits longer.
        async with database.system() as connection:
            assert await connection.scalar(sa.text("SHOW lock_timeout")) == "5s"
    finally:
        await database.close()


async def test_no_organization_has_all_connections(postgres: Postgres) -> None:
    database = a_database(postgres, pool_size=4, pool_timeout_seconds=0.1)
    organization = uuid4()
    try:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(database.tenant(a_caller(organization_id=organization)))
            with pytest.raises(ServiceError) as caught:
                await visible(database, a_caller(organization_id=organization))
            assert caught.value.reason == "DATABASE_BUSY"
            waiting = [
                asyncio.ensure_future(visible(database, a_caller(organization_id=organization)))
                for _ in range(8)
            ]
            assert await visible(database, a_caller()) == set()
            await asyncio.gather(*waiting, return_exceptions=True)
        assert await visible(database, a_caller(organization_id=organization)) == set()
    finally:
        await database.close()


async def test_a_database_whose_connections_are_all_in_use_is_there(postgres: Postgres) -> None:
    database = a_database(postgres, pool_size=1, system_pool_size=1, pool_timeout_seconds=30)
    try:
        async with database.system(), database.tenant(a_caller()), database.dedicated_system():
            async with asyncio.timeout(10):
                await database.check()
    finally:
        await database.close()


async def test_an_outage_is_unavailable_and_passes(postgres: Postgres) -> None:
    database = a_database(postgres)
    caller = a_caller()
    try:
        note_id = await write_note(database, caller)
        await database.check()
        with pytest.raises(ServiceError) as caught:
            async with database.tenant(caller) as connection:
                await connection.execute(sa.select(notes.c.id))
                await asyncio.to_thread(postgres.stop, crash=True)
                await connection.execute(sa.select(notes.c.id))
        assert (caught.value.kind, caught.value.reason) == (ErrorKind.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        for transaction in (database.system, database.dedicated_system, lambda: database.tenant(caller)):
            with pytest.raises(ServiceError) as caught:
                async with transaction():
                    pass
            assert caught.value.reason == "DATABASE_UNAVAILABLE"
        await postgres.start()
        # The pool still holds connections to the server that is gone; nobody notices.
        assert await visible(database, caller) == {note_id}
        await database.check()
    finally:
        if postgres.process is None:
            await postgres.start()
        await database.close()


async def test_connections_that_died_in_the_pool_are_replaced(database: Database, postgres: Postgres) -> None:
    caller = a_caller()
    note_id = await write_note(database, caller)
    await database.check()
    import asyncpg

    admin = await asyncpg.connect(postgres.url("app"))
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    )
    await admin.close()
    assert await visible(database, caller) == {note_id}
    async with database.system(), database.dedicated_system():
        pass


class TestOnce:
    """A mutation with a request id happens once."""

    async def create(
        self, database: Database, caller: Caller, request_id: str, *, request: bytes = b"a", **options: Any
    ) -> tuple[bytes, bool]:
        ran = False

        async with database.tenant(caller) as connection:

            async def run() -> bytes:
                nonlocal ran
                ran = True
                note_id = uuid4()
                await connection.execute(
                    sa.insert(notes).values(
                        id=note_id,
                        organization_id=caller.organization_id,
                        user_id=caller.user_id,
                        text="",
                    )
                )
                if (hold := options.get("hold")) is not None:
                    options["running"].set()
                    await hold.wait()
                if options.get("fail"):
                    raise ValueError("fails")
                return note_id.bytes

            answer = await once(
                connection,
                idempotency_keys,
                caller_id=caller.user_id,
                organization_id=caller.organization_id,
                method="CreateNote",
                request_id=request_id,
                request=request,
                expire_after=options.get("expire_after", timedelta(hours=1)),
                run=run,
            )
        return answer, ran

    async def test_the_second_gets_the_answer_of_the_first(self, database: Database) -> None:
        caller = a_caller()
        first, ran_first = await self.create(database, caller, "r1")
        second, ran_second = await self.create(database, caller, "r1")
        assert (ran_first, ran_second) == (True, False)
        assert first == second
        assert await visible(database, caller) == {UUID(bytes=first)}

    async def test_another_request_under_the_same_id_is_refused(self, database: Database) -> None:
        caller = a_caller()
        await self.create(database, caller, "r1")
        with pytest.raises(ServiceError) as caught:
            await self.create(database, caller, "r1", request=b"b")
        assert (caught.value.kind, caught.value.reason, caught.value.domain) == (
            ErrorKind.INVALID_ARGUMENT,
            "REQUEST_ID_REUSED",
            "sample.aiagent",
        )
        assert [violation.field for violation in caught.value.violations] == ["request_id"]

    async def test_ids_belong_to_their_caller(self, database: Database) -> None:
        organization = uuid4()
        ann, bob = a_caller(organization_id=organization), a_caller(organization_id=organization)
        assert (await self.create(database, ann, "r1"))[1]
        assert (await self.create(database, bob, "r1", request=b"b"))[1]

    async def test_without_an_id_nothing_is_promised(self, database: Database) -> None:
        caller = a_caller()
        await self.create(database, caller, "")
        await self.create(database, caller, "")
        assert len(await visible(database, caller)) == 2

    async def test_a_failed_attempt_leaves_the_id_free(self, database: Database) -> None:
        caller = a_caller()
        with pytest.raises(ValueError, match="fails"):
            await self.create(database, caller, "r1", fail=True)
        assert (await self.create(database, caller, "r1", request=b"b"))[1]

    @pytest.mark.parametrize("first_fails", [False, True])
    async def test_a_concurrent_duplicate_waits_for_the_first(
        self, database: Database, first_fails: bool
    ) -> None:
        caller = a_caller()
        running, hold = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(
            self.create(database, caller, "r1", running=running, hold=hold, fail=first_fails)
        )
        await running.wait()
        second = asyncio.create_task(self.create(database, caller, "r1"))
        await self.blocked(database)
        assert not second.done()
        hold.set()
        results = await asyncio.gather(first, second, return_exceptions=True)
        if first_fails:
            assert isinstance(results[0], ValueError)
            assert results[1][1]  # type: ignore[index]
        else:
            assert results[0][0] == results[1][0]  # type: ignore[index]
            assert not results[1][1]  # type: ignore[index]
        assert len(await visible(database, caller)) == 1

    async def blocked(self, database: Database) -> None:
        query = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        async with asyncio.timeout(10):
            while True:
                async with database.system() as connection:
                    if (await connection.scalar(query)) == 1:
                        return
                await asyncio.sleep(0.01)

    async def test_an_expired_id_may_be_used_anew(self, database: Database) -> None:
        caller = a_caller()
        first, _ = await self.create(database, caller, "r1", expire_after=timedelta(0))
        second, ran = await self.create(database, caller, "r1", request=b"b")
        assert ran
        assert first != second
        assert (await self.create(database, caller, "r1", request=b"b"))[0] == second

    async def test_expired_ids_are_purged_and_others_stay(self, database: Database) -> None:
        caller = a_caller()
        await self.create(database, caller, "old", expire_after=timedelta(0))
        await self.create(database, caller, "new")
        await self.create(database, caller, "kept", expire_after=None)
        async with database.system() as connection:
            assert await purge_expired(connection, idempotency_keys) >= 1
            left = await connection.scalars(
                sa.select(idempotency_keys.c.request_id).where(idempotency_keys.c.caller_id == caller.user_id)
            )
            assert sorted(left) == ["kept", "new"]


async def test_the_outbox_commits_with_the_fact(database: Database) -> None:
    caller = a_caller()
    writer = OutboxWriter(outbox)
    async with database.tenant(caller) as connection:
        message_id = await writer.add(connection, "facts", "key", b"payload", caller.organization_id)
    async with database.system() as connection:
        row = (await connection.execute(sa.select(outbox).where(outbox.c.id == message_id))).one()
    assert (row.topic, row.key, row.payload, row.publish_time) == ("facts", "key", b"payload", None)
    with pytest.raises(exc.DBAPIError):
        async with database.tenant(caller) as connection:
            await writer.add(connection, "facts", "key", b"", uuid4())


async def test_migrations_that_start_together_run_once(postgres: Postgres) -> None:
    url = postgres.url(f"{SCHEMA}_owner")
    revisions = await asyncio.gather(*(upgrade(url, SCHEMA, MIGRATIONS) for _ in range(3)))
    assert revisions == ["0001"] * 3
