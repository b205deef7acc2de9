"""How long a request id is known: as long as the session it made or spoke to, or a day."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from aiagent.session.v1 import session_service_pb2 as pb
from deploy.local.servers import Valkey
from services.session.store import tables
from tests.databases import Copy

from .serving import Client, Serving, serving

pytestmark = pytest.mark.integration
KEYS = tables.idempotency_keys


async def kept(api: Serving, client: Client) -> dict[str, Any]:
    """The rows of a person's request ids, by request id."""
    query = sa.select(KEYS).where(KEYS.c.caller_id == client.caller.user_id)
    async with api.database.system() as connection:
        return {row.request_id: row for row in (await connection.execute(query)).all()}


async def used(client: Client) -> str:
    """Uses ids of each kind on a session, and returns it."""
    session = await client.session(request_id="create")
    turn = await client.send(session.id, "stay", request_id="send")
    await client.sessions.InterruptTurn(
        pb.InterruptTurnRequest(session_id=session.id, turn_id=turn.id, request_id="interrupt")
    )
    return session.id


async def test_ids_that_live_with_a_session_go_with_it(api: Serving) -> None:
    client = api.client()
    session_id, other = await used(client), await client.session(request_id="other")
    before = await kept(api, client)
    assert {name for name, row in before.items() if row.expire_time is None} == {"create", "send", "other"}
    # Each time is the clock's when it is asked, a microsecond apart at times.
    kept_for = before["interrupt"].expire_time - before["interrupt"].create_time
    assert abs(kept_for - timedelta(hours=24)) < timedelta(seconds=1)

    await client.sessions.DeleteSession(pb.DeleteSessionRequest(session_id=session_id, request_id="delete"))

    async def purged() -> bool:
        return not await api.rows(tables.sessions, session_id)

    await api.until(purged)
    assert set(await kept(api, client)) == {"other", "interrupt", "delete"}
    # The id may be used anew, and makes another session.
    assert (await client.session(request_id="create")).id not in {session_id, other.id}


async def test_expired_ids_are_removed_while_the_service_runs(
    databases: Copy, valkey: Valkey, tmp_path: Path
) -> None:
    async with serving(databases, valkey, tmp_path / "before") as api:
        client = api.client()
        await used(client)
        await api.change(
            sa.update(KEYS).where(KEYS.c.expire_time.is_not(None)).values(expire_time=sa.func.now())
        )
    async with serving(databases, valkey, tmp_path / "after") as api:

        async def tidy() -> bool:
            return set(await kept(api, client)) == {"create", "send"}

        await asyncio.wait_for(api.until(tidy), 10)
