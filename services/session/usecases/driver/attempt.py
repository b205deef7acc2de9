"""What a driver knows of the attempt that it follows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from services.session.domain.driving import Answer, DrivenSession, DrivenTurn
from services.session.domain.entities import Lease, ToolUse
from services.session.domain.states import ToolCallState
from services.session.domain.turn_items import AttemptKey, Outcome


@dataclass(slots=True)
class Attempt:
    """One attempt, as its driver knows it while it follows one stream of it.

    What a transaction changes here is true only if it commits: after any failure the attempt is recalled from the log.

    Attributes:
        calls: The tool calls known to the log, by id, with their state.
        inputs: The same calls, with the input that was decided on last.
        lock: Held around a transaction and what it changes here: items and commands come side by side.
        connected: Its items are being followed; heartbeats are sent only then.
        interrupted: The executor has been told to stop it.
        timed_out: It was told so because the turn's time was up.
        parking: It was told so to free its process while a person is asked: answers are for the next attempt.
        last_sequence: The last event this driver knows of; deltas are published as following it.
        outcome: Set when the attempt's end has been applied.
    """

    session: DrivenSession
    turn: DrivenTurn
    key: AttemptKey
    lease: Lease
    calls: dict[str, ToolCallState] = field(default_factory=dict)
    inputs: dict[str, ToolUse] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    connected: bool = False
    interrupted: bool = False
    timed_out: bool = False
    parking: bool = False
    last_sequence: int = 0
    outcome: Outcome | None = None

    def know(self, call: ToolUse, state: ToolCallState) -> None:
        """Notes a tool call as the log has it."""
        self.calls[call.tool_use_id] = state
        self.inputs[call.tool_use_id] = call

    def waits_for(self, answer: Answer) -> bool:
        """Whether the agent waits for the answer to this question, which may be one of an earlier attempt."""
        call = self.inputs.get(answer.tool_use_id)
        if call is None or self.calls[call.tool_use_id] is not ToolCallState.WAITING:
            return False
        return (call.tool_name, call.input_hash) == (answer.tool_name, answer.input_hash)
