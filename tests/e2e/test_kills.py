"""What may die, dies: the CLI, the whole suite, Valkey. Nothing accepted is lost, nothing is left over."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import psutil
import pytest
import pytest_asyncio

from tests.running_suite import RunningSuite

from .conftest import OPTIONS, User, state_name
from .script import prompt, recall, say, use
from .watching import Watcher

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

LONG = "word " * 400


@pytest_asyncio.fixture
async def own_suite() -> AsyncIterator[RunningSuite]:
    """A suite of the test's own, to be killed."""
    directory = Path(tempfile.mkdtemp(prefix="aiagent-killed-"))
    suite = RunningSuite(directory / "state")
    await suite.start()
    yield suite
    await suite.stop()
    shutil.rmtree(directory, ignore_errors=True)


async def _user(suite: RunningSuite) -> User:
    user = User(suite.base_url, grpc.aio.insecure_channel(suite.grpc_target, options=OPTIONS))
    await user.sign_up()
    return user


def _of_the_suite(suite: RunningSuite) -> list[psutil.Process]:
    """Every process on the machine that has to do with the suite's directory."""
    mark = str(suite.state_dir.parent)
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if any(mark in part for part in command) and process.pid != os.getpid():
            found.append(process)
    return found


async def _said(user: User, session_id: str, words: int) -> None:
    """Waits until the agent has said something."""
    watcher = Watcher(user, session_id)
    while sum(len(text.split()) for text in watcher.texts.values()) < words:
        await watcher.follow(responses=1)


async def _cli_of(suite: RunningSuite, session_id: str) -> list[psutil.Process]:
    return [
        process for process in _of_the_suite(suite) if any(session_id in part for part in process.cmdline())
    ]


async def test_a_killed_cli_fails_or_retries_its_turn_and_the_next_message_works(own_suite: RunningSuite):
    user = await _user(own_suite)
    session_id = await user.create()
    await user.run(session_id, prompt(say("Remember the pomegranate.")))
    # Whether the killed call reached the transcript is the CLI's luck: if it did not, the model asks for it once more.
    once = "test -e begun && exit; touch begun; sleep 60"
    turn = await user.send(session_id, prompt(use("Bash", command=once, text=""), say("done")))
    watcher = Watcher(user, session_id)
    while "tool_decision" not in watcher.kinds():
        await watcher.follow(responses=1)
    begun = own_suite.state_dir / "workspaces" / session_id / "begun"
    async with asyncio.timeout(10):
        while not begun.exists():
            await asyncio.sleep(0.02)
    for process in await _cli_of(own_suite, session_id):
        process.send_signal(signal.SIGKILL)

    async def told() -> str:
        while True:
            await watcher.follow(responses=1)
            for event in watcher.events:
                if event.payload.HasField("notice") and event.payload.notice.code == "ATTEMPT_LOST":
                    return str(event.payload.notice.message)
                if event.payload.HasField("turn_ended") and event.turn_id == turn.id:
                    return str(event.payload.turn_ended.failure.reason)

    assert await asyncio.wait_for(told(), 5.0)
    assert state_name(await user.wait(session_id, turn.id, 30)) in ("SUCCEEDED", "FAILED")
    again = await user.run(session_id, prompt(recall("pomegranate")))
    assert "pomegranate" in again.result.text


async def test_the_whole_suite_killed_in_mid_turn(own_suite: RunningSuite):
    user = await _user(own_suite)
    session_id = await user.create()
    await user.run(session_id, prompt(say("Remember the pomegranate.")))
    turn = await user.send(
        session_id, prompt(use("Bash", command="echo begun > begun.txt"), say(LONG, tokens_per_second=40))
    )
    await _said(user, session_id, 5)
    before = await user.events(session_id)
    processes = own_suite.processes()
    await own_suite.kill9()
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, 5)
    assert not alive, [process.cmdline() for process in alive]
    assert not _of_the_suite(own_suite)

    await own_suite.start()
    user.channel = grpc.aio.insecure_channel(own_suite.grpc_target, options=OPTIONS)
    after = await user.events(session_id)
    assert after[: len(before)] == before
    ended = await user.wait(session_id, turn.id, 60)
    assert state_name(ended) in ("SUCCEEDED", "FAILED")
    watcher = Watcher(user, session_id)
    assert await watcher.follow()
    assert watcher.events == await user.events(session_id)
    again = await user.run(session_id, prompt(recall("pomegranate")))
    assert "pomegranate" in again.result.text


async def test_a_question_outlives_the_suite(own_suite: RunningSuite):
    user = await _user(own_suite)
    session_id = await user.create("DEFAULT")
    # Whether the CLI keeps the call that was open counts as a step or not.
    turn = await user.send(
        session_id, prompt(use("Bash", command="echo once >> ran.txt"), say("ok"), say("ok"))
    )
    request = await user.asked(session_id, turn.id)
    # What the CLI still notes of an open call in its last moment is another matter, and another step of the script.
    for process in psutil.Process(own_suite.process.pid).children(recursive=True):
        if process.name() == "claude":
            process.suspend()
    await own_suite.kill9()
    await own_suite.start()
    user.channel = grpc.aio.insecure_channel(own_suite.grpc_target, options=OPTIONS)
    assert state_name(await user.wait(session_id, turn.id, 0)) == "WAITING"
    await user.answer(request, allow=True)
    # The model is told and asks for the same call, which uses the answer: it runs, and once.
    assert state_name(await user.wait(session_id, turn.id, 60)) == "SUCCEEDED"
    ran = own_suite.state_dir / "workspaces" / session_id / "ran.txt"
    assert ran.read_text(encoding="utf-8") == "once\n"
    decisions = [
        event.payload.tool_decision.permission_request_id
        for event in await user.events(session_id)
        if event.payload.HasField("tool_decision")
    ]
    assert decisions == [request.id]


async def test_valkey_gone_changes_nothing_but_the_pace(own_suite: RunningSuite):
    user = await _user(own_suite)
    session_id = await user.create()
    watcher = Watcher(user, session_id)
    turn = await user.send(session_id, prompt(say(LONG, tokens_per_second=100)))
    await _said(user, session_id, 5)
    for process in own_suite.processes():
        if "valkey" in process.name():
            process.kill()
    assert await watcher.follow()
    assert state_name(await user.wait(session_id, turn.id)) == "SUCCEEDED"
    assert watcher.events == await user.events(session_id)


async def test_a_second_start_is_refused_and_a_stop_is_clean(own_suite: RunningSuite):
    second = RunningSuite(own_suite.state_dir)
    with pytest.raises(AssertionError, match="already runs"):
        await second.start()
    assert own_suite.state_dir.stat().st_mode & 0o777 == 0o700
    user = await _user(own_suite)
    session_id = await user.create()
    await user.run(session_id, prompt(say("hello")))
    assert await own_suite.stop() == 0
    assert not _of_the_suite(own_suite)
    await own_suite.start()
    user.channel = grpc.aio.insecure_channel(own_suite.grpc_target, options=OPTIONS)
    assert (await user.run(session_id, prompt(recall("hello")))).result.text == "I remember: hello"
