"""One attempt: its buffer of items, its questions, its driver's signs of life.

The buffer is bounded in bytes. Deltas that nobody has read yet are joined first; when that is not enough, whoever
emits waits, and with it the reading from the agent: back-pressure instead of loss.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from services.executor.domain.errors import offset_gone, tool_use_not_waiting
from services.executor.domain.items import (
    AttemptEnded,
    BlockCompleted,
    BlockDelta,
    Decision,
    DecisionNeeded,
    Item,
    Outcome,
    Spent,
    ToolResult,
    ToolUse,
)
from services.executor.domain.text import size as utf8_size
from services.executor.usecases.ports import TurnRequest
from services.kernel.clock import Clock

BUFFER_BYTES = 32 * 1024 * 1024
BATCH_BYTES = 1024 * 1024
_ITEM_OVERHEAD = 64


@dataclass(frozen=True, slots=True)
class Numbered:
    """An item with its place."""

    offset: int
    item: Item
    size: int


def _size(item: Item) -> int:
    match item:
        case BlockDelta() | BlockCompleted() | ToolResult():
            text = item.text
        case ToolUse():
            text = item.input_json
        case DecisionNeeded():
            text = item.tool_use.input_json
        case AttemptEnded():
            text = item.structured_output_json
        case _:
            text = ""
    return _ITEM_OVERHEAD + utf8_size(text)


class Attempt:
    """The state of one attempt."""

    def __init__(self, request: TurnRequest, clock: Clock, settle: Callable[[], Spent] = Spent) -> None:
        """Args: request: the turn; clock: for its times; settle: tells what the turn has spent when it ends."""
        self.request = request
        self._settle = settle
        self._clock = clock
        self._items: deque[Numbered] = deque()
        self._next = 1
        self._acknowledged = 0
        self._read = 0
        self._bytes = 0
        self._changed = asyncio.Event()
        # By the call's id and the hash of its input: a decision is for what was looked at.
        self._questions: dict[tuple[str, str], asyncio.Future[Decision]] = {}
        self._decided: dict[tuple[str, str], Decision] = {}
        self.ended = False
        self.stopping: Outcome | None = None
        self._begun = self.heard = clock.monotonic()
        self._waited = 0.0
        self._waiting_since: float | None = None

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def hear(self) -> None:
        """The driver has given a sign of life."""
        self.heard = self._clock.monotonic()

    @property
    def worked_seconds(self) -> float:
        """Time since it began, in seconds, without that spent waiting for decisions."""
        now = self._clock.monotonic()
        waiting = now - self._waiting_since if self._waiting_since is not None else 0.0
        return now - self._begun - self._waited - waiting

    async def emit(self, item: Item) -> None:
        """Takes an item; waits while the buffer is full. Nothing follows the end."""
        if self.ended:
            return
        if isinstance(item, BlockDelta) and self._join(item):
            self._notify()
            return
        if isinstance(item, AttemptEnded):
            item = replace(self._as_told(item), spent=self._settle())
        size = _size(item)
        # The end is always taken: it lets go of everything else. So is an account, which is not told again.
        waits = not isinstance(item, AttemptEnded | Spent)
        while waits and self._bytes + size > BUFFER_BYTES and self._items:
            await self._changed.wait()
            if self._over():
                return
        self._items.append(Numbered(self._next, item, size))
        self._next += 1
        self._bytes += size
        if isinstance(item, AttemptEnded):
            self.ended = True
            for question in self._questions.values():
                if not question.done():
                    question.set_result(Decision(False, "the attempt has ended"))
        self._notify()

    def _as_told(self, ended: AttemptEnded) -> AttemptEnded:
        """An agent that was stopped says interrupted, whatever for; one that was parked was denied a call by nobody."""
        if self.stopping is None or self.stopping is ended.outcome:
            return ended
        if ended.outcome is Outcome.INTERRUPTED or self.stopping is Outcome.PARKED:
            return replace(ended, outcome=self.stopping, reason="", message="")
        return ended

    def _join(self, delta: BlockDelta) -> bool:
        """Joins a delta to the one before it, if nobody has read that; it takes the later offset."""
        if not self._items or self._items[-1].offset <= self._read:
            return False
        last = self._items[-1]
        known = last.item
        if not isinstance(known, BlockDelta) or (known.block, known.thinking) != (
            delta.block,
            delta.thinking,
        ):
            return False
        if (
            known.text_offset + len(known.text) != delta.text_offset
            or last.size + utf8_size(delta.text) > BATCH_BYTES
        ):
            return False
        joined = replace(known, text=known.text + delta.text)
        added = utf8_size(delta.text)
        self._items[-1] = Numbered(self._next, joined, last.size + added)
        self._next += 1
        self._bytes += added
        return True

    async def read(self, after: int) -> AsyncIterator[list[Numbered]]:
        """Yields what follows an offset, in batches, until the end has been read.

        Raises:
            ServiceError: FAILED_PRECONDITION with OFFSET_GONE.
        """
        if after < self._acknowledged:
            raise offset_gone(self._acknowledged + 1)
        while True:
            batch: list[Numbered] = []
            size = 0
            for numbered in self._following(after):
                if batch and size + numbered.size > BATCH_BYTES:
                    break
                batch.append(numbered)
                size += numbered.size
            if batch:
                after = batch[-1].offset
                self._read = max(self._read, after)
                yield batch
                if isinstance(batch[-1].item, AttemptEnded):
                    return
                continue
            await self._changed.wait()

    def _following(self, after: int) -> list[Numbered]:
        """What follows an offset. Looked for from the end: a long text is thousands of items that nobody has
        acknowledged yet, and a reader that keeps up wants the last of them, for each token anew."""
        following: list[Numbered] = []
        for numbered in reversed(self._items):
            if numbered.offset <= after:
                break
            following.append(numbered)
        following.reverse()
        return following

    def acknowledge(self, offset: int) -> None:
        """Forgets everything up to an offset."""
        self.hear()
        self._acknowledged = max(self._acknowledged, min(offset, self._next - 1))
        while self._items and self._items[0].offset <= self._acknowledged:
            self._bytes -= self._items.popleft().size
        self._notify()

    def _over(self) -> bool:
        return self.ended

    @property
    def settled(self) -> bool:
        """Whether it has ended and all of it was acknowledged."""
        return self.ended and not self._items

    async def ask(self, tool_use: ToolUse) -> Decision:
        """Asks the driver about a tool call and waits for as long as the attempt lives.

        A decision on the same call stands; the same id with another input is another question.
        """
        key = (tool_use.tool_use_id, tool_use.input_hash)
        known = self._decided.get(key)
        if known is not None:
            return known
        if self.ended or self.stopping:
            return Decision(False, "the turn is being stopped")
        question: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        try:
            self._questions[key] = question
            self._watch_waiting()
            await self.emit(DecisionNeeded(tool_use))
            return await question
        finally:
            self._questions.pop(key, None)
            self._watch_waiting()

    def _watch_waiting(self) -> None:
        now = self._clock.monotonic()
        if self._questions and self._waiting_since is None:
            self._waiting_since = now
        elif not self._questions and self._waiting_since is not None:
            self._waited += now - self._waiting_since
            self._waiting_since = None

    def decide(self, tool_use_id: str, decision: Decision, input_hash: str = "") -> None:
        """Answers a question; the first answer counts.

        Args:
            tool_use_id: The call.
            decision: The answer.
            input_hash: Of the input that was decided on; empty for the only one that the call was asked with.

        Raises:
            ServiceError: NOT_FOUND with TOOL_USE_NOT_WAITING.
        """
        asked = {(tool_use_id, input_hash)}
        if not input_hash:
            asked = {key for key in (*self._decided, *self._questions) if key[0] == tool_use_id}
        if len(asked) != 1:
            raise tool_use_not_waiting(tool_use_id)
        key = asked.pop()
        if key in self._decided:
            return
        question = self._questions.get(key)
        if question is None or question.done():
            raise tool_use_not_waiting(tool_use_id)
        self._decided[key] = decision
        question.set_result(decision)

    def deny_all(self, reason: str) -> None:
        """Denies every question that waits: the attempt is being stopped."""
        for question in self._questions.values():
            if not question.done():
                question.set_result(Decision(False, reason))
