"""Rows as entities."""

from __future__ import annotations

from typing import Any

from services.session.domain.entities import (
    Counters,
    Failure,
    Message,
    PermissionRequest,
    Session,
    ToolCall,
    ToolCallDecision,
    ToolUse,
    Turn,
    Usage,
)
from services.session.domain.states import (
    PermissionRequestState,
    SessionMode,
    SessionState,
    ToolCallState,
    TurnState,
)
from services.session.store.columns import content_of


def _usage(row: Any) -> Usage:
    return Usage(row.input_tokens, row.output_tokens, row.cache_read_tokens, row.cache_write_tokens)


def session_of(row: Any) -> Session:
    """Reads a row of `sessions` joined with its head's `last_sequence`."""
    return Session(
        id=row.id,
        organization_id=row.organization_id,
        user_id=row.user_id,
        name=row.name,
        mode=SessionMode(row.mode),
        state=SessionState(row.state),
        sdk_options=row.sdk_options,
        labels=row.labels,
        permission_timeout=row.permission_timeout,
        turn_timeout=row.turn_timeout,
        counters=Counters(
            messages=row.messages,
            tool_calls=row.tool_calls,
            turns=row.turns,
            errors=row.errors,
            retries=row.retries,
            permission_checks=row.permission_checks,
            usage=_usage(row),
            cost_usd=float(row.cost_usd),
            duration_ms=row.duration_ms,
        ),
        current_turn_id=row.current_turn_id,
        last_sequence=row.last_sequence,
        offline_model=row.offline_model,
        version=row.version,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def turn_of(row: Any) -> Turn:
    """Reads a row of `turns` with its `queue_position` and the number of its `calls`."""
    has_result = row.result_text is not None
    return Turn(
        id=row.id,
        session_id=row.session_id,
        organization_id=row.organization_id,
        user_id=row.user_id,
        number=row.number,
        state=TurnState(row.state),
        attempt=row.attempt,
        message=content_of(row, "message"),
        result=content_of(row, "result") if has_result else None,
        failure=Failure(row.failure_reason, row.failure_message or "") if row.failure_reason else None,
        usage=_usage(row),
        cost_usd=float(row.cost_usd),
        tool_calls=row.tool_calls,
        model_calls=row.model_calls,
        structured_output_json=row.structured_output_json,
        first_sequence=row.first_sequence,
        last_sequence=row.last_sequence,
        queue_position=row.queue_position,
        create_time=row.create_time,
        start_time=row.start_time,
        end_time=row.end_time,
    )


def message_of(row: Any) -> Message:
    """Reads a row of `messages`."""
    return Message(
        id=row.id,
        session_id=row.session_id,
        turn_id=row.turn_id,
        sequence=row.sequence,
        role=row.role,
        type=row.type,
        content=content_of(row, "content"),
        model=row.model,
        parent_tool_use_id=row.parent_tool_use_id,
        create_time=row.create_time,
    )


def tool_use_of(row: Any) -> ToolUse:
    """Reads the columns of a tool call that say what was asked for."""
    return ToolUse(
        tool_use_id=row.tool_use_id,
        tool_name=row.tool_name,
        input_json=content_of(row, "input"),
        input_hash=row.input_hash,
        parent_tool_use_id=getattr(row, "parent_tool_use_id", ""),
    )


def tool_call_of(row: Any) -> ToolCall:
    """Reads a row of `tool_calls`."""
    decision = None
    if row.decision_allowed is not None:
        decision = ToolCallDecision(
            row.decision_allowed, row.decision_source, row.decision_reason or "", row.decision_user_id
        )
    return ToolCall(
        session_id=row.session_id,
        turn_id=row.turn_id,
        attempt=row.attempt,
        tool_use=tool_use_of(row),
        state=ToolCallState(row.state),
        decision=decision,
        result=content_of(row, "result") if row.result_text is not None else None,
        result_is_error=bool(row.result_is_error),
        sequence=row.sequence,
        create_time=row.create_time,
        end_time=row.end_time,
    )


def permission_request_of(row: Any) -> PermissionRequest:
    """Reads a row of `permission_requests`."""
    return PermissionRequest(
        id=row.id,
        session_id=row.session_id,
        organization_id=row.organization_id,
        user_id=row.user_id,
        turn_id=row.turn_id,
        tool_use=tool_use_of(row),
        state=PermissionRequestState(row.state),
        reason=row.reason,
        resolved_by=row.resolved_by,
        create_time=row.create_time,
        expire_time=row.expire_time,
        resolve_time=row.resolve_time,
    )
