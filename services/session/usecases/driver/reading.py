"""Reads an attempt's items ahead: what comes while a transaction commits goes into the next one, all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from services.session.domain.turn_items import (
    BlockCompleted,
    BlockDelta,
    DecisionNeeded,
    Noticed,
    ToolEnded,
    ToolUsed,
    TurnItem,
)

AHEAD_ITEMS = 256
"""So many items are read ahead at most, for a transaction holds the session's lock for all of them."""
AHEAD_CHARACTERS = 1024 * 1024
"""The same for their texts; what is in one batch of the stream is never divided."""


async def read_ahead(stream: AsyncGenerator[Sequence[TurnItem]]) -> AsyncGenerator[Sequence[TurnItem]]:
    """Yields what has come since the last time, in order, and reads on meanwhile. To be closed.

    A busy attempt is applied in few large transactions, as PostgreSQL commits those of a busy table in groups; a quiet
    one item by item, each as soon as it comes.

    Args:
        stream: The batches as they come, an empty one too; its error is raised after everything that came before it. It
            is closed with what this yields.
    """
    batches: list[Sequence[TurnItem]] = []
    size = items = 0
    arrived, room = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        nonlocal size, items
        try:
            async with aclosing(stream):
                async for batch in stream:
                    batches.append(batch)
                    items += len(batch)
                    size += sum(map(_characters, batch))
                    arrived.set()
                    if items >= AHEAD_ITEMS or size >= AHEAD_CHARACTERS:
                        room.clear()
                        await room.wait()
        finally:
            arrived.set()

    reader = asyncio.create_task(read())
    try:
        while True:
            await arrived.wait()
            if not batches:
                break
            taken, batches[:] = [item for batch in batches for item in batch], []
            size = items = 0
            room.set()
            if not reader.done():
                arrived.clear()
            yield taken
        await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


def _characters(item: TurnItem) -> int:
    match item:
        case BlockDelta() | BlockCompleted() | ToolEnded():
            return len(item.text)
        case ToolUsed() | DecisionNeeded():
            return len(item.tool_use.input_json)
        case Noticed():
            return len(item.message)
        case _:
            return 0
