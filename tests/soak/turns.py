"""Many turns in a row, in one session and across sessions: nothing that a service holds may grow with them."""

from __future__ import annotations

import asyncio

from tests.e2e.conftest import User, state_name
from tests.e2e.script import prompt, say, use
from tests.e2e.watching import Watcher
from tests.running_suite import RunningSuite

from .holdings import Look, judge, look
from .outcome import Outcome, somebody

TURN_SECONDS = 120


async def run(
    suite: RunningSuite, *, turns: int, sessions: int, warm_up: int, looks: int, memory: bool
) -> Outcome:
    """Runs it.

    Args:
        suite: In processes, with two session replicas.
        turns: So many in one session, and as many again across others.
        sessions: Those others.
        warm_up: Turns of either kind before the first look.
        looks: How many.
        memory: Whether there are turns enough to judge memory by.
    """
    outcome = Outcome(f"{turns} turns in one session and {turns} across {sessions}")
    loop = asyncio.get_running_loop()
    async with somebody(suite) as user:
        for name, count in (("one session", 1), ("across sessions", sessions)):
            watchers = [Watcher(user, await user.create()) for _ in range(count)]
            for number in range(warm_up):
                await _turn(user, watchers[number % count], outcome)
            seen = [Look(0, await look(suite))]
            begun = loop.time()
            for number in range(turns):
                await _turn(user, watchers[number % count], outcome)
                if (number + 1) % max(1, turns // looks) == 0:
                    seen.append(Look(number + 1, await look(suite)))
            outcome.figures[f"{name}: seconds a turn, looks included"] = round(
                (loop.time() - begun) / turns, 3
            )
            judge(outcome, name, seen, memory=memory)
    return outcome


async def _turn(user: User, watcher: Watcher, outcome: Outcome) -> None:
    """One turn with a tool, watched from its beginning to its end."""
    session_id = watcher.session_id
    turn = await user.send(session_id, prompt(use("Bash", command="true"), say("all is well")))
    async with asyncio.timeout(TURN_SECONDS):
        await watcher.follow()
    ended = await user.wait(session_id, turn.id, TURN_SECONDS)
    outcome.must(state_name(ended) == "SUCCEEDED", f"a turn is {state_name(ended)}: {ended.failure.reason}")
