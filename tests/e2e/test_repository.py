"""Real tools on a real directory: the agent works on a copy of this repository."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from google.api import httpbody_pb2

from aiagent.session.v1 import session_pb2, session_service_pb2, workspace_service_pb2

from .conftest import User, state_name
from .script import prompt, say, use

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


def _copy_of_this_repository() -> bytes:
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name in filter(None, names.split("\0")):
            if not name.startswith("deploy/envoy/static/"):
                tar.add(ROOT / name, name, recursive=False)
    return out.getvalue()


async def test_tools_on_a_copy_of_this_repository(user: User):
    archive = _copy_of_this_repository()
    session_id = await user.create(
        "ACCEPT_EDITS", allowed_tools=["Bash(git *)", "Bash(grep:*)", "Bash(wc:*)"]
    )

    async def requests():
        size = 512 * 1024
        for begin in range(0, len(archive), size):
            yield workspace_service_pb2.UploadWorkspaceRequest(
                session_id=session_id, archive=httpbody_pb2.HttpBody(data=archive[begin : begin + size])
            )

    uploaded = await user.workspaces.UploadWorkspace(requests(), metadata=user.metadata)
    assert uploaded.file_count > 100
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    edit: dict[str, object] = {
        "file_path": "LICENSE",
        "old_string": "Apache License",
        "new_string": "APACHE LICENCE",
    }
    edit["replace_all"] = True
    turn = await user.run(
        session_id,
        prompt(
            use("Read", file_path="LICENSE", limit=5),
            use("Bash", command="wc -c LICENSE"),
            use("Edit", **edit),
            use("Write", file_path="docs/made-by-an-agent.md", content="# Made by an agent\n"),
            use("Bash", command="grep -c APACHE LICENSE"),
            say("Edited the licence and wrote a page."),
        ),
    )
    assert state_name(turn) == "SUCCEEDED", turn
    calls = (
        await user.call(
            user.sessions.ListToolCalls, session_service_pb2.ListToolCallsRequest(session_id=session_id)
        )
    ).tool_calls
    assert [call.tool_use.tool_name for call in calls] == ["Read", "Bash", "Edit", "Write", "Bash"]
    assert all(call.state == session_pb2.ToolCall.SUCCEEDED for call in calls), calls
    assert str(len(licence.encode())) in calls[1].result.content.text
    async with user.http() as http:
        packed = await http.get(f"/api/v1/sessions/{session_id}/workdir/download")
    with tarfile.open(fileobj=io.BytesIO(packed.content)) as tar:
        edited = tar.extractfile("LICENSE")
        page = tar.extractfile("docs/made-by-an-agent.md")
        readme = tar.extractfile("README.md")
        assert edited is not None
        assert page is not None
        assert readme is not None
        assert edited.read().decode() == licence.replace("Apache License", "APACHE LICENCE")
        assert page.read() == b"# Made by an agent\n"
        assert readme.read() == (ROOT / "README.md").read_bytes()
