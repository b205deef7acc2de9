"""Domain values as messages of `aiagent.events.v1`, and events as the bytes the log stores.

A leaf: the rooms that touch protobuf (api, store, gateways) share it, so that a value looks the same wherever it
leaves the service.
"""

from __future__ import annotations

import json
import math
from uuid import UUID

from google.protobuf import struct_pb2

from aiagent.events.v1 import content_pb2, session_event_pb2, session_fact_pb2
from services.session.domain import events
from services.session.domain.entities import Content, Failure, LogEvent, ToolUse, Usage

_Payload = session_event_pb2.SessionEventPayload


def content(value: Content) -> content_pb2.Content:
    """Maps a text."""
    message = content_pb2.Content(text=value.text)
    if value.content_id is not None:
        message.reference.content_id = str(value.content_id)
        message.reference.size_bytes = value.size_bytes
        message.reference.sha256 = value.sha256
    return message


def tool_use(value: ToolUse) -> content_pb2.ToolUse:
    """Maps a tool call; an input that a structure cannot hold as the model wrote it goes as text."""
    message = content_pb2.ToolUse(
        tool_use_id=value.tool_use_id,
        tool_name=value.tool_name,
        input_hash=value.input_hash,
        parent_tool_use_id=value.parent_tool_use_id,
    )
    structure = None if value.input_json.content_id is not None else _structure(value.input_json.text)
    if structure is None:
        message.input_content.CopyFrom(content(value.input_json))
    else:
        message.input.CopyFrom(structure)
    return message


_MAX_DEPTH = 20
"""Of a structure: parsers of protobuf stop at 100 nested messages, and each level of JSON takes three."""
_MAX_EXACT_INTEGER = 2**53
"""The numbers of a structure are doubles (IEEE 754): larger integers would become others."""


def _structure(text: str) -> struct_pb2.Struct | None:
    """Reads JSON as a structure; None when that would change it, or nothing could read the structure again."""
    try:
        fields = json.loads(text)
    except RecursionError:
        return None
    if not _holds(fields, _MAX_DEPTH):
        return None
    structure = struct_pb2.Struct()
    structure.update(fields if isinstance(fields, dict) else {"value": fields})
    return structure


def _holds(value: object, depth: int) -> bool:
    match value:
        case dict():
            return depth > 0 and all(_holds(inner, depth - 1) for inner in value.values())
        case list():
            return depth > 0 and all(_holds(inner, depth - 1) for inner in value)
        case bool():
            return True
        case int():
            return abs(value) <= _MAX_EXACT_INTEGER
        case float():
            return math.isfinite(value)
        case _:
            return True


def usage(value: Usage) -> content_pb2.Usage:
    """Maps token counts."""
    return content_pb2.Usage(
        input_tokens=value.input_tokens,
        output_tokens=value.output_tokens,
        cache_read_tokens=value.cache_read_tokens,
        cache_write_tokens=value.cache_write_tokens,
    )


def failure(value: Failure) -> content_pb2.Failure:
    """Maps a failure."""
    return content_pb2.Failure(reason=value.reason, message=value.message)


def event(value: LogEvent) -> session_event_pb2.SessionEvent:
    """Maps an entry of the log."""
    message = session_event_pb2.SessionEvent(sequence=value.sequence, turn_id=_id(value.turn_id))
    message.create_time.FromDatetime(value.create_time)
    message.payload.ParseFromString(value.payload)
    return message


def encode(value: events.Event) -> tuple[str, bytes]:
    """Serializes an event for the log.

    Args:
        value: The event.

    Returns:
        Its kind, which is the payload's field name, and the serialized `SessionEventPayload`.
    """
    payload = _payload(value)
    kind = payload.WhichOneof("kind")
    if kind is None:
        raise AssertionError(f"{type(value).__name__} has no kind")
    return kind, payload.SerializeToString()


def fact(
    event_id: UUID, organization_id: UUID, user_id: UUID, entry: LogEvent, value: events.Event
) -> bytes | None:
    """Serializes what other services are told of an entry of the log.

    Args:
        event_id: The fact's own id.
        organization_id: The tenant.
        user_id: Whose session it is.
        entry: The entry, which has its place in the log.
        value: What it says.

    Returns:
        A serialized `SessionFact`; None when it is nothing that others are told.
    """
    message = session_fact_pb2.SessionFact(
        event_id=str(event_id),
        organization_id=str(organization_id),
        user_id=str(user_id),
        session_id=str(entry.session_id),
        turn_id=_id(entry.turn_id),
        sequence=entry.sequence,
    )
    message.time.FromDatetime(entry.create_time)
    match value:
        case events.TurnEnded():
            ended = message.turn_ended
            ended.state = value.state.value
            ended.usage.CopyFrom(usage(value.usage))
            ended.cost_usd = value.cost_usd
            ended.duration_ms = value.duration_ms
            ended.model_calls = value.model_calls
            if value.failure is not None:
                ended.failure.CopyFrom(failure(value.failure))
                ended.failure.message = value.failure.message[:_MOST_REASON_CHARACTERS]
        case events.ToolDecided():
            message.permission_decided.decision.CopyFrom(_tool_decision(value))
            message.permission_decided.decision.reason = value.decision.reason[:_MOST_REASON_CHARACTERS]
            message.permission_decided.input_hash = value.tool_use.input_hash
        case events.PermissionResolved():
            message.permission_resolved.CopyFrom(_permission_resolved(value))
            message.permission_resolved.reason = value.reason[:_MOST_REASON_CHARACTERS]
        case _:
            return None
    return message.SerializeToString()


