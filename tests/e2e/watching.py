"""A watcher that checks what it sees: events gapless and once, deltas that join to the messages they announce."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aiagent.events.v1 import session_event_pb2
from aiagent.session.v1 import session_service_pb2

Block = tuple[str, int, int]


@dataclass
class Watcher:
    """Follows one session over any number of connections.

    `texts` holds what the deltas of each block (turn, attempt, number) joined to.
    """

    user: Any
    session_id: str
    cursor: session_service_pb2.WatchCursor = field(default_factory=session_service_pb2.WatchCursor)
    events: list[session_event_pb2.SessionEvent] = field(default_factory=list)
    texts: dict[Block, str] = field(default_factory=dict)
    deltas: int = 0
    connections: int = 0

    def take(self, response: session_service_pb2.WatchSessionResponse) -> None:
        """Checks and keeps one response."""
        for item in response.items:
            if item.WhichOneof("kind") == "delta":
                self._delta(item.delta)
            else:
                self._event(item.event)
        self.cursor = response.cursor
        assert self.cursor.sequence == (self.events[-1].sequence if self.events else 0)

    def _delta(self, delta: session_service_pb2.TextDelta) -> None:
        block = (delta.turn_id, delta.attempt, delta.block)
        known = self.texts.get(block, "")
        assert delta.text_offset == len(known), f"{block}: piece at {delta.text_offset} after {len(known)}"
        self.texts[block] = known + delta.text
        self.deltas += 1

    def _event(self, event: session_event_pb2.SessionEvent) -> None:
        last = self.events[-1].sequence if self.events else 0
        assert event.sequence == last + 1, f"event {event.sequence} after {last}"
        self.events.append(event)
        if event.payload.WhichOneof("kind") == "assistant_message":
            message = event.payload.assistant_message
            if not message.parent_tool_use_id:
                block = (event.turn_id, message.attempt, message.block)
                assert self.texts.get(block, "") == message.content.text, block

    async def follow(self, *, until_idle: bool = True, responses: int | None = None) -> bool:
        """Follows one connection, for so many responses at most, then cuts it; True when the stream ended."""
        self.connections += 1
        call = self.user.watch(self.session_id, self.cursor, until_idle=until_idle)
        taken = 0
        async for response in call:
            self.take(response)
            taken += 1
            if responses is not None and taken >= responses:
                call.cancel()
                return False
        return True

    def kinds(self) -> list[str]:
        """The kinds of the events seen."""
        return [str(event.payload.WhichOneof("kind")) for event in self.events]
