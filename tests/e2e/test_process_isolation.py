"""Where bubblewrap does not work: the main job goes on, what is open is said, and the state directory stays hidden."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import grpc
import pytest

from aiagent.session.v1 import session_service_pb2
from tests.running_suite import RunningSuite

from .conftest import OPTIONS, User, state_name
from .script import prompt, recall, say, use

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


async def test_agents_work_and_their_conversations_outlive_the_suite():
    directory = Path(tempfile.mkdtemp(prefix="aiagent-process-"))
    suite = RunningSuite(directory / "state", environment={"AIAGENT_ISOLATION": "process"})
    await suite.start()
    try:
        assert "agents share the machine's network" in suite.output
        user = User(suite.base_url, grpc.aio.insecure_channel(suite.grpc_target, options=OPTIONS))
        await user.sign_up()
        session_id = await user.create()
        looking = f"ls {suite.state_dir}; cat {suite.state_dir}/secrets.json; pwd"
        turn = await user.run(
            session_id,
            prompt(
                use("Write", file_path="kept.txt", content="kept", text="Remember the quince."),
                use("Bash", command=looking),
                say("done"),
            ),
        )
        assert state_name(turn) == "SUCCEEDED", turn
        calls = await user.call(
            user.sessions.ListToolCalls, session_service_pb2.ListToolCallsRequest(session_id=session_id)
        )
        [seen] = [call.result.content.text for call in calls.tool_calls if call.tool_use.tool_name == "Bash"]
        assert session_id in seen
        assert "database_superuser" not in seen
        await suite.restart()
        turn = await user.run(session_id, prompt(recall("quince"), use("Read", file_path="kept.txt")))
        messages = await user.call(
            user.sessions.ListMessages, session_service_pb2.ListMessagesRequest(session_id=session_id)
        )
        assert "I remember: quince" in [message.content.text for message in messages.messages]
    finally:
        await suite.stop()
        shutil.rmtree(directory, ignore_errors=True)
