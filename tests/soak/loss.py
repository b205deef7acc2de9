"""A session replica is killed, and kept dead, while many streams are open: all go on at the other one, without loss."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
from contextlib import suppress

from deploy.local.services import Serving
from tests.e2e.conftest import User, state_name
from tests.e2e.script import prompt, say
from tests.running_suite import RunningSuite

from .holdings import supervised
from .outcome import Outcome, somebody
from .watching import Stream, streams

TOKENS_PER_SECOND = 10.0
RESUME_SECONDS = 15.0
"""The longest silence: a lease of 5 s runs out, a sweep of each second takes the turn over."""
GOES_ON_CHARACTERS = 100
"""Two seconds of speech."""
TURN_SECONDS = 180


async def run(suite: RunningSuite, *, watchers: int, voices: int, kills: int, words: int) -> Outcome:
    """Runs it.

    Args:
        suite: In processes, with two session replicas.
        watchers: How many streams are open.
        voices: Sessions that speak.
        kills: How often a replica is killed, one and the other in turn.
        words: What each session says for each kill.
    """
    outcome = Outcome(f"{kills} times one of two session replicas killed under {watchers} streams")
    resumed: list[float] = []
    cut = 0
    async with somebody(suite) as user:
        for number in range(kills):
            victim = f"session-{number % 2 + 1}"
            times, cuts = await _once(suite, user, outcome, victim, watchers, voices, words)
            resumed += times
            cut += cuts
    outcome.figures |= {
        "streams": watchers * kills,
        "streams that were cut": cut,
        "longest wait of a stream after the death, median, s": round(statistics.median(resumed), 2),
        "longest wait of any stream, s": round(max(resumed), 2),
    }
    outcome.must(cut > 0, "no stream was cut: the victim served none")
    outcome.must(max(resumed) <= RESUME_SECONDS, f"a stream got nothing for {max(resumed):.1f} s")
    return outcome


async def _once(
    suite: RunningSuite, user: User, outcome: Outcome, victim: str, watchers: int, voices: int, words: int
) -> tuple[list[float], int]:
    await _serving(suite)
    speaking = [await user.create() for _ in range(voices)]
    text = prompt(say("word " * words, tokens_per_second=TOKENS_PER_SECOND))
    turns = [await user.send(session_id, text) for session_id in speaking]
    async with (
        streams(user, suite.grpc_target, speaking, watchers) as opened,
        asyncio.TaskGroup() as group,
    ):
        following = [group.create_task(stream.stay()) for stream in opened]
        async with asyncio.timeout(TURN_SECONDS):
            while not all(stream.deltas for stream in opened):
                await asyncio.sleep(0.05)
        for stream in opened:
            stream.reset()
        dead = group.create_task(_keep_dead(suite, victim))
        await asyncio.gather(*(_goes_on(stream) for stream in opened))
        dead.cancel()
        waits = [stream.longest for stream in opened]
        async with asyncio.timeout(TURN_SECONDS):
            await asyncio.gather(*following)
    for session_id, turn in zip(speaking, turns, strict=True):
        ended = await user.wait(session_id, turn.id, TURN_SECONDS)
        outcome.must(state_name(ended) == "SUCCEEDED", f"a turn is {state_name(ended)}")
        log = await user.events(session_id)
        lost = sum(stream.events != log for stream in opened if stream.session_id == session_id)
        outcome.must(not lost, f"{lost} streams did not see the log as it is")
    return waits, sum(stream.cuts > 0 for stream in opened)


async def _goes_on(stream: Stream) -> None:
    """Waits until the stream has got as much again as nothing that was still on its way can be."""
    known = stream.heard
    async with asyncio.timeout(TURN_SECONDS):
        while stream.heard < known + GOES_ON_CHARACTERS:
            await asyncio.sleep(0.05)


async def _serving(suite: RunningSuite) -> None:
    note = json.loads((suite.state_dir / "run" / "suite.json").read_text(encoding="utf-8"))
    async with asyncio.timeout(TURN_SECONDS):
        for name, target in note["replicas"].items():
            while name.startswith("session-") and not await Serving(target)():
                await asyncio.sleep(0.1)


async def _keep_dead(suite: RunningSuite, name: str) -> None:
    while True:
        pid = supervised(suite).get(name)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.05)
