"""Tokens, deadlines, request ids, retries and errors of single calls."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import pytest

from aiagent_client import (
    ApiError,
    Client,
    CredentialsFile,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidUrlError,
    MemoryCredentials,
    NotFoundError,
    NotLoggedInError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from aiagent_client.connection import parse_url
from tests.unit.client.scripted_server import PASSWORD, ScriptedServer
from tests.unit.client.scripted_session import Fault
from tests.unit.client.test_command_line import asking

pytestmark = pytest.mark.unit


async def test_the_first_call_logs_in_and_the_token_is_kept(server: ScriptedServer, client: Client) -> None:
    await asyncio.gather(*(client.auth.me() for _ in range(5)))
    await client.auth.me()
    assert len(server.calls["Login"]) == 1
    assert {seen["authorization"] for seen in server.metadata["GetMe"]} == {"Bearer access-1"}


async def test_a_token_is_renewed_before_it_expires_once_for_all_who_wait(server: ScriptedServer) -> None:
    store = MemoryCredentials()
    async with Client(server.url, credentials=store) as client:
        await client.auth.login("ada", PASSWORD)
        stored = store.load()
        assert stored is not None
        # As if 59 minutes had passed.
        store.save(
            type(stored)(**{**{name: getattr(stored, name) for name in stored.__slots__}, "renew_time": 0})
        )
        await asyncio.gather(*(client.auth.me() for _ in range(8)))
    assert len(server.calls["RefreshToken"]) == 1
    assert {seen["authorization"] for seen in server.metadata["GetMe"]} == {"Bearer access-2"}


async def test_a_short_lived_token_is_not_renewed_at_every_call(
    server: ScriptedServer, client: Client
) -> None:
    server.expires_in = 20
    for _ in range(3):
        await client.auth.me()
    assert not server.calls["RefreshToken"]


async def test_a_refused_token_is_renewed_once_and_the_call_repeated(
    server: ScriptedServer, client: Client
) -> None:
    await client.auth.me()
    server.valid_access.clear()
    await client.auth.me()
    assert len(server.calls["RefreshToken"]) == 1
    assert len(server.calls["GetMe"]) == 3


async def test_renewal_that_can_wait_does_not_fail_the_call(server: ScriptedServer) -> None:
    store = MemoryCredentials()
    async with Client(server.url, credentials=store, timeout=1) as client:
        await client.auth.login("ada", PASSWORD)
        stored = store.load()
        assert stored is not None
        store.save(
            type(stored)(**{**{name: getattr(stored, name) for name in stored.__slots__}, "renew_time": 0})
        )
        server.faults["RefreshToken"] = [Fault(grpc.StatusCode.UNAVAILABLE)] * 9
        await client.auth.me()
    assert server.metadata["GetMe"][0]["authorization"] == "Bearer access-1"


async def test_a_login_that_ended_says_so_and_is_forgotten(server: ScriptedServer) -> None:
    store = MemoryCredentials()
    async with Client(server.url, credentials=store) as client:
        await client.auth.login("ada", PASSWORD)
        server.valid_access.clear()
        server.refresh_tokens.clear()
        with pytest.raises(NotLoggedInError):
            await client.auth.me()
    assert store.load() is None


async def test_with_a_password_a_login_that_ended_is_renewed(server: ScriptedServer, client: Client) -> None:
    await client.auth.me()
    server.valid_access.clear()
    server.refresh_tokens.clear()
    await client.auth.me()
    assert len(server.calls["Login"]) == 2


async def test_two_clients_of_one_file_use_a_refresh_token_once(
    server: ScriptedServer, tmp_path: Path
) -> None:
    path = tmp_path / "kept" / "credentials.json"
    async with (
        Client(server.url, credentials=CredentialsFile(path, server.url)) as one,
        Client(server.url, credentials=CredentialsFile(path, server.url)) as two,
    ):
        await one.auth.login("ada", PASSWORD)
        server.valid_access.clear()
        await asyncio.gather(one.auth.me(), two.auth.me(), one.auth.me(), two.auth.me())
        assert len(server.calls["RefreshToken"]) == 1
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert await two.auth.logout()
    assert CredentialsFile(path, server.url).load() is None


async def test_a_given_token_is_sent_and_not_renewed(server: ScriptedServer) -> None:
    async with Client(server.url, token="stale") as client:
        with pytest.raises(NotLoggedInError):
            await client.auth.me()
    assert server.metadata["GetMe"][0]["authorization"] == "Bearer stale"


async def test_without_credentials_calls_say_so(server: ScriptedServer) -> None:
    async with Client(server.url) as client:
        with pytest.raises(NotLoggedInError):
            await client.auth.me()
    assert not server.calls["GetMe"]


async def test_a_mutation_is_repeated_with_the_same_request_id(
    server: ScriptedServer, client: Client
) -> None:
    server.faults["CreateSession"] = [
        Fault(grpc.StatusCode.UNAVAILABLE, "DRAINING"),
        Fault(grpc.StatusCode.UNAVAILABLE),
    ]
    session = await client.sessions.create(name="a")
    ids = [request.request_id for request in server.calls["CreateSession"]]
    assert len(ids) == 3
    assert ids[0] and len(set(ids)) == 1
    assert session.name == "a"
    assert len({seen["x-request-id"] for seen in server.metadata["CreateSession"]}) == 1


@pytest.mark.parametrize(
    "code", ["ABORTED", "INTERNAL", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNKNOWN"]
)
async def test_nothing_but_unavailable_is_repeated(server: ScriptedServer, client: Client, code: str) -> None:
    server.faults["CreateSession"] = [Fault(grpc.StatusCode[code])]
    with pytest.raises(ApiError) as caught:
        await client.sessions.create()
    assert caught.value.code is grpc.StatusCode[code]
    assert len(server.calls["CreateSession"]) == 1


async def test_retries_are_bounded(server: ScriptedServer, client: Client) -> None:
    server.faults["CreateSession"] = [Fault(grpc.StatusCode.UNAVAILABLE)] * 20
    with pytest.raises(UnavailableError):
        await client.sessions.create()
    assert len(server.calls["CreateSession"]) == 5


async def test_a_failed_login_is_not_repeated(server: ScriptedServer) -> None:
    server.faults["Login"] = [Fault(grpc.StatusCode.UNAVAILABLE)]
    async with Client(server.url) as client:
        with pytest.raises(UnavailableError):
            await client.auth.login("ada", PASSWORD)
        with pytest.raises(UnauthenticatedError) as caught:
            await client.auth.login("ada", "wrong")
    assert caught.value.reason == "CREDENTIALS_INVALID"
    assert [bool(request.username) for request in server.calls["Login"]] == [True, True]


async def test_errors_carry_their_details(server: ScriptedServer, client: Client) -> None:
    server.faults["SendMessage"] = [
        Fault(
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_REQUEST",
            "the request is not valid",
            violations=(("message", "must not be empty"),),
            metadata={"limit": "1"},
        ),
        Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "TURN_QUEUE_FULL", retry_after=2.5),
        Fault(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_BUSY"),
    ]
    log = server.new_log()
    with pytest.raises(InvalidArgumentError) as caught:
        await client.sessions.send(log.session.id, "")
    error = caught.value
    assert (error.reason, error.domain, error.message) == (
        "INVALID_REQUEST", "session.aiagent", "the request is not valid",
    )  # fmt: skip
    assert error.metadata == {"limit": "1"}
    assert error.request_id == "served-1"
    assert [(found.field, found.description, found.reason) for found in error.field_violations] == [
        ("message", "must not be empty", "min_len")
    ]
    with pytest.raises(ResourceExhaustedError) as exhausted:
        await client.sessions.send(log.session.id, "a")
    assert exhausted.value.retry_after == 2.5
    with pytest.raises(FailedPreconditionError):
        await client.sessions.send(log.session.id, "a")
    with pytest.raises(NotFoundError):
        await client.sessions.get("0198c2f0-0000-7000-8000-000000000000")


async def test_a_server_that_is_not_there_is_unavailable_soon() -> None:
    async with Client("http://127.0.0.1:1", token="a") as client:
        began = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            await client.auth.me()
    assert caught.value.reason == ""
    assert caught.value.request_id
    assert time.monotonic() - began < 10


async def test_a_deadline_ends_a_call(server: ScriptedServer, client: Client) -> None:
    async def never(log: object, turn_id: str) -> None:
        await asyncio.Event().wait()

    server.agent = never
    log = server.new_log()
    turn = await client.sessions.send(log.session.id, "hello")
    answer = await client.sessions.wait_turn(log.session.id, turn.id, wait_seconds=1)
    assert answer.turn.state == turn.state
    server.silent.add("GetMe")
    async with Client(server.url, email="ada", password=PASSWORD, timeout=0.5) as hasty:
        with pytest.raises(DeadlineExceededError):
            await hasty.auth.me()


async def test_lists_go_over_all_pages(server: ScriptedServer, client: Client) -> None:
    for number in range(7):
        server.new_log(f"session {number}")
    names = [session.name async for session in client.sessions.list(page_size=3)]
    assert names == [f"session {number}" for number in range(6, -1, -1)]
    assert len(server.calls["ListSessions"]) == 3


async def test_query_waits_in_pieces_for_one_turn(
    server: ScriptedServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiagent_client.sessions._WAIT_PIECE", 1)
    go = asyncio.Event()

    async def slow(log, turn_id) -> None:
        await go.wait()
        await log.say(turn_id, 1, "done")
        await log.end(turn_id)

    server.agent = slow
    log = server.new_log()
    asked = asyncio.create_task(client.sessions.query(log.session.id, "hello", wait_seconds=30))
    while len(server.calls["QuerySession"]) < 2:
        await asyncio.sleep(0.05)
    go.set()
    answer = await asked
    assert answer.content == "done"
    assert len(log.turns) == 1


@pytest.mark.parametrize(
    ("url", "target", "shown", "secure"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", "http://127.0.0.1:8080", False),
        ("https://agents.example.org/", "agents.example.org:443", "https://agents.example.org", True),
        ("http://[::1]:99", "[::1]:99", "http://[::1]:99", False),
        (" http://Host ", "host:80", "http://host", False),
    ],
)
def test_urls(url: str, target: str, shown: str, secure: bool) -> None:
    address = parse_url(url)
    assert (address.target, address.url, address.secure) == (target, shown, secure)


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8080", "ftp://a", "http://", "http://a/b", "http://a:x", "http://u:p@a", "http://a?b"],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InvalidUrlError):
        parse_url(url)


async def test_waiting_for_a_person_outlasts_the_answers_that_come_at_once(
    server: ScriptedServer, client: Client
) -> None:
    server.agent = asking
    log = server.new_log()
    waiting = asyncio.create_task(client.sessions.query(log.session.id, "Hi", wait_for_person=True))
    while len(server.calls["QuerySession"]) < 3:
        await asyncio.sleep(0.01)
    asked = len(server.calls["QuerySession"])
    await log.resolve(next(iter(log.requests)), "ALLOWED")
    assert (await waiting).content == "It ran."
    assert len(server.calls["QuerySession"]) <= asked + 1
    short = await client.sessions.query(log.session.id, "Hi", wait_for_person=True, wait_seconds=1)
    assert short.turn.state == short.turn.WAITING
    # Paused in between, not asked as often as the server can answer.
    assert len(server.calls["QuerySession"]) < asked + 12
