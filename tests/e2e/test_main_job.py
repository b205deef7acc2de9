"""The main job, as a user does it: register, log in, create a session, send a message, watch Claude work."""

from __future__ import annotations

import base64
import struct
from uuid import uuid4

import httpx
import pytest

from aiagent.session.v1 import session_pb2, session_service_pb2

from .conftest import PASSWORD, User, state_name
from .script import prompt, recall, say, think, use
from .watching import Watcher

pytestmark = pytest.mark.e2e


async def test_thinking_and_text_come_as_deltas(user: User):
    session_id = await user.create()
    turn = await user.send(session_id, prompt(think("Let me think about it.", "Here is what I think. 🐘")))
    watcher = Watcher(user, session_id)
    assert await watcher.follow()
    assert state_name(await user.wait(session_id, turn.id)) == "SUCCEEDED"
    assert set(watcher.texts.values()) == {"Let me think about it.", "Here is what I think. 🐘"}
    assert watcher.kinds()[-2:] == ["turn_ended", "session_state_changed"]


async def test_tools_run_and_every_event_is_kept(user: User):
    session_id = await user.create()
    turn = await user.send(
        session_id,
        prompt(
            use("Write", "First the file.", file_path="notes/hello.txt", content="hello from the agent\n"),
            use("Bash", command="cat notes/hello.txt"),
            use("Read", file_path="notes/hello.txt"),
            use("Edit", file_path="notes/hello.txt", old_string="hello", new_string="goodbye"),
            say("Done: the file says goodbye."),
        ),
    )
    watcher = Watcher(user, session_id)
    assert await watcher.follow()
    ended = await user.wait(session_id, turn.id)
    assert state_name(ended) == "SUCCEEDED", ended
    assert ended.result.text == "Done: the file says goodbye."
    assert ended.tool_calls == 4
    assert ended.usage.output_tokens > 0

    calls = (
        await user.call(
            user.sessions.ListToolCalls, session_service_pb2.ListToolCallsRequest(session_id=session_id)
        )
    ).tool_calls
    assert [call.tool_use.tool_name for call in calls] == ["Write", "Bash", "Read", "Edit"]
    assert all(call.state == session_pb2.ToolCall.SUCCEEDED for call in calls), calls
    assert "hello from the agent" in calls[1].result.content.text

    # What the watcher saw is what the log holds, and a watcher that joins now sees the same.
    assert [event.sequence for event in await user.events(session_id)] == [
        event.sequence for event in watcher.events
    ]
    late = Watcher(user, session_id)
    assert await late.follow()
    assert late.events == watcher.events

    # The next message knows the conversation.
    again = await user.run(session_id, prompt(recall("hello from the agent")))
    assert "hello from the agent" in again.result.text


