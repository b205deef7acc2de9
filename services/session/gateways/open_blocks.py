"""The blocks that are open in the sessions driven here, with their text so far, for watchers who join in mid-block."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

from aiagent.session.v1 import session_service_pb2
from services.session.domain.gate import BlockKey, Delta, GateEvent
from services.session.gateways.feed_codec import delta_item, read_delta

BLOCK_SECONDS = 120
"""How long a block is kept that nobody adds to: its driver has lost the session, or the model takes very long."""
SNAPSHOT_SECONDS = 0.1
"""Between two copies for other replicas, while the text grows."""


@dataclass(slots=True)
class _OpenBlock:
    """A block from the piece on with which this replica began: `begin` is 0 unless it took over in mid-block."""

    key: BlockKey
    thinking: bool
    after_sequence: int
    begin: int = 0
    text: str = ""
    changed: float = 0.0
    stored: float = 0.0

    def so_far(self) -> Delta:
        return Delta(self.key, 0, self.text, self.thinking, self.after_sequence)


class OpenBlocks:
    """The open blocks that this replica has published pieces of, one for each session at most."""

    def __init__(self) -> None:
        """There are none yet."""
        self._blocks: dict[UUID, _OpenBlock] = {}

    def add(self, session_id: UUID, delta: Delta) -> bytes | None:
        """Adds a piece; returns a snapshot when one is due.

        Whoever took over in mid-block and was not given what came before has none to store before it is filled in: it
        must not replace what its predecessor has left for those who join.
        """
        block = self._blocks.get(session_id)
        if block is None or block.key != delta.key:
            block = _OpenBlock(delta.key, delta.thinking, delta.after_sequence, delta.offset)
            self._blocks[session_id] = block
        known = delta.offset - block.begin
        if 0 <= known <= len(block.text):
            block.text += delta.text[len(block.text) - known :]
        else:
            block.begin, block.text = delta.offset, delta.text
        block.changed = time.monotonic()
        due = block.begin == 0 and block.changed - block.stored >= SNAPSHOT_SECONDS
        return self._store(block) if due else None

    def fill(self, session_id: UUID, stored: Delta | None) -> None:
        """Takes the beginning of a block from what its former driver has left."""
        block = self._blocks.get(session_id)
        if block is None or stored is None or block.key != stored.key or len(stored.text) < block.begin:
            return
        block.begin, block.text = 0, stored.text[: block.begin] + block.text

    def _store(self, block: _OpenBlock) -> bytes:
        block.stored = time.monotonic()
        frame = session_service_pb2.WatchSessionResponse(items=[delta_item(block.so_far())])
        frame.cursor.sequence = block.after_sequence
        return frame.SerializeToString()

    def begun(self) -> list[UUID]:
        """The sessions whose open block is known, but not its beginning."""
        return [session_id for session_id, block in self._blocks.items() if block.begin]

    def unstored(self, *session_ids: UUID) -> Iterator[tuple[UUID, bytes]]:
        """Snapshots of the blocks, of all sessions by default, that have grown since their last one."""
        for session_id in session_ids or self._blocks:
            block = self._blocks.get(session_id)
            if block is not None and block.begin == 0 and block.changed > block.stored:
                yield session_id, self._store(block)

    def get(self, session_id: UUID) -> Delta | None:
        """The text so far of the session's open block, if it is known here from its beginning."""
        block = self._blocks.get(session_id)
        return block.so_far() if block is not None and block.begin == 0 else None

    def close(self, session_id: UUID, events: Iterable[GateEvent]) -> bool:
        """Forgets a block that one of the events ends; returns whether its snapshot, anybody's, is over with it."""
        block = self._blocks.get(session_id)
        if block is None:
            # Only who drives a session writes these; others end a turn at most, and that one never began.
            return any(event.completes or event.begins_attempt for event in events)
        if not any(_closes(event, block.key) for event in events):
            return False
        del self._blocks[session_id]
        return True

    def forget_old(self) -> None:
        """Drops the blocks that nobody adds to any more."""
        oldest = time.monotonic() - BLOCK_SECONDS
        for session_id in [known for known, block in self._blocks.items() if block.changed < oldest]:
            del self._blocks[session_id]


def read_snapshot(data: bytes) -> Delta:
    """A snapshot as the gate takes it."""
    frame = session_service_pb2.WatchSessionResponse.FromString(data)
    return read_delta(frame.items[0].delta, frame.cursor.sequence)


def furthest(one: Delta | None, other: Delta | None) -> Delta | None:
    """Of two replicas' words of a session's open block the later one: the longer text, the later block or attempt.

    A replica that drove the session before, or was frozen while it did, still holds what it knew then.
    """
    if one is None or other is None:
        return one or other
    if one.key == other.key:
        return max(one, other, key=lambda delta: len(delta.text))
    if one.key.turn_id == other.key.turn_id:
        return max(one, other, key=lambda delta: delta.key[1:])
    return max(one, other, key=lambda delta: delta.after_sequence)


def _closes(event: GateEvent, key: BlockKey) -> bool:
    return (
        event.completes == key
        or event.ends_turn == key.turn_id
        or (event.begins_attempt is not None and event.begins_attempt != key[:2])
    )
