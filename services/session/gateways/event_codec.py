"""Builds the payloads of the event log: domain values to serialized `SessionEventPayload`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from aiagent.events.v1 import content_pb2, session_event_pb2
from google.protobuf import struct_pb2

from services.session.domain.entities import (
    Content,
    EventDraft,
    Failure,
    LogEvent,
    ToolCallDecision,
    ToolUse,
    Usage,
)
from services.session.domain.states import PermissionRequestState, SessionState, TurnState

_Payload = session_event_pb2.SessionEventPayload


def _draft(payload: _Payload, turn_id: UUID | None) -> EventDraft:
    kind = payload.WhichOneof("kind")
    if kind is None:
        raise ValueError("an event needs a kind")
    return EventDraft(kind=kind, payload=payload.SerializeToString(), turn_id=turn_id)


def content(value: Content) -> content_pb2.Content:
    """Maps a text."""
    message = content_pb2.Content(text=value.text)
    if value.content_id is not None:
        message.reference.content_id = str(value.content_id)
        message.reference.size_bytes = value.size_bytes
        message.reference.sha256 = value.sha256
    return message


def tool_use(value: ToolUse) -> content_pb2.ToolUse:
    """Maps a tool call; an input that was too large for the log goes as text with its reference."""
    message = content_pb2.ToolUse(
        tool_use_id=value.tool_use_id,
        tool_name=value.tool_name,
        input_hash=value.input_hash,
        parent_tool_use_id=value.parent_tool_use_id,
    )
    if value.input_json.content_id is not None:
        message.input_content.CopyFrom(content(value.input_json))
    else:
        fields: Mapping[str, Any] = json.loads(value.input_json.text)
        structure = struct_pb2.Struct()
        structure.update(dict(fields))
        message.input.CopyFrom(structure)
    return message


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
    message = session_event_pb2.SessionEvent(
        sequence=value.sequence, turn_id=str(value.turn_id) if value.turn_id else ""
    )
    message.create_time.FromDatetime(value.create_time)
    message.payload.ParseFromString(value.payload)
    return message


def session_state_changed(before: SessionState, after: SessionState) -> EventDraft:
    """The session changed its state."""
    changed = session_event_pb2.SessionStateChanged(from_state=before.value, to_state=after.value)
    return _draft(_Payload(session_state_changed=changed), None)


def user_message(turn_id: UUID, message_id: UUID, text: Content, user_id: UUID) -> EventDraft:
    """A user's message was accepted."""
    message = session_event_pb2.UserMessage(
        message_id=str(message_id), content=content(text), user_id=str(user_id)
    )
    return _draft(_Payload(user_message=message), turn_id)


def turn_state_changed(turn_id: UUID, before: TurnState | None, after: TurnState) -> EventDraft:
    """The turn changed its state; `before` is None for a new turn."""
    changed = session_event_pb2.TurnStateChanged(
        from_state=before.value if before else "", to_state=after.value
    )
    return _draft(_Payload(turn_state_changed=changed), turn_id)


def attempt_started(turn_id: UUID, attempt: int, executor_id: str) -> EventDraft:
    """An attempt at the turn began."""
    started = session_event_pb2.AttemptStarted(attempt=attempt, executor_id=executor_id)
    return _draft(_Payload(attempt_started=started), turn_id)


def assistant_message(
    turn_id: UUID,
    message_id: UUID,
    attempt: int,
    block: int,
    thinking: bool,
    text: Content,
    model: str,
    parent_tool_use_id: str,
) -> EventDraft:
    """The agent finished a block of text or thinking."""
    message = session_event_pb2.AssistantMessage(
        message_id=str(message_id),
        attempt=attempt,
        block=block,
        type=(
            session_event_pb2.AssistantMessage.THINKING
            if thinking
            else session_event_pb2.AssistantMessage.TEXT
        ),
        content=content(text),
        model=model,
        parent_tool_use_id=parent_tool_use_id,
    )
    return _draft(_Payload(assistant_message=message), turn_id)


def tool_use_requested(turn_id: UUID, value: ToolUse) -> EventDraft:
    """The agent asked for a tool call."""
    return _draft(_Payload(tool_use=tool_use(value)), turn_id)


def tool_decision(
    turn_id: UUID,
    value: ToolUse,
    decision: ToolCallDecision,
    permission_request_id: UUID | None,
) -> EventDraft:
    """It was decided whether a tool call may run."""
    kind = session_event_pb2.ToolDecision
    message = kind(
        tool_use_id=value.tool_use_id,
        tool_name=value.tool_name,
        decision=kind.ALLOW if decision.allowed else kind.DENY,
        source=kind.Source.Value(decision.source),
        reason=decision.reason,
        user_id=str(decision.user_id) if decision.user_id else "",
        permission_request_id=str(permission_request_id) if permission_request_id else "",
    )
    return _draft(_Payload(tool_decision=message), turn_id)


def tool_result(turn_id: UUID, tool_use_id: str, text: Content, is_error: bool) -> EventDraft:
    """A tool call ended."""
    message = content_pb2.ToolResult(tool_use_id=tool_use_id, content=content(text), is_error=is_error)
    return _draft(_Payload(tool_result=message), turn_id)


def permission_requested(
    turn_id: UUID, permission_request_id: UUID, value: ToolUse, expire_time: datetime
) -> EventDraft:
    """A person is asked."""
    message = session_event_pb2.PermissionRequested(
        permission_request_id=str(permission_request_id),
        tool_use_id=value.tool_use_id,
        tool_name=value.tool_name,
        input_hash=value.input_hash,
    )
    message.expire_time.FromDatetime(expire_time)
    return _draft(_Payload(permission_requested=message), turn_id)


def permission_resolved(
    turn_id: UUID,
    permission_request_id: UUID,
    state: PermissionRequestState,
    reason: str,
    user_id: UUID | None,
) -> EventDraft:
    """A question found its end."""
    message = session_event_pb2.PermissionResolved(
        permission_request_id=str(permission_request_id),
        state=state.value,
        reason=reason,
        user_id=str(user_id) if user_id else "",
    )
    return _draft(_Payload(permission_resolved=message), turn_id)


def notice(turn_id: UUID, code: str, text: str) -> EventDraft:
    """Something worth knowing."""
    return _draft(_Payload(notice=session_event_pb2.Notice(code=code, message=text)), turn_id)


def turn_ended(
    turn_id: UUID,
    state: TurnState,
    why: Failure | None,
    tokens: Usage,
    cost_usd: float,
    duration_ms: int,
    model_calls: int,
    structured_output_json: str,
) -> EventDraft:
    """The turn reached its final state."""
    message = session_event_pb2.TurnEnded(
        state=state.value,
        usage=usage(tokens),
        cost_usd=cost_usd,
        duration_ms=duration_ms,
        model_calls=model_calls,
        structured_output_json=structured_output_json,
    )
    if why is not None:
        message.failure.CopyFrom(failure(why))
    return _draft(_Payload(turn_ended=message), turn_id)


def workspace_uploaded(file_count: int, size_bytes: int, path: str, user_id: UUID) -> EventDraft:
    """Files were put into the workspace."""
    message = session_event_pb2.WorkspaceUploaded(
        file_count=file_count, size_bytes=size_bytes, path=path, user_id=str(user_id)
    )
    return _draft(_Payload(workspace_uploaded=message), None)


def interrupt_requested(turn_id: UUID, user_id: UUID, reason: str) -> EventDraft:
    """Someone asked to stop the turn."""
    message = session_event_pb2.InterruptRequested(user_id=str(user_id), reason=reason)
    return _draft(_Payload(interrupt_requested=message), turn_id)
