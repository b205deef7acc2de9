"""Who comes too late writes nothing: a driver whose lease is another's by now, a person whose time is over."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

import pytest
import sqlalchemy as sa

from services.kernel.errors import ErrorKind, ServiceError
from services.kernel.ids import new_id
from services.kernel.testing import a_caller
from services.session.domain import events
from services.session.domain.driving import Changes
from services.session.domain.entities import Lease
from services.session.domain.errors import LeaseLost
from services.session.store import tables
from services.session.store.system_queries import DriverQueries
from services.session.store.tenant import TenantStore
from services.session.usecases.permissions import Permissions

from .driving import RecordingFeed, World, world
from .scripted_executor import ScriptedExecutor

pytestmark = pytest.mark.integration


async def write(store: DriverQueries, lease: Lease) -> None:
    """Appends an event, as a driver does."""
    work = await store.work(lease)
    assert work is not None
    assert work.turn is not None
    changes = Changes()
    changes.add(events.Notice("TEST", "written"), work.turn.id)
    async with store.fenced(lease) as transaction:
        await transaction.write(work.turn, changes, expected_offset=work.turn.applied_offset)


async def notices(it: World, session_id: UUID) -> int:
    return [kind for _, kind, _ in await it.log(session_id)].count("notice")


async def never(_: Any) -> None:
    raise AssertionError("nothing is run here")


async def test_a_driver_whose_lease_was_taken_writes_nothing(session_database):
    async with world(session_database, ScriptedExecutor(never)) as it:
        store = DriverQueries(session_database)
        session_id = await it.session()
        await it.send(session_id)
        old = await store.acquire(session_id, "old")
        assert old is not None
        assert await store.acquire(session_id, "new") is None
        await write(store, old)
        # It has run out, and is still its holder's until somebody takes it.
        head = tables.session_heads.c.session_id == session_id
        await it.change(tables.session_heads, head, lease_expire_time=sa.text("now() - interval '1 minute'"))
        await write(store, old)
        await it.change(tables.session_heads, head, lease_expire_time=sa.text("now() - interval '1 minute'"))
        new = await store.acquire(session_id, "new")
        assert new is not None
        assert new.epoch == old.epoch + 1
        # One by its epoch, one by its holder, one by both.
        for lost in (old, replace(new, holder=old.holder), replace(new, epoch=old.epoch)):
            with pytest.raises(LeaseLost):
                await write(store, lost)
        await write(store, new)
        assert await notices(it, session_id) == 3


class Asleep:
    """No driver is there to let the question expire."""

    async def wake(self, session_id: UUID) -> None:
        return


async def test_an_answer_after_its_time_is_none(session_database):
    async with world(session_database, ScriptedExecutor(never)) as it:
        session_id = await it.session()
        turn_id = await it.send(session_id)
        (session,) = await it.rows(tables.sessions, session_id)
        question = new_id()
        async with session_database.system() as connection:
            await connection.execute(
                sa.insert(tables.permission_requests).values(
                    id=question,
                    session_id=session_id,
                    organization_id=session.organization_id,
                    user_id=session.user_id,
                    turn_id=turn_id,
                    tool_use_id="t1",
                    tool_name="Bash",
                    input_text="{}",
                    input_hash="h",
                    state="PENDING",
                    expire_time=sa.func.clock_timestamp() - timedelta(milliseconds=1),
                )
            )
        permissions = Permissions(TenantStore(session_database), cast(Any, RecordingFeed()), Asleep())
        caller = a_caller(user_id=session.user_id, organization_id=session.organization_id)
        with pytest.raises(ServiceError) as refusal:
            await permissions.resolve(caller, session_id, question, allow=True, reason="", request_id="late")
        assert refusal.value.kind is ErrorKind.FAILED_PRECONDITION
        assert refusal.value.reason == "PERMISSION_REQUEST_RESOLVED"
        assert refusal.value.metadata["state"] == "EXPIRED"
        (row,) = await it.rows(tables.permission_requests, session_id)
        assert (row.state, row.resolved_by) == ("PENDING", None)
        later = tables.permission_requests.c.id == question
        await it.change(tables.permission_requests, later, expire_time=sa.text("now() + interval '1 minute'"))
        answered = await permissions.resolve(
            caller, session_id, question, allow=True, reason="", request_id="in-time"
        )
        assert answered.state.value == "ALLOWED"