async def test_by_json(suite):
    email = f"j{uuid4().hex[:12]}@example.com"
    async with httpx.AsyncClient(base_url=suite.base_url, timeout=60, trust_env=False) as http:
        registered = await http.post(
            "/api/v1/auth/register",
            json={"email": email, "username": email.split("@")[0], "password": PASSWORD, "full_name": "J"},
        )
        assert registered.status_code == 200, registered.text
        assert registered.json()["role"] == "USER"
        login = (await http.post("/api/v1/auth/login", json={"email": email, "password": PASSWORD})).json()
        assert login["token_type"] == "bearer"
        assert login["expires_in"] == 3600
        http.headers["authorization"] = f"Bearer {login['access_token']}"
        assert (await http.get("/api/v1/auth/me")).json()["email"] == email

        created = (
            await http.post(
                "/api/v1/sessions",
                json={
                    "name": "by hand",
                    "mode": "interactive",
                    "sdk_options": {
                        "permission_mode": "bypass_permissions",
                        "allowed_tools": ["Bash"],
                    },
                },
            )
        ).json()
        assert (created["name"], created["mode"], created["state"]) == (
            "by hand",
            "INTERACTIVE",
            "CREATED",
        )
        session = f"/api/v1/sessions/{created['id']}"
        answer = await http.post(
            f"{session}/query",
            json={"message": prompt(use("Bash", command="echo from bash"), say("It said so."))},
        )
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert (body["turn"]["state"], body["content"]) == ("SUCCEEDED", "It said so.")
        assert body["tool_calls"][0]["tool_use"]["tool_name"] == "Bash"
        assert "from bash" in body["tool_calls"][0]["result"]["content"]["text"]
        assert int(body["metrics"]["output_tokens"]) > 0

        messages = (await http.get(f"{session}/messages")).json()["messages"]
        assert [message["role"] for message in messages] == ["USER", "ASSISTANT"]
        calls = (await http.get(f"{session}/tool-calls")).json()["tool_calls"]
        assert len(calls) == 1
        listed = (await http.get("/api/v1/sessions", params={"states": "active"})).json()["sessions"]
        assert [item["id"] for item in listed] == [created["id"]]
        async with http.stream("GET", f"{session}/watch", params={"until_idle": "true"}) as stream:
            lines = [line async for line in stream.aiter_lines() if line]
        assert lines
        assert (await http.delete(session)).status_code == 200
        assert (await http.get(session)).status_code == 404


@pytest.mark.parametrize("text_mode", [False, True])
async def test_by_grpc_web(suite, user: User, text_mode):
    session_id = await user.create()
    await user.run(session_id, prompt(say("Hello, browser.")))
    request = session_service_pb2.WatchSessionRequest(
        session_id=session_id, until_idle=True
    ).SerializeToString()
    frame = b"\x00" + struct.pack(">I", len(request)) + request
    kind = "application/grpc-web-text" if text_mode else "application/grpc-web+proto"
    async with user.http() as http:
        answer = await http.post(
            "/aiagent.session.v1.SessionService/WatchSession",
            content=base64.b64encode(frame) if text_mode else frame,
            headers={"content-type": kind, "accept": kind, "x-grpc-web": "1"},
        )
    assert answer.status_code == 200
    body = _decode_text(answer.content) if text_mode else answer.content
    events, trailers = [], ""
    while body:
        flag, length = body[0], struct.unpack(">I", body[1:5])[0]
        payload, body = body[5 : 5 + length], body[5 + length :]
        if flag & 0x80:
            trailers = payload.decode()
        else:
            response = session_service_pb2.WatchSessionResponse.FromString(payload)
            events += [item.event for item in response.items if item.HasField("event")]
    assert "grpc-status:0" in trailers.replace(" ", "")
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events == await user.events(session_id)


def _decode_text(content: bytes) -> bytes:
    # Each frame is encoded by itself: padding may stand in the middle.
    out, chunk = b"", b""
    for index in range(0, len(content), 4):
        chunk = content[index : index + 4]
        out += base64.b64decode(chunk)
    return out


async def test_two_users_do_not_see_each_other(user: User, stranger: User):
    session_id = await user.create()
    await user.run(session_id, prompt(say("mine")))
    async with stranger.http() as http:
        for path in ("", "/messages", "/events", "/tool-calls", "/turns", "/watch", "/workdir/download"):
            answer = await http.get(f"/api/v1/sessions/{session_id}{path}")
            assert answer.status_code == 404, (path, answer.text)
        answer = await http.post(f"/api/v1/sessions/{session_id}/query", json={"message": "hi"})
        assert answer.status_code == 404
        assert (await http.get("/api/v1/sessions")).json()["sessions"] == []


async def test_answers_name_the_defaults(user: User):
    async with user.http() as http:
        made = (await http.post("/api/v1/sessions", json={"name": "plain"})).json()
        listed = (await http.get("/api/v1/sessions")).json()["sessions"][0]
    for session in (made, listed):
        assert (session["mode"], session["sdk_options"]["permission_mode"]) == ("INTERACTIVE", "DEFAULT")