_MOST_REASON_CHARACTERS = 4096
"""Of a reason in a fact; the log has it whole."""


def _id(value: UUID | None) -> str:
    return str(value) if value is not None else ""


def _payload(value: events.Event) -> _Payload:
    match value:
        case events.SessionStateChanged():
            return _Payload(
                session_state_changed=session_event_pb2.SessionStateChanged(
                    from_state=value.from_state.value, to_state=value.to_state.value
                )
            )
        case events.UserMessage():
            return _Payload(
                user_message=session_event_pb2.UserMessage(
                    message_id=str(value.message_id),
                    content=content(value.content),
                    user_id=str(value.user_id),
                )
            )
        case events.TurnStateChanged():
            return _Payload(
                turn_state_changed=session_event_pb2.TurnStateChanged(
                    from_state=value.from_state.value if value.from_state else "",
                    to_state=value.to_state.value,
                )
            )
        case events.AttemptStarted():
            return _Payload(
                attempt_started=session_event_pb2.AttemptStarted(
                    attempt=value.attempt, executor_id=value.executor_id
                )
            )
        case events.AssistantMessage():
            return _Payload(assistant_message=_assistant_message(value))
        case events.ToolUseRequested():
            return _Payload(tool_use=tool_use(value.tool_use))
        case events.ToolDecided():
            return _Payload(tool_decision=_tool_decision(value))
        case events.ToolEnded():
            return _Payload(
                tool_result=content_pb2.ToolResult(
                    tool_use_id=value.tool_use_id,
                    content=content(value.content),
                    is_error=value.is_error,
                )
            )
        case events.PermissionRequested():
            asked = session_event_pb2.PermissionRequested(
                permission_request_id=str(value.permission_request_id),
                tool_use_id=value.tool_use.tool_use_id,
                tool_name=value.tool_use.tool_name,
                input_hash=value.tool_use.input_hash,
            )
            asked.expire_time.FromDatetime(value.expire_time)
            return _Payload(permission_requested=asked)
        case events.PermissionResolved():
            return _Payload(permission_resolved=_permission_resolved(value))
        case events.Notice():
            return _Payload(notice=session_event_pb2.Notice(code=value.code, message=value.message))
        case events.TurnEnded():
            return _Payload(turn_ended=_turn_ended(value))
        case events.WorkspaceUploaded():
            return _Payload(
                workspace_uploaded=session_event_pb2.WorkspaceUploaded(
                    file_count=value.file_count,
                    size_bytes=value.size_bytes,
                    path=value.path,
                    user_id=str(value.user_id),
                )
            )
        case events.InterruptRequested():
            return _Payload(
                interrupt_requested=session_event_pb2.InterruptRequested(
                    user_id=str(value.user_id), reason=value.reason
                )
            )


def _assistant_message(value: events.AssistantMessage) -> session_event_pb2.AssistantMessage:
    kind = session_event_pb2.AssistantMessage
    return kind(
        message_id=str(value.message_id),
        attempt=value.attempt,
        block=value.block,
        type=kind.THINKING if value.thinking else kind.TEXT,
        content=content(value.content),
        model=value.model,
        parent_tool_use_id=value.parent_tool_use_id,
    )


def _tool_decision(value: events.ToolDecided) -> session_event_pb2.ToolDecision:
    kind = session_event_pb2.ToolDecision
    return kind(
        tool_use_id=value.tool_use.tool_use_id,
        tool_name=value.tool_use.tool_name,
        decision=kind.ALLOW if value.decision.allowed else kind.DENY,
        source=kind.Source.Value(value.decision.source),
        reason=value.decision.reason,
        user_id=_id(value.decision.user_id),
        permission_request_id=_id(value.permission_request_id),
    )


def _permission_resolved(value: events.PermissionResolved) -> session_event_pb2.PermissionResolved:
    return session_event_pb2.PermissionResolved(
        permission_request_id=str(value.permission_request_id),
        state=value.state.value,
        reason=value.reason,
        user_id=_id(value.user_id),
    )


def _turn_ended(value: events.TurnEnded) -> session_event_pb2.TurnEnded:
    message = session_event_pb2.TurnEnded(
        state=value.state.value,
        usage=usage(value.usage),
        cost_usd=value.cost_usd,
        duration_ms=value.duration_ms,
        model_calls=value.model_calls,
        structured_output_json=value.structured_output_json,
    )
    if value.failure is not None:
        message.failure.CopyFrom(failure(value.failure))
    return message
