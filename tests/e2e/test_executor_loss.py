"""An executor is killed in the middle of a turn: the conversation goes on on another one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from aiagent.session.v1 import session_service_pb2
from tests.running_suite import RunningSuite

from .conftest import OPTIONS, User, state_name
from .script import prompt, recall, say, use

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest_asyncio.fixture
async def two_executors() -> AsyncIterator[RunningSuite]:
    """A suite with two executors."""
    directory = Path(tempfile.mkdtemp(prefix="aiagent-executors-"))
    suite = RunningSuite(directory / "state", arguments=["--processes", "--executors", "2"])
    await suite.start()
    yield suite
    await suite.stop()
    shutil.rmtree(directory, ignore_errors=True)


async def _user(suite: RunningSuite) -> User:
    user = User(suite.base_url, grpc.aio.insecure_channel(suite.grpc_target, options=OPTIONS))
    await user.sign_up()
    return user


async def _attempts(user: User, session_id: str, turn_id: str) -> list[str]:
    """The executors of a turn's attempts, in order."""
    return [
        event.payload.attempt_started.executor_id
        for event in await user.events(session_id)
        if event.turn_id == turn_id and event.payload.WhichOneof("kind") == "attempt_started"
    ]


async def _has(user: User, session_id: str, turn_id: str, kind: str, times: int = 1) -> None:
    async with asyncio.timeout(30):
        while times > sum(
            event.turn_id == turn_id and event.payload.WhichOneof("kind") == kind
            for event in await user.events(session_id)
        ):
            await asyncio.sleep(0.05)


def _kill(suite: RunningSuite, executor_id: str) -> None:
    note = suite.state_dir / "run" / f"{executor_id}.pid"
    with suppress(OSError, ValueError):
        os.kill(int(note.read_text(encoding="utf-8").split()[0]), signal.SIGKILL)


async def _keep_dead(suite: RunningSuite, executor_id: str) -> None:
    while True:
        _kill(suite, executor_id)
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_turn_goes_on_on_the_other_executor(two_executors: RunningSuite, comes_back: bool):
    user = await _user(two_executors)
    session_id = await user.create()
    first = await user.run(session_id, prompt(say("The word is pomegranate.")))
    assert state_name(first) == "SUCCEEDED"
    remember = {**recall("word is \\w+"), "delay_seconds": 4}
    # The CLI reports what it has written every tenth of a second: by the end of the second call it has the first.
    calls = [use("Bash", command="echo once >> effect"), use("Bash", command="sleep 1", text="")]
    turn = await user.send(session_id, prompt(*calls, remember, remember))
    await _has(user, session_id, turn.id, "tool_result", 2)
    [killed] = await _attempts(user, session_id, turn.id)
    begun = time.monotonic()
    _kill(two_executors, killed)
    keeper = None if comes_back else asyncio.create_task(_keep_dead(two_executors, killed))
    try:
        async with asyncio.timeout(30):
            while len(await _attempts(user, session_id, turn.id)) < 2:
                await asyncio.sleep(0.05)
        recovered = time.monotonic() - begun
        ended = await user.wait(session_id, turn.id)
        print(f"another attempt after {recovered:.1f} s, ended after {time.monotonic() - begun:.1f} s")
        assert time.monotonic() - begun < 30
        assert (state_name(ended), ended.attempt) == ("SUCCEEDED", 2)
        assert ended.result.text == "I remember: word is pomegranate"
        assert (await _attempts(user, session_id, turn.id))[1] != killed
        effect = two_executors.state_dir / "workspaces" / session_id / "effect"
        assert effect.read_text(encoding="utf-8") == "once\n"
        following = await user.run(session_id, prompt(recall("echo once")))
        assert following.result.text == "I remember: echo once"
        # Two calls were answered before the kill, and told; the conversation has cost what its turns have.
        assert ended.model_calls >= 3
        session = await user.call(
            user.sessions.GetSession, session_service_pb2.GetSessionRequest(session_id=session_id)
        )
        costs = [turn.cost_usd for turn in (first, ended, following)]
        assert 0 < costs[0] < costs[1] > costs[2] > 0
        assert session.counters.cost_usd == pytest.approx(sum(costs))
    finally:
        if keeper is not None:
            keeper.cancel()


async def test_executors_are_found_and_forget_what_is_deleted(two_executors: RunningSuite):
    user = await _user(two_executors)
    sessions = [await user.create() for _ in range(2)]
    turns = []
    for session_id in sessions:
        turns.append(await user.send(session_id, prompt({"delay_seconds": 5, "text": "x"})))
        # By then the executor counts its agent as busy.
        await _has(user, session_id, turns[-1].id, "turn_state_changed", 3)
    for session_id, turn in zip(sessions, turns, strict=True):
        assert state_name(await user.wait(session_id, turn.id)) == "SUCCEEDED"
    # The least loaded one takes the second, and each has homes of its own.
    homes = list((two_executors.state_dir / "executors").glob("*/agents/*"))
    assert {home.name for home in homes} == set(sessions)
    assert {home.parents[1].name for home in homes} == {"executor-1", "executor-2"}
    names = json.loads((two_executors.state_dir / "run" / "suite.json").read_text(encoding="utf-8"))
    assert {"executor-1", "executor-2"} <= set(names["replicas"])
    for session_id in sessions:
        await user.call(
            user.sessions.DeleteSession, session_service_pb2.DeleteSessionRequest(session_id=session_id)
        )
    async with asyncio.timeout(20):
        while list((two_executors.state_dir / "executors").glob("*/agents/*")):
            await asyncio.sleep(0.1)
