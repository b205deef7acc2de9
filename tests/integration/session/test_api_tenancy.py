"""Who may see and change what: every method, tried by those who may not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from aiagent.session.v1 import permission_service_pb2, workspace_service_pb2
from aiagent.session.v1 import session_service_pb2 as pb
from services.kernel.identity import Role
from services.session.store import tables
from tests.contract.session.hostile_archives import tar

from .serving import Client, Serving, reason, refusal

pytestmark = pytest.mark.integration

FILES = (pb.DESCRIPTOR, permission_service_pb2.DESCRIPTOR, workspace_service_pb2.DESCRIPTOR)
METHODS = {
    method.name: service.name
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
}
# What makes something new, or lists all that is the caller's: it names nobody's session.
WITHOUT_A_SESSION = {"CreateSession", "ListSessions"}
WRITES = {
    "CreateSession",
    "UpdateSession",
    "DeleteSession",
    "SendMessage",
    "QuerySession",
    "InterruptTurn",
    "ResolvePermission",
    "UploadWorkspace",
}
LARGE = "greet " + "x" * 300_000


@dataclass
class Belongings:
    """A session in which everything is that a method can name."""

    owner: Client
    session_id: str
    turn_id: str
    question_id: str
    content_id: str

    def requests(self) -> dict[str, Any]:
        """A request of every method that is about them."""
        session = {"session_id": self.session_id}
        turn = {**session, "turn_id": self.turn_id}
        return {
            "CreateSession": pb.CreateSessionRequest(name="new"),
            "GetSession": pb.GetSessionRequest(**session),
            "ListSessions": pb.ListSessionsRequest(),
            "UpdateSession": pb.UpdateSessionRequest(
                **session, name="taken", update_mask={"paths": ["name"]}
            ),
            "DeleteSession": pb.DeleteSessionRequest(**session),
            "SendMessage": pb.SendMessageRequest(**session, message="mine now"),
            "QuerySession": pb.QuerySessionRequest(**session, message="mine now", wait_seconds=0),
            "GetTurn": pb.GetTurnRequest(**turn),
            "WaitTurn": pb.WaitTurnRequest(**turn, wait_seconds=0),
            "ListTurns": pb.ListTurnsRequest(**session),
            "InterruptTurn": pb.InterruptTurnRequest(**turn),
            "WatchSession": pb.WatchSessionRequest(**session),
            "ListMessages": pb.ListMessagesRequest(**session),
            "ListToolCalls": pb.ListToolCallsRequest(**session),
            "ListEvents": pb.ListEventsRequest(**session),
            "ReadEventContent": pb.ReadEventContentRequest(**session, content_id=self.content_id),
            "ListPermissionRequests": permission_service_pb2.ListPermissionRequestsRequest(**session),
            "ResolvePermission": permission_service_pb2.ResolvePermissionRequest(
                **session, permission_request_id=self.question_id, decision="ALLOW_ONCE"
            ),
            "UploadWorkspace": iter(
                [
                    workspace_service_pb2.UploadWorkspaceRequest(
                        **session, archive={"data": tar(("mine.txt", b"mine"))}
                    )
                ]
            ),
            "DownloadWorkspace": workspace_service_pb2.DownloadWorkspaceRequest(**session),
        }

    def call(self, client: Client, method: str, **changes: Any) -> Any:
        """Calls a method about them; `changes` are other ids to name."""
        request = self.requests()[method]
        for name, value in changes.items():
            setattr(request, name, value)
        return getattr(client.stub(METHODS[method]), method)(request)


async def belongings(api: Serving, owner: Client) -> Belongings:
    session = await owner.session(name="theirs")
    (api.workspace(session.id) / "secret.txt").write_bytes(b"secret")
    large = await owner.talk(session.id, LARGE)
    question = await owner.question(session.id)
    return Belongings(owner, session.id, question.turn_id, question.id, large.message.reference.content_id)


@pytest.fixture(scope="module")
async def theirs(api: Serving) -> Belongings:
    return await belongings(api, api.client())


@pytest.fixture(scope="module")
async def intruder(api: Serving) -> Belongings:
    """Somebody of another organization who has the same things."""
    return await belongings(api, api.client())


def test_every_method_is_tried(theirs: Belongings) -> None:
    assert set(theirs.requests()) == set(METHODS)
    assert set(METHODS) >= WRITES


@pytest.mark.parametrize("method", sorted(set(METHODS) - WITHOUT_A_SESSION))
@pytest.mark.parametrize("who", ["stranger", "stranger who is an admin", "colleague"])
async def test_what_is_anothers_is_not_there(api: Serving, theirs: Belongings, method: str, who: str) -> None:
    client = {
        "stranger": lambda: api.client(),
        "stranger who is an admin": lambda: api.colleague(api.client(), Role.ADMIN),
        "colleague": lambda: api.colleague(theirs.owner),
    }[who]()
    before = await api.everything(theirs.session_id)
    error = await refusal(theirs.call(client, method))
    assert (error.kind.value, error.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")
    assert error.metadata["session_id"] == theirs.session_id
    assert await api.everything(theirs.session_id) == before
    # Nothing was made or kept in the intruder's own name either.
    for table in (tables.sessions, tables.idempotency_keys, tables.events):
        if client.caller.organization_id != theirs.owner.caller.organization_id:
            assert await api.count(table, client.caller.organization_id) == 0


@pytest.mark.parametrize("method", sorted(set(METHODS) - WITHOUT_A_SESSION))
async def test_what_is_anothers_is_answered_as_what_never_was(
    api: Serving, theirs: Belongings, method: str
) -> None:
    if method == "UploadWorkspace":
        never = Belongings(theirs.owner, "0198c0de-0000-7000-8000-000000000000", "", "", "")
        absent = await refusal(never.call(theirs.owner, method))
    else:
        absent = await refusal(
            theirs.call(theirs.owner, method, session_id="0198c0de-0000-7000-8000-000000000000")
        )
    others = await refusal(theirs.call(api.client(), method))
    assert (absent.kind, absent.reason, absent.message) == (others.kind, others.reason, others.message)
    assert set(absent.metadata) == set(others.metadata)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("GetTurn", "turn_id"),
        ("WaitTurn", "turn_id"),
        ("InterruptTurn", "turn_id"),
        ("ReadEventContent", "content_id"),
        ("ResolvePermission", "permission_request_id"),
    ],
)
async def test_what_is_anothers_is_not_found_through_ones_own_session(
    api: Serving, theirs: Belongings, intruder: Belongings, method: str, name: str
) -> None:
    wanted = {
        "turn_id": theirs.turn_id,
        "content_id": theirs.content_id,
        "permission_request_id": theirs.question_id,
    }
    before = await api.everything(theirs.session_id), await api.everything(intruder.session_id)
    error = await refusal(intruder.call(intruder.owner, method, **{name: wanted[name]}))
    assert error.kind.value == "NOT_FOUND"
    assert error.metadata[name] == wanted[name]
    assert (await api.everything(theirs.session_id), await api.everything(intruder.session_id)) == before


@pytest.mark.parametrize("method", ["ListMessages", "ListToolCalls", "ListEvents"])
async def test_a_filter_by_anothers_turn_finds_nothing(
    theirs: Belongings, intruder: Belongings, method: str
) -> None:
    found = await intruder.call(intruder.owner, method, turn_id=theirs.turn_id)
    assert found.ByteSize() == 0


async def test_lists_hold_only_what_is_the_callers(
    api: Serving, theirs: Belongings, intruder: Belongings
) -> None:
    colleague = api.colleague(theirs.owner)
    own = await colleague.session(name="own")
    listed = await colleague.sessions.ListSessions(pb.ListSessionsRequest())
    assert [session.id for session in listed.sessions] == [own.id]
    questions = permission_service_pb2.ListPermissionRequestsRequest()
    assert not (await colleague.permissions.ListPermissionRequests(questions)).permission_requests
    mine = await intruder.owner.permissions.ListPermissionRequests(questions)
    assert [request.id for request in mine.permission_requests] == [intruder.question_id]


async def test_an_admin_reads_and_answers_for_the_organization(api: Serving) -> None:
    owner = api.client()
    here = await belongings(api, owner)
    admin = api.colleague(owner, Role.ADMIN)
    assert (await admin.get(here.session_id)).user_id == str(owner.caller.user_id)
    answered = await here.call(admin, "ResolvePermission")
    assert answered.resolved_by == str(admin.caller.user_id)
    listed = await admin.sessions.ListSessions(pb.ListSessionsRequest())
    assert not listed.sessions


@pytest.mark.parametrize("method", sorted(WRITES))
async def test_a_viewer_writes_nothing(api: Serving, theirs: Belongings, method: str) -> None:
    viewer = api.demoted(theirs.owner)
    before = await api.everything(theirs.session_id)
    sessions = await api.count(tables.sessions, theirs.owner.caller.organization_id)
    error = await refusal(theirs.call(viewer, method))
    assert (error.kind.value, error.reason) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
    assert error.metadata["role"] == "VIEWER"
    assert await api.everything(theirs.session_id) == before
    assert await api.count(tables.sessions, theirs.owner.caller.organization_id) == sessions


@pytest.mark.parametrize("method", sorted(set(METHODS) - WRITES))
async def test_a_viewer_reads_what_is_theirs(api: Serving, theirs: Belongings, method: str) -> None:
    call = theirs.call(api.demoted(theirs.owner), method)
    if not hasattr(call, "__aiter__"):
        assert (await call).ByteSize() > 0
        return
    assert (await call.read()).ByteSize() > 0
    call.cancel()


@pytest.mark.parametrize("method", sorted(METHODS))
async def test_nobody_calls_without_a_token(api: Serving, theirs: Belongings, method: str) -> None:
    nobody = Client(api.channel, (), theirs.owner.caller)
    assert await reason(theirs.call(nobody, method)) == "UNAUTHENTICATED TOKEN_MISSING"


async def test_a_deleted_session_is_not_there_for_its_owner(api: Serving) -> None:
    owner = api.client()
    here = await belongings(api, owner)
    await owner.sessions.DeleteSession(pb.DeleteSessionRequest(session_id=here.session_id))
    for method in sorted(set(METHODS) - WITHOUT_A_SESSION):
        assert await reason(here.call(owner, method)) == "NOT_FOUND SESSION_NOT_FOUND", method
    assert not (await owner.sessions.ListSessions(pb.ListSessionsRequest())).sessions
    questions = permission_service_pb2.ListPermissionRequestsRequest()
    assert not (await owner.permissions.ListPermissionRequests(questions)).permission_requests

    async def gone() -> bool:
        return not await api.rows(tables.sessions, here.session_id)

    await api.until(gone)
    for table in (tables.events, tables.turns, tables.messages, tables.event_contents):
        assert not await api.rows(table, here.session_id)
    assert not api.workspace(here.session_id).exists()
