"""The stream under the knife: connections cut at random points lose nothing and repeat nothing."""

from __future__ import annotations

import asyncio
import random

import pytest

from .conftest import User
from .script import prompt, say, think, use
from .watching import Watcher

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

CUTS = 200
SPEECH = "The quick brown fox jumps over the lazy dog, naïve élan, 🦊 and 🐕 included. " * 6


def lively(number: int) -> str:
    """A turn with deltas and tools."""
    return (
        prompt(
            think(f"Turn {number}: what to do?", f"I begin turn {number}."),
        )
        if number % 5 == 4
        else prompt(
            use("Bash", f"Turn {number}. {SPEECH}", command=f"echo {number} >> log.txt; cat log.txt"),
            use("Write", SPEECH, file_path=f"file{number}.txt", content=str(number)),
            say(f"Turn {number} is done. {SPEECH}", tokens_per_second=400),
        )
    )


async def test_200_cuts_during_turns(user: User):
    session_id = await user.create()
    choose = random.Random(7)
    watchers = [Watcher(user, session_id) for _ in range(4)]
    sending_done = asyncio.Event()
    turns: list[str] = []

    async def send() -> None:
        number = 0
        while sum(watcher.connections for watcher in watchers) < CUTS:
            turn = await user.send(session_id, lively(number))
            turns.append(turn.id)
            await user.wait(session_id, turn.id)
            number += 1
        sending_done.set()

    async def cut(watcher: Watcher) -> None:
        while not sending_done.is_set():
            await watcher.follow(until_idle=True, responses=choose.randint(1, 12))

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        for watcher in watchers:
            group.create_task(cut(watcher))
    for watcher in watchers:
        while not await watcher.follow(until_idle=True):
            pass
    log = await user.events(session_id)
    assert sum(watcher.connections for watcher in watchers) >= CUTS
    assert sum(watcher.deltas for watcher in watchers) > CUTS
    for watcher in watchers:
        assert watcher.events == log
    assert [event.payload.WhichOneof("kind") for event in log].count("turn_ended") == len(turns)


async def test_a_watcher_that_joins_in_mid_block_gets_the_text_so_far(user: User):
    session_id = await user.create()
    first = Watcher(user, session_id)
    turn = await user.send(session_id, prompt(say(SPEECH, tokens_per_second=60)))
    while first.deltas < 5:
        await first.follow(until_idle=True, responses=1)
    so_far = max(len(text) for text in first.texts.values())
    late = Watcher(user, session_id)
    while not late.texts:
        await late.follow(until_idle=True, responses=1)
    (text,) = late.texts.values()
    assert len(text) >= so_far
    assert SPEECH.startswith(text)
    # The turn is still speaking: what came was a preview, not the message.
    assert "assistant_message" not in late.kinds()
    assert await late.follow()
    assert list(late.texts.values()) == [SPEECH] or list(late.texts.values()) == [SPEECH.strip()]
    await user.wait(session_id, turn.id)


async def test_a_client_that_disappears_does_not_stop_the_turn(user: User):
    session_id = await user.create()
    turn = await user.send(
        session_id,
        prompt(use("Bash", command="echo still here > proof.txt"), say(SPEECH, tokens_per_second=200)),
    )
    watcher = Watcher(user, session_id)
    await watcher.follow(responses=2)
    ended = await user.wait(session_id, turn.id)
    assert ended.result.text.strip() == SPEECH.strip()
