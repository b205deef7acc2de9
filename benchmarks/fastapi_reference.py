"""What `unary.py` compares with: the same two calls as an ordinary FastAPI application.

FastAPI, Pydantic, SQLAlchemy's asynchronous ORM on asyncpg, uvicorn with uvloop and httptools. Creating writes the
same four statements' rows (idempotency key, session, head, the key's answer) in one transaction under the same
row-level security; getting reads one row joined with its head. A verified token is remembered, as the suite does:
the comparison is not about signatures. It makes no workspace directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import jwt
import sqlalchemy as sa
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

sys.path.insert(0, str(Path(__file__).parents[1]))

from services.kernel.db.database import driver_url
from services.session.store import tables

app = FastAPI()
_told: dict[str, Any] = {}
_verified: dict[str, dict[str, Any]] = {}
_sessions: async_sessionmaker[AsyncSession]
_TENANT = sa.text(
    "SELECT set_config('aiagent.organization_id', :organization, true),"
    " set_config('aiagent.user_id', :user, true), set_config('aiagent.role', :role, true)"
)


class Base(DeclarativeBase):
    """Of the mapped tables."""


class StoredSession(Base):
    """A session."""

    __table__ = tables.sessions


class StoredHead(Base):
    """The head of its log."""

    __table__ = tables.session_heads


class StoredKey(Base):
    """A request id that was used."""

    __table__ = tables.idempotency_keys


class CreateSession(BaseModel):
    """What the contract's CreateSessionRequest asks for, with its rules."""

    name: str = Field(default="", max_length=200)
    mode: str = Field(default="INTERACTIVE", pattern="^(INTERACTIVE|BACKGROUND)$")
    sdk_options: dict[str, Any] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    permission_timeout: timedelta = timedelta(hours=24)
    turn_timeout: timedelta = timedelta(hours=1)
    request_id: str = Field(default="", pattern="^[A-Za-z0-9._:-]{0,128}$")


class SessionOut(BaseModel):
    """A session, with what the contract's Session tells."""

    model_config = {"from_attributes": True}

    id: UUID
    name: str
    user_id: UUID
    organization_id: UUID
    mode: str
    state: str
    labels: dict[str, str]
    sdk_options: dict[str, Any]
    messages: int
    tool_calls: int
    turns: int
    errors: int
    retries: int
    permission_checks: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_usd: float
    duration_ms: int
    current_turn_id: UUID | None
    offline_model: bool
    permission_timeout: timedelta
    turn_timeout: timedelta
    create_time: datetime
    update_time: datetime
    version: int
    last_sequence: int = 0


def caller(authorization: Annotated[str, Header()]) -> dict[str, Any]:
    """Who calls."""
    token = authorization.removeprefix("Bearer ")
    known = _verified.get(token)
    if known is None:
        key = jwt.PyJWK(_told["jwk"]).key
        known = _verified[token] = jwt.decode(
            token, key, algorithms=["EdDSA"], audience="aiagent-api", issuer="aiagent"
        )
    return known


Caller = Annotated[dict[str, Any], Depends(caller)]


async def database(who: Caller) -> AsyncIterator[AsyncSession]:
    """One transaction of the caller."""
    async with _sessions() as session, session.begin():
        await session.execute(_TENANT, {"organization": who["org"], "user": who["sub"], "role": who["role"]})
        yield session


Transaction = Annotated[AsyncSession, Depends(database, scope="function")]


@app.post("/sessions")
async def create(request: CreateSession, who: Caller, transaction: Transaction) -> SessionOut:
    """Creates a session."""
    body = json.dumps(request.model_dump(mode="json", exclude={"request_id"}), sort_keys=True)
    key = StoredKey(
        organization_id=UUID(who["org"]),
        caller_id=UUID(who["sub"]),
        method="CreateSession",
        request_id=request.request_id,
        request_hash=hashlib.sha256(body.encode()).digest(),
    )
    transaction.add(key)
    await transaction.flush()
    made = StoredSession(
        id=uuid4(),
        organization_id=UUID(who["org"]),
        user_id=UUID(who["sub"]),
        state="CREATED",
        **request.model_dump(exclude={"request_id"}),
    )
    transaction.add(made)
    await transaction.flush()
    transaction.add(StoredHead(session_id=made.id, organization_id=made.organization_id))
    key.response = made.id.bytes
    await transaction.flush()
    return SessionOut.model_validate(made)


@app.get("/sessions/{session_id}")
async def get(session_id: UUID, transaction: Transaction) -> SessionOut:
    """Returns a session."""
    found = (
        await transaction.execute(
            sa.select(StoredSession, StoredHead.last_sequence)
            .join(StoredHead, StoredHead.session_id == StoredSession.id)
            .where(StoredSession.id == session_id, StoredSession.delete_time.is_(None))
        )
    ).one_or_none()
    if found is None:
        raise HTTPException(404, "no such session")
    answer = SessionOut.model_validate(found[0])
    answer.last_sequence = found[1]
    return answer


def main() -> None:
    """Reads its settings from the first line of standard input and serves."""
    global _sessions
    _told.update(json.loads(sys.stdin.readline()))
    engine = create_async_engine(
        driver_url(_told["database_url"]), pool_size=8, max_overflow=0, pool_use_lifo=True
    )
    _sessions = async_sessionmaker(engine, expire_on_commit=False)
    log = open(os.devnull, "w") if _told["log"] is None else open(_told["log"], "a")  # noqa: PTH123, SIM115
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    uvicorn.run(app, host="127.0.0.1", port=_told["port"], loop="uvloop", http="httptools")


if __name__ == "__main__":
    main()
