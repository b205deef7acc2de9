"""What a hostile or a tired person sends: refused by name, and nothing changed."""

from __future__ import annotations

import hashlib
import io
import tarfile
from uuid import uuid4

import grpc
import httpx
import pytest
from google.api import httpbody_pb2

from aiagent.session.v1 import session_service_pb2, workspace_service_pb2

from .conftest import User, details, state_name
from .script import prompt, say, use

pytestmark = pytest.mark.e2e

SEND = session_service_pb2.SendMessageRequest
LIST = session_service_pb2.ListSessionsRequest
EVENTS = session_service_pb2.ListEventsRequest


@pytest.mark.parametrize(
    ("method", "request_of", "field"),
    [
        ("SendMessage", lambda s: SEND(session_id=s, message=""), "message"),
        ("SendMessage", lambda s: SEND(session_id=s, message=" \n\t"), "message"),
        ("SendMessage", lambda s: SEND(session_id=s, message="x" * (1024 * 1024 + 1)), "message"),
        ("SendMessage", lambda s: SEND(session_id=s, message="a\0b"), "message"),
        ("SendMessage", lambda s: SEND(session_id="nonsense", message="x"), "session_id"),
        ("SendMessage", lambda s: SEND(session_id=s, message="x", when_busy=77), "when_busy"),
        ("SendMessage", lambda s: SEND(session_id=s, message="x", request_id="a b"), "request_id"),
        ("ListSessions", lambda s: LIST(page_size=-1), "page_size"),
        ("ListSessions", lambda s: LIST(page_token="bm9uc2Vuc2U"), "page_token"),
        ("ListSessions", lambda s: LIST(name_contains="a\0"), "name_contains"),
        (
            "ListEvents",
            lambda s: session_service_pb2.ListEventsRequest(session_id=s, after_sequence=-1),
            "after_sequence",
        ),
    ],
)
async def test_bad_requests_name_the_field(user: User, method, request_of, field):
    session_id = await user.create()
    before = await user.events(session_id)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await user.call(getattr(user.sessions, method), request_of(session_id))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    reason, fields = details(refused.value)
    assert reason == "INVALID_REQUEST"
    assert field in fields
    assert await user.events(session_id) == before


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/v1/sessions", {"mode": "sideways"}, "mode"),
        ("/api/v1/sessions", {"sdk_options": {"permission_mode": "yolo"}}, "sdk_options.permission_mode"),
        ("/api/v1/sessions", {"sdk_options": {"max_turns": -1}}, "sdk_options.max_turns"),
        ("/api/v1/sessions", {"name": "a\0b"}, "name"),
        ("/api/v1/sessions/{id}/query", {"message": ""}, "message"),
        ("/api/v1/sessions/{id}/query", {"message": "x", "wait_seconds": -5}, "wait_seconds"),
    ],
)
async def test_bad_json_gets_400_with_the_same_details(user: User, path, body, field):
    session_id = await user.create()
    async with user.http() as http:
        answer = await http.post(path.replace("{id}", session_id), json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert error["code"] == 3
    violations = [
        violation
        for detail in error["details"]
        for violation in detail.get("fieldViolations", detail.get("field_violations", []))
    ]
    assert any(violation["field"].endswith(field.rsplit(".", 1)[-1]) for violation in violations), answer.text


async def test_an_answer_to_what_is_no_text_can_be_read(user: User):
    async with user.http() as http:
        answer = await http.post("/api/v1/sessions", content=b'{"name":"\xff \xc3\xbc"}')
    assert answer.status_code == 400
    assert "ü" in answer.json()["message"]


async def test_callers_without_a_right(suite, user: User, stranger: User):
    session_id = await user.create()
    async with httpx.AsyncClient(base_url=suite.base_url, trust_env=False) as http:
        missing = await http.get(f"/api/v1/sessions/{session_id}")
        forged = await http.get("/api/v1/sessions", headers={"authorization": "Bearer a.b.c"})
    for answer in (missing, forged):
        assert answer.status_code == 401
        assert answer.json()["code"] == 16
    with pytest.raises(grpc.aio.AioRpcError) as unauthenticated:
        await user.sessions.GetSession(session_service_pb2.GetSessionRequest(session_id=session_id))
    assert unauthenticated.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as foreign:
        await stranger.call(
            stranger.sessions.GetSession, session_service_pb2.GetSessionRequest(session_id=session_id)
        )
    with pytest.raises(grpc.aio.AioRpcError) as absent:
        await stranger.call(
            stranger.sessions.GetSession, session_service_pb2.GetSessionRequest(session_id=str(uuid4()))
        )
    for error in (foreign.value, absent.value):
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert details(error)[0] == "SESSION_NOT_FOUND"
    assert foreign.value.details() == absent.value.details()


async def test_a_page_token_of_another_list_is_refused(user: User):
    for _ in range(3):
        await user.create()
    page = await user.call(user.sessions.ListSessions, LIST(page_size=1))
    assert page.next_page_token
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await user.call(
            user.sessions.ListSessions,
            LIST(page_size=1, name_contains="a", page_token=page.next_page_token),
        )
    assert "page_token" in details(refused.value)[1]
    seen, token = [], ""
    while True:
        page = await user.call(user.sessions.ListSessions, LIST(page_size=1, page_token=token))
        seen += [session.id for session in page.sessions]
        token = page.next_page_token
        if not token:
            break
    assert len(seen) == len(set(seen)) == 3


@pytest.mark.parametrize(
    "command",
    [
        r"printf 'a\000b'",
        r"printf '\355\240\200 lone'",
        "head -c 12000000 /dev/zero | tr '\\0' x",
    ],
)
async def test_wild_tool_output_does_not_break_a_turn(user: User, command):
    session_id = await user.create()
    turn = await user.run(session_id, prompt(use("Bash", command=command), say("survived")))
    assert (state_name(turn), turn.result.text) == ("SUCCEEDED", "survived")
    assert len(await user.events(session_id)) > 8


async def test_a_large_text_lies_in_the_blob_store(user: User):
    session_id = await user.create()
    big = "0123456789abcdef" * 20_000
    turn = await user.run(
        session_id,
        prompt(use("Write", file_path="big.txt", content=big), say("written")),
    )
    assert state_name(turn) == "SUCCEEDED"
    calls = (
        await user.call(
            user.sessions.ListToolCalls, session_service_pb2.ListToolCallsRequest(session_id=session_id)
        )
    ).tool_calls
    reference = calls[0].tool_use.input_content.reference
    assert reference.size_bytes > len(big)
    data = b""
    async for piece in user.sessions.ReadEventContent(
        session_service_pb2.ReadEventContentRequest(session_id=session_id, content_id=reference.content_id),
        metadata=user.metadata,
    ):
        data += piece.body.data
    assert hashlib.sha256(data).hexdigest() == reference.sha256
    async with user.http() as http:
        answer = await http.get(f"/api/v1/sessions/{session_id}/contents/{reference.content_id}")
    assert answer.content == data


def _tar(*entries: tuple[str, bytes | None, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content, link in entries:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, link
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


async def _upload(user: User, session_id: str, archive: bytes):
    async def requests():
        for begin in range(0, max(1, len(archive)), 1000):
            yield workspace_service_pb2.UploadWorkspaceRequest(
                session_id=session_id if begin == 0 else "",
                archive=httpbody_pb2.HttpBody(data=archive[begin : begin + 1000]),
            )

    return await user.workspaces.UploadWorkspace(requests(), metadata=user.metadata)


@pytest.mark.parametrize(
    "archive",
    [
        _tar(("../escape", b"x", "")),
        _tar(("/etc/escape", b"x", "")),
        _tar(("out", None, "/etc")),
        _tar(("link", None, "."), ("link/below", b"x", "")),
        b"no archive at all",
        _tar(("fine", b"x" * 5000, ""))[:-20],
    ],
    ids=["upwards", "absolute", "link outside", "path through a link", "no archive", "cut off"],
)
async def test_a_hostile_archive_changes_nothing(user: User, archive):
    session_id = await user.create()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _upload(user, session_id, archive)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(refused.value)[0] == "ARCHIVE_INVALID"
    turn = await user.run(session_id, prompt(use("Bash", command="find . -type f | wc -l"), say("x")))
    assert state_name(turn) == "SUCCEEDED"
    async with user.http() as http:
        packed = await http.get(f"/api/v1/sessions/{session_id}/workdir/download")
    with tarfile.open(fileobj=io.BytesIO(packed.content)) as tar:
        assert tar.getnames() == []


async def test_files_go_up_and_come_back(user: User):
    session_id = await user.create()
    answer = await _upload(user, session_id, _tar(("src/a.txt", b"alpha\n", ""), ("b.txt", b"beta\n", "")))
    assert (answer.file_count, answer.size_bytes) == (2, 11)
    async with user.http() as http:
        more = await http.post(
            f"/api/v1/sessions/{session_id}/workdir/upload",
            params={"path": "more"},
            content=_tar(("c.txt", b"gamma\n", "")),
            headers={"content-type": "application/gzip"},
        )
        assert more.status_code == 200, more.text
        turn = await user.run(
            session_id, prompt(use("Bash", command="cat src/a.txt more/c.txt > d.txt"), say("x"))
        )
        assert state_name(turn) == "SUCCEEDED"
        packed = await http.get(f"/api/v1/sessions/{session_id}/workdir/download")
        assert packed.headers["content-type"] == "application/gzip"
    with tarfile.open(fileobj=io.BytesIO(packed.content)) as tar:
        member = tar.extractfile("d.txt")
        assert member is not None
        assert member.read() == b"alpha\ngamma\n"
