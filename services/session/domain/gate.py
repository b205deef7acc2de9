"""The gate of one watcher: whatever arrives, from whichever source, leaves gapless, in order, and once.

Durable events pass by their sequence: `last + 1` passes, lower is dropped, higher says that the database must be read.
Deltas are previews of open blocks. They are joined by their offset in code points: overlap is cut, a gap waits for the
text so far, and before the event that completes a block its missing rest goes out as a delta. So the deltas of a block,
joined, are always the text of its message.

Pure: no waiting, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from uuid import UUID


class BlockKey(NamedTuple):
    """A block: of which turn, in which attempt, and its number there."""

    turn_id: UUID
    attempt: int
    block: int


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an open block.

    Attributes:
        key: The block.
        offset: Where it begins in the block's text, in code points.
        text: The piece.
        thinking: Whether the block is thinking.
        after_sequence: The last event the driver had written when it was published.
    """

    key: BlockKey
    offset: int
    text: str
    thinking: bool
    after_sequence: int = 0

    @property
    def size_bytes(self) -> int:
        """The size of the piece in UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())

    def split(self, most: int) -> Iterator[Delta]:
        """The piece as pieces of at most so many code points."""
        for begin in range(0, len(self.text), most):
            yield replace(self, offset=self.offset + begin, text=self.text[begin : begin + most])


@dataclass(frozen=True, slots=True)
class GateEvent:
    """A durable event, as far as the gate needs to know it.

    Attributes:
        sequence: Its place in the log.
        item: What is sent for it.
        size_bytes: How large that is.
        completes: The block that it completes, if it is a message of the agent itself.
        text: That block's text, as far as the event holds it.
        thinking: Whether that block is thinking.
        content_id: Where the whole of that text lies, when the event holds only its beginning.
        content_bytes: Then its size in bytes of UTF-8.
        begins_attempt: The turn and the number of an attempt that it begins.
        ends_turn: The turn that it ends.
        asks_in_turn: The turn in which it asks a person.
    """

    sequence: int
    item: object
    size_bytes: int = 0
    completes: BlockKey | None = None
    text: str = ""
    thinking: bool = False
    content_id: UUID | None = None
    content_bytes: int = 0
    begins_attempt: tuple[UUID, int] | None = None
    ends_turn: UUID | None = None
    asks_in_turn: UUID | None = None


class NeedRead(Exception):
    """Events are missing: read the database after `Gate.sequence`, then offer this again."""


class NeedBlock(Exception):
    """A piece is missing: offer the block's text so far."""


@dataclass(slots=True)
class Gate:
    """Where a watcher stands.

    Attributes:
        sequence: The last event that passed.
        key: The block that is open for this watcher, if any.
        offset: How much of its text has passed, in code points.
    """

    sequence: int = 0
    key: BlockKey | None = None
    offset: int = 0
    _completed: dict[tuple[UUID, int], int] = field(default_factory=dict)
    _attempt: tuple[UUID, int] | None = None
    _attempt_sequence: int = 0
    _ended: set[UUID] = field(default_factory=set)

    def event(self, event: GateEvent) -> list[Delta | GateEvent]:
        """Offers an event; returns what goes out.

        Raises:
            NeedRead: There are events before it that have not passed.
        """
        if event.sequence <= self.sequence:
            return []
        if event.sequence > self.sequence + 1:
            raise NeedRead
        out: list[Delta | GateEvent] = []
        if event.completes is not None:
            passed = self.offset if event.completes == self.key else 0
            rest = event.text[passed:]
            if rest:
                out.append(Delta(event.completes, passed, rest, event.thinking))
        self.observe(event)
        out.append(event)
        return out

    def observe(self, event: GateEvent) -> None:
        """Takes note of an event without sending it: one that passed before this gate was made, or just now.

        Those of before may be told late, when something makes them matter, but each of them.
        """
        self.sequence = max(self.sequence, event.sequence)
        if event.completes is not None:
            of, block = event.completes[:2], event.completes.block
            self._completed[of] = max(self._completed.get(of, 0), block)
            if self.key is not None and self.key[:2] == of and self.key.block <= block:
                self.key, self.offset = None, 0
        if event.begins_attempt is not None:
            if event.sequence >= self._attempt_sequence:
                self._attempt, self._attempt_sequence = event.begins_attempt, event.sequence
            turn_id, attempt = event.begins_attempt
            # Of an older turn or attempt it tells nothing of the open block: that came after it.
            if self.key is not None and self.key.turn_id == turn_id and self.key.attempt < attempt:
                self.key, self.offset = None, 0
        if event.ends_turn is not None:
            self._ended.add(event.ends_turn)
            self._completed = {
                key: block for key, block in self._completed.items() if key[0] != event.ends_turn
            }
            if self.key is not None and self.key.turn_id == event.ends_turn:
                self.key, self.offset = None, 0

    def delta(self, delta: Delta) -> list[Delta | GateEvent]:
        """Offers a piece of a block; returns what goes out of it.

        Raises:
            NeedRead: It was published after events that have not passed.
            NeedBlock: It does not join what has passed: a piece before it is missing.
        """
        if delta.after_sequence > self.sequence:
            raise NeedRead
        if self._stale(delta.key):
            return []
        passed = self.offset if delta.key == self.key else 0
        if delta.offset > passed:
            raise NeedBlock
        rest = delta.text[passed - delta.offset :]
        if not rest:
            return []
        self.key, self.offset = delta.key, passed + len(rest)
        return [Delta(delta.key, passed, rest, delta.thinking)]

    def _stale(self, key: BlockKey) -> bool:
        """Whether a block is over: completed, of an earlier attempt, or of a turn that has ended."""
        if key.turn_id in self._ended or key.block <= self._completed.get((key.turn_id, key.attempt), 0):
            return True
        if self._attempt is not None and self._attempt[0] == key.turn_id and key.attempt < self._attempt[1]:
            return True
        return self.key is not None and self.key[:2] == key[:2] and key.block < self.key.block
