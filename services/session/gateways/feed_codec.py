"""The live feed's frames: items of `WatchSession`, and what the gate needs to know of them."""

from __future__ import annotations

from uuid import UUID

from aiagent.events.v1 import session_event_pb2
from aiagent.session.v1 import session_service_pb2
from services.session.domain.gate import BlockKey, Delta, GateEvent


def event_item(event: session_event_pb2.SessionEvent) -> session_service_pb2.WatchItem:
    """An event as an item."""
    return session_service_pb2.WatchItem(event=event)


def delta_item(delta: Delta) -> session_service_pb2.WatchItem:
    """A delta as an item."""
    return session_service_pb2.WatchItem(
        delta=session_service_pb2.TextDelta(
            turn_id=str(delta.key.turn_id),
            attempt=delta.key.attempt,
            block=delta.key.block,
            text_offset=delta.offset,
            text=delta.text,
            thinking=delta.thinking,
        )
    )


def read_delta(delta: session_service_pb2.TextDelta, after_sequence: int) -> Delta:
    """An item's delta as the gate takes it."""
    key = BlockKey(UUID(delta.turn_id), delta.attempt, delta.block)
    return Delta(key, delta.text_offset, delta.text, delta.thinking, after_sequence)


def gate_event(item: session_service_pb2.WatchItem) -> GateEvent:
    """An item's event as the gate takes it; the item goes with it, made once for all watchers."""
    event = item.event
    size = item.ByteSize()
    turn_id = UUID(event.turn_id) if event.turn_id else None
    match event.payload.WhichOneof("kind"):
        case "assistant_message" if turn_id is not None:
            message = event.payload.assistant_message
            if message.parent_tool_use_id:
                return GateEvent(event.sequence, item, size)
            reference = message.content.reference
            return GateEvent(
                event.sequence,
                item,
                size,
                completes=BlockKey(turn_id, message.attempt, message.block),
                text=message.content.text,
                thinking=message.type == session_event_pb2.AssistantMessage.THINKING,
                content_id=UUID(reference.content_id) if reference.content_id else None,
                content_bytes=reference.size_bytes,
            )
        case "attempt_started" if turn_id is not None:
            return GateEvent(
                event.sequence, item, size, begins_attempt=(turn_id, event.payload.attempt_started.attempt)
            )
        case "turn_ended":
            return GateEvent(event.sequence, item, size, ends_turn=turn_id)
        case "permission_requested":
            return GateEvent(event.sequence, item, size, asks_in_turn=turn_id)
        case _:
            return GateEvent(event.sequence, item, size)
