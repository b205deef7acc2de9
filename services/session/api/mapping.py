"""Entities as messages of `aiagent.session.v1`."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from google.protobuf import json_format
from google.protobuf.message import Message as ProtobufMessage
from google.protobuf.timestamp_pb2 import Timestamp

from aiagent.events.v1 import content_pb2
from aiagent.session.v1 import session_pb2, session_service_pb2
from services.session import codec
from services.session.domain.entities import (
    Counters,
    Message,
    PermissionRequest,
    Session,
    ToolCall,
    Turn,
)
from services.session.domain.errors import invalid_request


def time(moment: datetime) -> Timestamp:
    """Maps a time."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def optional_id(value: UUID | None) -> str:
    """Maps an id that may be missing."""
    return str(value) if value is not None else ""


def optional_uuid(text: str) -> UUID | None:
    """Reads an id that may be empty."""
    return UUID(text) if text else None


def session(value: Session) -> session_pb2.Session:
    """Maps a session."""
    message = session_pb2.Session(
        id=str(value.id),
        name=value.name,
        user_id=str(value.user_id),
        organization_id=str(value.organization_id),
        mode=session_pb2.Session.Mode.Value(value.mode.value),
        state=session_pb2.Session.State.Value(value.state.value),
        labels=dict(value.labels),
        counters=counters(value.counters),
        current_turn_id=optional_id(value.current_turn_id),
        last_sequence=value.last_sequence,
        offline_model=value.offline_model,
        create_time=time(value.create_time),
        update_time=time(value.update_time),
        etag=value.etag,
    )
    json_format.ParseDict({"permission_mode": "DEFAULT", **value.sdk_options}, message.sdk_options)
    message.permission_timeout.FromTimedelta(value.permission_timeout)
    message.turn_timeout.FromTimedelta(value.turn_timeout)
    return message


def counters(value: Counters) -> session_pb2.SessionCounters:
    """Maps what a session has counted."""
    return session_pb2.SessionCounters(
        messages=value.messages,
        tool_calls=value.tool_calls,
        turns=value.turns,
        errors=value.errors,
        retries=value.retries,
        permission_checks=value.permission_checks,
        usage=codec.usage(value.usage),
        cost_usd=value.cost_usd,
        duration_ms=value.duration_ms,
    )


def turn(value: Turn) -> session_pb2.Turn:
    """Maps a turn."""
    message = session_pb2.Turn(
        id=str(value.id),
        session_id=str(value.session_id),
        number=value.number,
        state=session_pb2.Turn.State.Value(value.state.value),
        attempt=value.attempt,
        message=codec.content(value.message),
        usage=codec.usage(value.usage),
        cost_usd=value.cost_usd,
        tool_calls=value.tool_calls,
        model_calls=value.model_calls,
        queue_position=value.queue_position,
        structured_output_json=value.structured_output_json,
        first_sequence=value.first_sequence,
        last_sequence=value.last_sequence,
        create_time=time(value.create_time),
    )
    if value.result is not None:
        message.result.CopyFrom(codec.content(value.result))
    if value.failure is not None:
        message.failure.CopyFrom(codec.failure(value.failure))
    if value.start_time is not None:
        message.start_time.CopyFrom(time(value.start_time))
    if value.end_time is not None:
        message.end_time.CopyFrom(time(value.end_time))
    return message


def metrics(value: Turn, now: datetime) -> session_service_pb2.TurnMetrics:
    """Maps what a turn cost."""
    begun = value.start_time or value.create_time
    duration = (value.end_time or now) - begun
    return session_service_pb2.TurnMetrics(
        input_tokens=value.usage.input_tokens,
        output_tokens=value.usage.output_tokens,
        cache_read_tokens=value.usage.cache_read_tokens,
        cache_write_tokens=value.usage.cache_write_tokens,
        cost_usd=value.cost_usd,
        duration_ms=max(0, int(duration.total_seconds() * 1000)),
        model_calls=value.model_calls,
    )


def message(value: Message) -> session_pb2.Message:
    """Maps a message."""
    return session_pb2.Message(
        id=str(value.id),
        turn_id=str(value.turn_id),
        sequence=value.sequence,
        role=session_pb2.Message.Role.Value(value.role),
        type=session_pb2.Message.Type.Value(value.type),
        content=codec.content(value.content),
        model=value.model,
        parent_tool_use_id=value.parent_tool_use_id,
        create_time=time(value.create_time),
    )


def tool_call(value: ToolCall) -> session_pb2.ToolCall:
    """Maps a tool call."""
    mapped = session_pb2.ToolCall(
        id=value.tool_use.tool_use_id,
        turn_id=str(value.turn_id),
        tool_use=codec.tool_use(value.tool_use),
        state=session_pb2.ToolCall.State.Value(value.state.value),
        sequence=value.sequence,
        create_time=time(value.create_time),
    )
    if value.decision is not None:
        mapped.decision.allowed = value.decision.allowed
        mapped.decision.source = value.decision.source
        mapped.decision.reason = value.decision.reason
        mapped.decision.user_id = optional_id(value.decision.user_id)
    if value.result is not None:
        mapped.result.CopyFrom(
            content_pb2.ToolResult(
                tool_use_id=value.tool_use.tool_use_id,
                content=codec.content(value.result),
                is_error=value.result_is_error,
            )
        )
    if value.end_time is not None:
        mapped.end_time.CopyFrom(time(value.end_time))
    return mapped


def permission_request(value: PermissionRequest) -> session_pb2.PermissionRequest:
    """Maps a permission request."""
    mapped = session_pb2.PermissionRequest(
        id=str(value.id),
        session_id=str(value.session_id),
        turn_id=str(value.turn_id),
        tool_use=codec.tool_use(value.tool_use),
        state=session_pb2.PermissionRequest.State.Value(value.state.value),
        reason=value.reason,
        resolved_by=optional_id(value.resolved_by),
        create_time=time(value.create_time),
        expire_time=time(value.expire_time),
    )
    if value.resolve_time is not None:
        mapped.resolve_time.CopyFrom(time(value.resolve_time))
    return mapped


def optional_time(request: ProtobufMessage, field: str) -> datetime | None:
    """Reads a time that may be missing.

    Raises:
        ServiceError: INVALID_ARGUMENT: it is outside of what can be stored.
    """
    if not request.HasField(field):
        return None
    stamp: Timestamp = getattr(request, field)
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise invalid_request(field, "must lie between the years 1 and 9999") from None
