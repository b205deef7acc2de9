"""What workers rely on of the session service: the same of the real one, and of the one that other tests play with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from aiagent.session.v1 import session_pb2
from services.kernel.errors import ErrorKind, ServiceError
from services.kernel.grpc import open_channel
from services.kernel.identity import ServiceTokenSigner, generate_private_key
from services.kernel.identity.keys import public_key_to_text
from services.kernel.testing import a_caller
from services.scheduler.domain.runs import Failure, TurnState, Usage
from services.scheduler.gateways.sessions import SessionGateway
from services.scheduler.usecases.worker.ports import NewSession, Owner, Sessions
from tests.databases import Copy
from tests.integration.scheduler.fake_sessions import FakeSessions
from tests.integration.session.scripted_executor import Attempt
from tests.integration.session.serving import Serving, serving

pytestmark = pytest.mark.contract
NEW = NewSession(
    "a run", {"permission_mode": "DONT_ASK", "max_turns": 3}, {"team": "core"}, timedelta(minutes=5)
)


@dataclass
class Place:
    """A session service, and how it is called."""

    sessions: Sessions
    serving: Serving | None = None


async def fail(attempt: Attempt) -> None:
    attempt.started()
    attempt.end("FAILED", "MODEL_ERROR")


@pytest.fixture(scope="module")
async def real(databases: Copy, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    key = generate_private_key()
    directory: Path = tmp_path_factory.mktemp("session")
    trust = {"scheduler": public_key_to_text(key.public_key())}
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(serving(databases, None, directory, service_trust=trust))
        running.plays["fail"] = fail
        channel = open_channel(
            f"127.0.0.1:{running.service.port}",
            signer=ServiceTokenSigner("scheduler", key),
            audience="session",
            forward_caller=True,
        )
        stack.push_async_callback(channel.close)
        yield Place(SessionGateway(channel), running)


@pytest.fixture(params=["real", "fake"])
def place(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("real") if request.param == "real" else Place(FakeSessions())


def somebody() -> Owner:
    caller = a_caller()
    return Owner(caller.user_id, caller.organization_id)


async def began(sessions: Sessions, owner: Owner, message: str) -> tuple[UUID, UUID]:
    session_id = await sessions.create_session(owner, NEW, str(uuid4()))
    return session_id, await sessions.send_message(owner, session_id, message, str(uuid4()))


async def test_a_turn_is_followed_to_its_end(place: Place) -> None:
    owner = somebody()
    turn = await place.sessions.wait_turn(owner, *await began(place.sessions, owner, "greet"), 20)
    assert (turn.state, turn.result, turn.failure) == (TurnState.SUCCEEDED, "hello there", None)
    assert (turn.usage, turn.cost_usd) == (Usage(input_tokens=10, output_tokens=5), 0.5)


async def test_why_a_turn_failed_is_told(place: Place) -> None:
    owner = somebody()
    turn = await place.sessions.wait_turn(owner, *await began(place.sessions, owner, "fail"), 20)
    assert turn.state is TurnState.FAILED
    assert turn.failure == Failure("MODEL_ERROR", "because of MODEL_ERROR")


async def test_the_same_calls_find_what_is_there(place: Place) -> None:
    owner, sessions = somebody(), place.sessions
    made = [await sessions.create_session(owner, NEW, "a-session") for _ in range(2)]
    sent = [await sessions.send_message(owner, made[0], "greet", "a-message") for _ in range(2)]
    assert (len(set(made)), len(set(sent))) == (1, 1)
    for call in (
        sessions.create_session(owner, replace(NEW, name="another"), "a-session"),
        sessions.send_message(owner, made[0], "greet again", "a-message"),
    ):
        with pytest.raises(ServiceError) as refused:
            await call
        assert (refused.value.kind, refused.value.reason) == (ErrorKind.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    # A request id is its caller's alone.
    assert await sessions.create_session(somebody(), NEW, "a-session") not in made


async def test_a_turn_is_stopped(place: Place) -> None:
    owner, sessions = somebody(), place.sessions
    session_id, turn_id = await began(sessions, owner, "stay")
    assert (await sessions.wait_turn(owner, session_id, turn_id, 0)).state is TurnState.OPEN
    await sessions.interrupt(owner, session_id, turn_id, "once")
    assert (await sessions.wait_turn(owner, session_id, turn_id, 20)).state is TurnState.INTERRUPTED
    await sessions.interrupt(owner, session_id, turn_id, "late")


async def test_what_is_not_there_or_another_ones(place: Place) -> None:
    owner, sessions = somebody(), place.sessions
    session_id, turn_id = await began(sessions, owner, "greet")
    for who, where in (
        (owner, uuid4()),
        (somebody(), session_id),
        (Owner(uuid4(), owner.organization_id), session_id),
    ):
        for call in (
            sessions.send_message(who, where, "greet", str(uuid4())),
            sessions.wait_turn(who, where, turn_id, 1),
            sessions.interrupt(who, where, turn_id, str(uuid4())),
        ):
            with pytest.raises(ServiceError) as refused:
                await call
            assert (refused.value.kind, refused.value.reason) == (ErrorKind.NOT_FOUND, "SESSION_NOT_FOUND")


async def test_the_session_is_the_owners(real: Place) -> None:
    owner = somebody()
    session_id, _ = await began(real.sessions, owner, "greet")
    assert real.serving is not None
    person = real.serving.client(a_caller(user_id=owner.user_id, organization_id=owner.organization_id))
    session = await person.get(str(session_id))
    assert (session.name, session.mode, dict(session.labels)) == (
        "a run",
        session_pb2.Session.BACKGROUND,
        {"team": "core"},
    )
    assert (session.sdk_options.max_turns, session.turn_timeout.ToTimedelta()) == (3, timedelta(minutes=5))
