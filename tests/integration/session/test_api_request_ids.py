"""What happens once although it is asked for twice, and what only one of two may do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import grpc
import pytest

from aiagent.session.v1 import permission_service_pb2, workspace_service_pb2
from aiagent.session.v1 import session_service_pb2 as pb
from services.session.store import tables
from tests.contract.session.hostile_archives import tar

from .scripted_executor import Attempt
from .serving import Client, Serving, reason, refusal

pytestmark = pytest.mark.integration

Once = tuple[str, str, Any, Any]


def upload(session_id: str, request_id: str, content: bytes) -> Any:
    return workspace_service_pb2.UploadWorkspaceRequest(
        session_id=session_id, request_id=request_id, archive={"data": tar(("a.txt", content))}
    )


async def mutation(api: Serving, client: Client, method: str, request_id: str) -> Once:
    """A mutation that can be made: its service, the session, its request, and another one with the same id."""
    session_id = "" if method == "CreateSession" else (await client.session(name="before")).id
    about: dict[str, Any] = {"session_id": session_id, "request_id": request_id}
    of = "SessionService"
    match method:
        case "CreateSession":
            first: Any = pb.CreateSessionRequest(name="one", request_id=request_id)
            second: Any = pb.CreateSessionRequest(name="two", request_id=request_id)
        case "UpdateSession":
            mask = {"paths": ["name"]}
            first = pb.UpdateSessionRequest(**about, name="one", update_mask=mask)
            second = pb.UpdateSessionRequest(**about, name="two", update_mask=mask)
        case "DeleteSession":
            first = pb.DeleteSessionRequest(**about)
            second = pb.DeleteSessionRequest(**about, etag="another")
        case "SendMessage":
            first = pb.SendMessageRequest(**about, message="stay one")
            second = pb.SendMessageRequest(**about, message="stay two")
        case "QuerySession":
            first = pb.QuerySessionRequest(**about, message="greet one", wait_seconds=0)
            second = pb.QuerySessionRequest(**about, message="greet two", wait_seconds=0)
        case "InterruptTurn":
            turn = await client.send(session_id, "stay")
            first = pb.InterruptTurnRequest(**about, turn_id=turn.id)
            second = pb.InterruptTurnRequest(**about, turn_id=turn.id, reason="another")
        case "ResolvePermission":
            question = await client.question(session_id)
            of, answer = "PermissionService", permission_service_pb2.ResolvePermissionRequest
            first = answer(**about, permission_request_id=question.id, decision="DENY")
            second = answer(**about, permission_request_id=question.id, decision="ALLOW_ONCE")
        case _:
            of = "WorkspaceService"
            first = upload(session_id, request_id, b"one")
            second = upload(session_id, request_id, b"two")
    return of, session_id, first, second


def call(client: Client, of: str, method: str, request: Any) -> Any:
    return getattr(client.stub(of), method)(iter([request]) if method == "UploadWorkspace" else request)


def identity(answer: Any) -> tuple[str, ...]:
    """What an answer is about, without what goes on meanwhile."""
    answer = getattr(answer, "turn", answer)
    return tuple(
        str(getattr(answer, name, "")) for name in ("id", "number", "name", "file_count", "resolve_time")
    )


MUTATIONS = (
    "CreateSession",
    "UpdateSession",
    "DeleteSession",
    "SendMessage",
    "QuerySession",
    "InterruptTurn",
    "ResolvePermission",
    "UploadWorkspace",
)
# How a mutation shows in the log.
TRACES = {
    "SendMessage": "user_message",
    "QuerySession": "user_message",
    "InterruptTurn": "interrupt_requested",
    "ResolvePermission": "permission_resolved",
    "UploadWorkspace": "workspace_uploaded",
}


def test_every_method_with_a_request_id_is_tried() -> None:
    found = {
        method.name
        for file in (pb.DESCRIPTOR, permission_service_pb2.DESCRIPTOR, workspace_service_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
        if "request_id" in method.input_type.fields_by_name
    }
    assert found == set(MUTATIONS)


async def happened_once(api: Serving, client: Client, method: str, session_id: str) -> None:
    """Asserts that a mutation has left what one call leaves."""
    assert await api.count(tables.sessions, client.caller.organization_id) <= 1
    if method not in TRACES:
        return
    kinds = [row.kind for row in await api.rows(tables.events, session_id)]
    # A question had a message before it.
    assert kinds.count(TRACES[method]) == 1
    if method in {"SendMessage", "QuerySession"}:
        assert len(await api.rows(tables.turns, session_id)) == 1


@pytest.mark.parametrize("method", MUTATIONS)
async def test_the_same_request_twice_does_it_once(api: Serving, method: str) -> None:
    client = api.client()
    of, session_id, request, _ = await mutation(api, client, method, "same:1")
    first = await call(client, of, method, request)
    second = await call(client, of, method, request)
    assert identity(first) == identity(second)
    await happened_once(api, client, method, session_id)


@pytest.mark.parametrize("method", MUTATIONS)
async def test_the_same_request_ten_times_at_once_does_it_once(api: Serving, method: str) -> None:
    client = api.client()
    of, session_id, request, _ = await mutation(api, client, method, "same:10")
    answers = await asyncio.gather(*(call(client, of, method, request) for _ in range(10)))
    assert len({identity(answer) for answer in answers}) == 1
    await happened_once(api, client, method, session_id)
    if method == "CreateSession":
        assert len(list(api.settings.workspace_root.glob(answers[0].id))) == 1


@pytest.mark.parametrize("method", MUTATIONS)
async def test_a_request_id_with_another_body_is_refused_and_changes_nothing(
    api: Serving, method: str
) -> None:
    client = api.client()
    of, session_id, request, other = await mutation(api, client, method, "reused")
    await call(client, of, method, request)
    if method in {"InterruptTurn", "ResolvePermission", "QuerySession"}:
        # The turn goes on by itself; what follows must compare what stands still.
        listed = await client.sessions.ListTurns(pb.ListTurnsRequest(session_id=session_id))
        await client.wait(listed.turns[0])
    elif method == "SendMessage":
        await api.until(lambda: processing(client, session_id))
    before = await api.everything(session_id) if session_id and method != "DeleteSession" else None
    error = await refusal(call(client, of, method, other))
    assert (error.kind.value, error.reason, error.domain) == (
        "INVALID_ARGUMENT",
        "REQUEST_ID_REUSED",
        "session.aiagent",
    )
    assert error.violations[0].field == "request_id"
    assert error.metadata["request_id"] == "reused"
    if before is not None:
        assert await api.everything(session_id) == before
    assert await api.count(tables.sessions, client.caller.organization_id) <= 1


async def processing(client: Client, session_id: str) -> bool:
    session = await client.get(session_id)
    events = await client.events(session_id)
    return session.state == session.PROCESSING and events[-1].payload.HasField("assistant_message")


async def test_a_request_id_is_its_callers_and_its_methods_own(api: Serving) -> None:
    one, other = api.client(), api.client()
    colleague = api.colleague(one)
    made = [await client.session(name="x", request_id="mine") for client in (one, other, colleague)]
    assert len({session.id for session in made}) == 3
    turn = await one.send(made[0].id, request_id="mine")
    assert turn.session_id == made[0].id


async def test_a_refused_request_leaves_its_id_free(api: Serving) -> None:
    client = api.client()
    session = await client.session()
    running = await client.send(session.id, "stay")
    busy = {"message": "greet", "when_busy": "REJECT", "request_id": "again"}
    error = await refusal(client.send(session.id, **busy))
    assert (error.kind.value, error.reason) == ("FAILED_PRECONDITION", "SESSION_BUSY")
    assert error.metadata["turn_id"] == running.id
    await client.sessions.InterruptTurn(pb.InterruptTurnRequest(session_id=session.id))
    await client.wait(running)
    assert (await client.send(session.id, **busy)).number == 2


async def test_deleting_again_is_not_found_except_by_the_same_request(api: Serving) -> None:
    client = api.client()
    session = await client.session()
    request = pb.DeleteSessionRequest(session_id=session.id, request_id="delete")
    await client.sessions.DeleteSession(request)
    await client.sessions.DeleteSession(request)
    again = pb.DeleteSessionRequest(session_id=session.id)
    assert await reason(client.sessions.DeleteSession(again)) == "NOT_FOUND SESSION_NOT_FOUND"


async def test_of_ten_deletions_one_deletes(api: Serving) -> None:
    client = api.client()
    session = await client.session()
    request = pb.DeleteSessionRequest(session_id=session.id)
    answers = await asyncio.gather(
        *(client.sessions.DeleteSession(request) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(answer, pb.DeleteSessionResponse) for answer in answers) == 1
    refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert {answer.code() for answer in refused} == {grpc.StatusCode.NOT_FOUND}


async def test_a_message_sent_while_its_session_is_deleted_is_accepted_or_not_found(api: Serving) -> None:
    for _ in range(5):
        client = api.client()
        session = await client.session()
        answers = await asyncio.gather(
            *(client.send(session.id, "greet") for _ in range(4)),
            client.sessions.DeleteSession(pb.DeleteSessionRequest(session_id=session.id)),
            *(client.send(session.id, "greet") for _ in range(4)),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                assert isinstance(answer, grpc.aio.AioRpcError)
                assert answer.code() is grpc.StatusCode.NOT_FOUND


# Etags


async def test_of_ten_changes_with_one_etag_one_is_made(api: Serving) -> None:
    client = api.client()
    session = await client.session(name="old")
    names = [f"new {number}" for number in range(10)]
    answers = await asyncio.gather(
        *(
            client.sessions.UpdateSession(
                pb.UpdateSessionRequest(
                    session_id=session.id, name=name, update_mask={"paths": ["name"]}, etag=session.etag
                )
            )
            for name in names
        ),
        return_exceptions=True,
    )
    (made,) = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert made.name in names
    assert made.etag != session.etag
    assert (await client.get(session.id)).name == made.name
    for answer in answers:
        if isinstance(answer, grpc.aio.AioRpcError):
            assert answer.code() is grpc.StatusCode.ABORTED


async def test_a_stale_etag_neither_changes_nor_deletes(api: Serving) -> None:
    client = api.client()
    session = await client.session(name="old")
    await client.talk(session.id)
    change = pb.UpdateSessionRequest(
        session_id=session.id, name="new", update_mask={"paths": ["name"]}, etag=session.etag
    )
    assert await reason(client.sessions.UpdateSession(change)) == "ABORTED ETAG_MISMATCH"
    removal = pb.DeleteSessionRequest(session_id=session.id, etag=session.etag)
    assert await reason(client.sessions.DeleteSession(removal)) == "ABORTED ETAG_MISMATCH"
    now = await client.get(session.id)
    assert now.name == "old"
    await client.sessions.DeleteSession(pb.DeleteSessionRequest(session_id=session.id, etag=now.etag))


async def test_only_what_the_mask_names_is_changed(api: Serving) -> None:
    client = api.client()
    session = await client.session(name="old", labels={"a": "b"}, sdk_options={"max_turns": 3})
    change = pb.UpdateSessionRequest(
        session_id=session.id, name="new", labels={"c": "d"}, update_mask={"paths": ["labels"]}
    )
    changed = await client.sessions.UpdateSession(change)
    assert (changed.name, dict(changed.labels), changed.sdk_options.max_turns) == ("old", {"c": "d"}, 3)
    assert changed.turn_timeout.ToTimedelta() == timedelta(hours=1)


# Messages at once


class Running:
    """Counts the turns that run at once, of each session."""

    def __init__(self) -> None:
        self.now: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.order: list[str] = []
        self.go_on = asyncio.Event()

    async def play(self, attempt: Attempt) -> None:
        session_id = attempt.request.fence.session_id
        self.now[session_id] = self.now.get(session_id, 0) + 1
        self.most[session_id] = max(self.most.get(session_id, 0), self.now[session_id])
        self.order.append(attempt.request.prompt)
        attempt.started()
        await self.go_on.wait()
        attempt.say(attempt.request.prompt)
        self.now[session_id] -= 1
        attempt.end("SUCCEEDED")


@pytest.fixture
async def running(api: Serving) -> AsyncIterator[Running]:
    counted = Running()
    word = f"count-{uuid4().hex}"
    api.plays[word] = counted.play
    counted.word = word  # type: ignore[attr-defined]
    yield counted
    del api.plays[word]


async def test_messages_at_once_run_one_after_the_other(api: Serving, running: Running) -> None:
    client = api.client()
    session = await client.session()
    turns = await asyncio.gather(
        *(client.send(session.id, f"{running.word} {number}") for number in range(8))  # type: ignore[attr-defined]
    )
    assert sorted(turn.number for turn in turns) == list(range(1, 9))

    async def one_runs() -> list[Any]:
        rows = await api.rows(tables.turns, session.id)
        return [row for row in rows if row.state == "RUNNING"]

    assert len(await api.until(one_runs)) == 1
    rows = await api.rows(tables.turns, session.id)
    assert sorted(row.state for row in rows) == ["QUEUED"] * 7 + ["RUNNING"]
    running.go_on.set()
    ended = [(await client.wait(turn)).turn for turn in turns]
    assert {turn.state for turn in ended} == {turns[0].SUCCEEDED}
    assert running.most == {session.id: 1}
    by_number = sorted(ended, key=lambda turn: turn.number)
    assert running.order == [turn.message.text for turn in by_number]
    times = [(turn.start_time.ToDatetime(), turn.end_time.ToDatetime()) for turn in by_number]
    assert all(before[1] <= after[0] for before, after in pairwise(times))


async def test_of_two_messages_at_once_that_will_not_wait_one_is_refused(api: Serving) -> None:
    for _ in range(5):
        client = api.client()
        session = await client.session()
        answers = await asyncio.gather(
            *(client.send(session.id, "stay", when_busy="REJECT") for _ in range(2)), return_exceptions=True
        )
        (refused,) = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
        assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert len(await api.rows(tables.turns, session.id)) == 1


async def test_messages_that_interrupt_leave_one_turn(api: Serving) -> None:
    client = api.client()
    session = await client.session()
    first = await client.send(session.id, "stay")
    turns = await asyncio.gather(*(client.send(session.id, "greet", when_busy="INTERRUPT") for _ in range(4)))
    assert (await client.wait(first)).turn.state == first.INTERRUPTED
    last = max(turns, key=lambda turn: turn.number)
    ended = {turn.number: (await client.wait(turn)).turn.state for turn in turns}
    assert ended.pop(last.number) == last.SUCCEEDED
    assert set(ended.values()) <= {first.INTERRUPTED, first.SUCCEEDED}
    sequences = [event.sequence for event in await client.events(session.id)]
    assert sequences == list(range(1, len(sequences) + 1))


async def test_the_queue_is_bounded_for_messages_at_once(api: Serving) -> None:
    client = api.client()
    session = await client.session()
    first = await client.send(session.id, "stay")

    async def runs() -> bool:
        return (await api.rows(tables.turns, session.id))[0].state == "RUNNING"

    await api.until(runs)
    answers = await asyncio.gather(
        *(client.send(session.id, "greet") for _ in range(25)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert {answer.code() for answer in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(refused) == 5
    full = await refusal(client.send(session.id, "greet"))
    assert (full.reason, full.metadata["limit"]) == ("TURN_QUEUE_FULL", "20")
    assert full.retry_after_seconds is not None
    await client.send(session.id, "greet", when_busy="INTERRUPT")
    assert (await client.wait(first)).turn.state == first.INTERRUPTED


async def test_interrupting_what_is_over_is_refused_and_what_is_being_interrupted_is_not(
    api: Serving,
) -> None:
    client = api.client()
    session = await client.session()
    turn = await client.send(session.id, "stay")
    stop = pb.InterruptTurnRequest(session_id=session.id, turn_id=turn.id)
    await asyncio.gather(*(client.sessions.InterruptTurn(stop) for _ in range(3)), return_exceptions=True)
    assert (await client.wait(turn)).turn.state == turn.INTERRUPTED
    error = await refusal(client.sessions.InterruptTurn(stop))
    assert (error.kind.value, error.reason) == ("FAILED_PRECONDITION", "TURN_ENDED")
    assert error.metadata["state"] == "INTERRUPTED"
    assert [event.payload.WhichOneof("kind") for event in await client.events(session.id)].count(
        "interrupt_requested"
    ) == 1
    none = pb.InterruptTurnRequest(session_id=session.id)
    assert await reason(client.sessions.InterruptTurn(none)) == "NOT_FOUND TURN_NOT_FOUND"
