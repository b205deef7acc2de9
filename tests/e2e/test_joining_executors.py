"""An executor is added to a suite that runs, and taken away again: nothing else is started anew, no turn is lost."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import psutil
import pytest
import pytest_asyncio

from tests.running_suite import ROOT, RunningSuite

from .conftest import OPTIONS, User, state_name
from .script import prompt, recall, say, use

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

JOIN_SECONDS = 60


@pytest_asyncio.fixture(scope="module")
async def small_suite() -> AsyncIterator[RunningSuite]:
    """A suite whose only executor has room for one agent."""
    directory = Path(tempfile.mkdtemp(prefix="aiagent-joining-"))
    suite = RunningSuite(
        directory / "state",
        arguments=["--processes", "--replicas", "session=2", "--executors", "1"],
        environment={"AIAGENT_EXECUTOR_MAX_LIVE_CLIENTS": "1"},
    )
    await suite.start()
    yield suite
    await suite.stop()
    shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def joined(suite: RunningSuite) -> AsyncIterator[asyncio.subprocess.Process]:
    """One more executor, as the guide says, from "takes turns" on."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.local", "executor"),
        cwd=ROOT,
        env=suite.environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        first = await asyncio.wait_for(process.stdout.readline(), JOIN_SECONDS)
        assert first.startswith(b"executor-2 takes turns"), first + suite.logs().encode()
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await process.wait()


async def _somebody(suite: RunningSuite) -> User:
    user = User(suite.base_url, grpc.aio.insecure_channel(suite.grpc_target, options=OPTIONS))
    await user.sign_up()
    return user


async def _executor(user: User, session_id: str, turn_id: str) -> str:
    """The executor of a turn's newest attempt; empty before there is one."""
    return next(
        (
            event.payload.attempt_started.executor_id
            for event in reversed(await user.events(session_id))
            if event.turn_id == turn_id and event.payload.WhichOneof("kind") == "attempt_started"
        ),
        "",
    )


async def _runs_on(user: User, session_id: str, turn_id: str, executor_id: str) -> None:
    async with asyncio.timeout(60):
        while await _executor(user, session_id, turn_id) != executor_id:
            await asyncio.sleep(0.05)


async def _serving(suite: RunningSuite) -> list[str]:
    """What `status` says of them."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.local", "status"),
        env=suite.environment,
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate()
    return [line.split()[0] for line in told.decode().splitlines() if line.endswith(" serving")]


def _lives(process: psutil.Process) -> bool:
    """Whether a process still runs; one that is only left to be collected by the machine's first process does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _processes(suite: RunningSuite) -> dict[str, str]:
    """Numbers and start times of all that the suite keeps up."""
    return {note.stem: note.read_text(encoding="utf-8") for note in (suite.state_dir / "run").glob("*.pid")}


async def test_an_executor_joins_and_leaves_a_running_suite(small_suite: RunningSuite):
    user = await _somebody(small_suite)
    before = _processes(small_suite)
    first, second, third = [await user.create() for _ in range(3)]
    blocker = await user.send(
        first, prompt(use("Bash", command="while ! test -e go; do sleep 0.1; done"), say("a"))
    )
    await _runs_on(user, first, blocker.id, "executor-1")
    waiting = await user.send(second, prompt(say("The word is pomegranate.")))
    assert state_name(await user.wait(second, waiting.id, 1)) == "QUEUED"
    async with joined(small_suite) as executor:
        # It is found by both replicas: whichever drives.
        assert state_name(await user.wait(second, waiting.id)) == "SUCCEEDED"
        assert await _executor(user, second, waiting.id) == "executor-2"
        for _ in range(3):
            session_id = await user.create()
            turn = await user.run(session_id, prompt(say("here")))
            assert (state_name(turn), await _executor(user, session_id, turn.id)) == (
                "SUCCEEDED",
                "executor-2",
            )
        assert "executor-2" in await _serving(small_suite)
        assert {
            name: note for name, note in _processes(small_suite).items() if name != "executor-2"
        } == before

        # A short turn may end, a long one goes on elsewhere, and nothing new comes.
        finish = "touch begun; while ! test -e go; do sleep 0.05; done"
        ending = await user.send(second, prompt(use("Bash", command=finish), say("ended in good order")))
        await _runs_on(user, second, ending.id, "executor-2")
        workspaces = small_suite.state_dir / "workspaces"
        async with asyncio.timeout(30):
            while not (workspaces / second / "begun").exists():
                await asyncio.sleep(0.02)
        family = psutil.Process(executor.pid).children(recursive=True)
        executor.send_signal(signal.SIGTERM)
        assert executor.stdout is not None
        assert await asyncio.wait_for(executor.stdout.readline(), 30) == b"stopping\n"
        later = await user.send(third, prompt(say("after it")))
        assert state_name(await user.wait(third, later.id, 1)) == "QUEUED"
        (workspaces / second / "go").touch()
        ended = await user.wait(second, ending.id)
        assert (state_name(ended), ended.attempt, ended.result.text) == (
            "SUCCEEDED",
            1,
            "ended in good order",
        )
        assert await asyncio.wait_for(executor.wait(), 30) == 0
        assert not [process for process in family if _lives(process)]
    (workspaces / first / "go").touch()
    assert state_name(await user.wait(first, blocker.id)) == "SUCCEEDED"
    assert state_name(await user.wait(third, later.id)) == "SUCCEEDED"
    # The conversation of the one that has left goes on where there is room.
    again = await user.run(second, prompt(recall("word is \\w+")))
    assert again.result.text == "I remember: word is pomegranate"
    assert _processes(small_suite) == before
    assert "executor-2" not in await _serving(small_suite)


async def test_a_turn_that_outlasts_the_drain_goes_on_elsewhere(small_suite: RunningSuite):
    user = await _somebody(small_suite)
    first, second = [await user.create() for _ in range(2)]
    command = "while ! test -e go; do sleep 0.1; done"
    blocker = await user.send(first, prompt(use("Bash", command=command), say("a")))
    await _runs_on(user, first, blocker.id, "executor-1")
    slow = {**say("done"), "delay_seconds": 9}
    async with joined(small_suite) as executor:
        turn = await user.send(second, prompt(slow, slow))
        await _runs_on(user, second, turn.id, "executor-2")
        (small_suite.state_dir / "workspaces" / first / "go").touch()
        executor.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(executor.wait(), 60) == 0
    assert state_name(await user.wait(first, blocker.id)) == "SUCCEEDED"
    assert state_name(await user.wait(second, turn.id)) == "SUCCEEDED"
    assert await _executor(user, second, turn.id) == "executor-1"
    # One that is killed leaves its name to the next.
    async with joined(small_suite) as executor:
        executor.kill()
        await executor.wait()
    async with joined(small_suite):
        pass


async def test_without_a_suite_nothing_joins(tmp_path: Path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.local", "executor"),
        cwd=ROOT,
        env=RunningSuite(tmp_path).environment,
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await process.communicate()
    assert process.returncode == 1
    assert told.startswith(b"error: no suite is ready in ")
