"""The states of sessions, turns, tool calls and permission requests, and the moves between them.

The names are those of the enums in `aiagent.session.v1`; the database stores them as text.
"""

from __future__ import annotations

from enum import StrEnum


class SessionMode(StrEnum):
    """How a session is used."""

    INTERACTIVE = "INTERACTIVE"
    BACKGROUND = "BACKGROUND"
    FORKED = "FORKED"


class SessionState(StrEnum):
    """Where a session stands. CONNECTING, PROCESSING and WAITING follow from its current turn."""

    CREATED = "CREATED"
    CONNECTING = "CONNECTING"
    ACTIVE = "ACTIVE"
    WAITING = "WAITING"
    PROCESSING = "PROCESSING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TERMINATED = "TERMINATED"
    ARCHIVED = "ARCHIVED"


class TurnState(StrEnum):
    """Where a turn stands."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    INTERRUPTED = "INTERRUPTED"
    TIMED_OUT = "TIMED_OUT"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"

    @property
    def final(self) -> bool:
        """Whether the turn is over."""
        return self in FINAL_TURN_STATES

    @property
    def driven(self) -> bool:
        """Whether the turn has begun and is not over: at most one such turn per session."""
        return self in DRIVEN_TURN_STATES


class ToolCallState(StrEnum):
    """Where a tool call stands."""

    REQUESTED = "REQUESTED"
    WAITING = "WAITING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    DENIED = "DENIED"
    POSSIBLY_RUN = "POSSIBLY_RUN"
    ABANDONED = "ABANDONED"


class PermissionRequestState(StrEnum):
    """Where a question to a person stands."""

    PENDING = "PENDING"
    ALLOWED = "ALLOWED"
    DENIED = "DENIED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


FINAL_TURN_STATES = frozenset(
    {
        TurnState.SUCCEEDED,
        TurnState.FAILED,
        TurnState.INTERRUPTED,
        TurnState.TIMED_OUT,
        TurnState.BUDGET_EXCEEDED,
    }
)
DRIVEN_TURN_STATES = frozenset({TurnState.STARTING, TurnState.RUNNING, TurnState.WAITING})

TURN_TRANSITIONS: dict[TurnState, frozenset[TurnState]] = {
    TurnState.QUEUED: frozenset({TurnState.STARTING, *FINAL_TURN_STATES}),
    TurnState.STARTING: frozenset(
        {TurnState.RUNNING, TurnState.WAITING, TurnState.QUEUED, *FINAL_TURN_STATES}
    ),
    TurnState.RUNNING: frozenset({TurnState.STARTING, TurnState.WAITING, *FINAL_TURN_STATES}),
    TurnState.WAITING: frozenset({TurnState.STARTING, TurnState.RUNNING, *FINAL_TURN_STATES}),
    **{state: frozenset() for state in FINAL_TURN_STATES},
}
"""Where a turn may go. STARTING goes back to QUEUED when no executor had room after all; RUNNING and WAITING go
back to STARTING when a new attempt begins."""

TAKES_MESSAGES = frozenset(
    {
        SessionState.CREATED,
        SessionState.CONNECTING,
        SessionState.ACTIVE,
        SessionState.WAITING,
        SessionState.PROCESSING,
    }
)
"""The session states in which a message is accepted."""

_SESSION_STATE_OF_TURN = {
    TurnState.QUEUED: SessionState.CONNECTING,
    TurnState.STARTING: SessionState.CONNECTING,
    TurnState.RUNNING: SessionState.PROCESSING,
    TurnState.WAITING: SessionState.WAITING,
}


def session_state_for(current_turn: TurnState | None) -> SessionState:
    """Derives the state of an open session from its current turn.

    Args:
        current_turn: State of the turn that is queued, runs or waits; None when there is none.

    Returns:
        CONNECTING, PROCESSING or WAITING while a turn is open, else ACTIVE.
    """
    if current_turn is None or current_turn.final:
        return SessionState.ACTIVE
    return _SESSION_STATE_OF_TURN[current_turn]


def may_move(from_state: TurnState, to_state: TurnState) -> bool:
    """Tells whether the transition table lets a turn make this move."""
    return to_state in TURN_TRANSITIONS[from_state]
