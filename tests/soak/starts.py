"""Agents are started, one after the other as fast as the executor lets them, while many streams are open.

A process that forks while gRPC's threads hold locks can stand still for good (grpc#22624, grpc#17986). So everything
runs in one process here, the streams of the sessions and the starts of the agents, and no stream may wait for long.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence

from aiagent.session.v1 import session_service_pb2 as pb
from tests.e2e.conftest import User, state_name
from tests.e2e.script import prompt, say
from tests.running_suite import RunningSuite

from .holdings import Look, judge, look
from .outcome import Outcome, somebody
from .watching import Stream, streams

TOKENS_PER_SECOND = 2.0
WORDS = "word " * 4000
AT_ONCE = 3
"""More than the executor starts at once: so that there is always one that waits."""
WAIT_SECONDS = 10.0
"""A stream that gets twice a second has to get something within this time, whatever the machine does besides."""
TURN_SECONDS = 120


async def run(suite: RunningSuite, *, starts: int, watchers: int, voices: int) -> Outcome:
    """Runs it.

    Args:
        suite: In one process.
        starts: How many agents are started.
        watchers: How many streams are open meanwhile.
        voices: Sessions that speak all the time, for the streams to hear.
    """
    outcome = Outcome(f"{starts} starts of agents beside {watchers} streams, in one process")
    loop = asyncio.get_running_loop()
    async with somebody(suite) as user:
        speaking = [await user.create() for _ in range(voices)]
        turns = [
            await user.send(session_id, prompt(say(WORDS, tokens_per_second=TOKENS_PER_SECOND)))
            for session_id in speaking
        ]
        async with (
            streams(user, suite.grpc_target, speaking, watchers) as opened,
            asyncio.TaskGroup() as group,
        ):
            following = [group.create_task(stream.stay()) for stream in opened]
            async with asyncio.timeout(TURN_SECONDS):
                await asyncio.gather(*(stream.ready.wait() for stream in opened))
                await asyncio.gather(*(_heard(stream) for stream in opened))
            await _start_all(user, max(AT_ONCE, starts // 10), outcome)
            seen = [Look(0, await look(suite))]
            for stream in opened:
                stream.reset()
            before = sum(stream.deltas for stream in opened)
            begun = loop.time()
            took = await _start_all(user, starts, outcome)
            seconds = loop.time() - begun
            for stream in opened:
                stream.mark()
            heard = sum(stream.deltas for stream in opened) - before
            seen.append(Look(starts, await look(suite)))
            await _silence(user, speaking, [turn.id for turn in turns])
            async with asyncio.timeout(TURN_SECONDS):
                await asyncio.gather(*following)
        waits = sorted(stream.longest for stream in opened)
        outcome.figures |= {
            "agents started": len(took),
            "seconds": round(seconds, 1),
            "agents started a second": round(len(took) / seconds, 2),
            "first message to the end of its turn, median, s": round(statistics.median(took), 2),
            "the same, longest, s": round(max(took), 2),
            "streams": len(opened),
            "pieces of text received by the streams meanwhile": heard,
            "longest wait of a stream, median, s": round(statistics.median(waits), 2),
            "longest wait of any stream, s": round(waits[-1], 2),
            "streams that were cut": sum(stream.cuts > 0 for stream in opened),
        }
        outcome.must(len(took) == starts, f"{starts - len(took)} turns did not succeed")
        outcome.must(waits[-1] <= WAIT_SECONDS, f"a stream got nothing for {waits[-1]:.1f} s")
        outcome.must(not any(stream.cuts for stream in opened), "a stream was cut")
        judge(outcome, "before and after the starts", seen, memory=starts >= 100)
        for session_id in speaking:
            await _delete(user, session_id)
    return outcome


async def _heard(stream: Stream) -> None:
    async with asyncio.timeout(TURN_SECONDS):
        while not stream.deltas:
            await asyncio.sleep(0.05)


async def _start_all(user: User, starts: int, outcome: Outcome) -> list[float]:
    loop = asyncio.get_running_loop()
    left = iter(range(starts))
    took: list[float] = []

    async def some() -> None:
        for _ in left:
            session_id = await user.create()
            begun = loop.time()
            turn = await user.run(session_id, prompt(say("here")), TURN_SECONDS)
            if state_name(turn) == "SUCCEEDED":
                took.append(loop.time() - begun)
            else:
                outcome.broken.append(f"a turn is {state_name(turn)}: {turn.failure.reason}")
            await _delete(user, session_id)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some())
    return took


async def _silence(user: User, session_ids: Sequence[str], turn_ids: Sequence[str]) -> None:
    for session_id, turn_id in zip(session_ids, turn_ids, strict=True):
        await user.call(
            user.sessions.InterruptTurn, pb.InterruptTurnRequest(session_id=session_id, turn_id=turn_id)
        )


async def _delete(user: User, session_id: str) -> None:
    await user.call(user.sessions.DeleteSession, pb.DeleteSessionRequest(session_id=session_id))
