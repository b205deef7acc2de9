"""Decides tool calls: rules and mode first, then the answer a person gave, then a question to a person.

A decision is committed, under the lease, before the executor hears of it. What a person answered is used once, for
the call they saw: same turn, same tool, same input.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from services.kernel.ids import IdSource
from services.session.domain import events
from services.session.domain.driving import (
    Answer,
    Changes,
    NewPermissionRequest,
    NewToolCall,
    PermissionUpdate,
    ToolCallUpdate,
)
from services.session.domain.entities import Content, ToolCallDecision, ToolUse
from services.session.domain.permissions import PermissionRules, Verdict, parse_input
from services.session.domain.states import PermissionRequestState, ToolCallState, TurnState
from services.session.domain.turn_items import RawToolUse
from services.session.usecases.driver.attempt import Attempt
from services.session.usecases.driver.ports import FencedTransaction
from services.session.usecases.ports import WorkspaceStorePort

_EXPIRED = "nobody answered in time"
_ANSWERED = frozenset(
    {PermissionRequestState.ALLOWED, PermissionRequestState.DENIED, PermissionRequestState.EXPIRED}
)


@dataclass(slots=True)
class Verdicts:
    """Decisions to send once they are committed: the call with the input that was decided on, allow, reason."""

    decided: list[tuple[ToolUse, bool, str]] = field(default_factory=list)


class Decider:
    """The `PreToolUse` decision point."""

    def __init__(self, ids: IdSource, workspaces: WorkspaceStorePort) -> None:
        """Args: ids: names permission requests; workspaces: knows where a session's files are."""
        self._ids = ids
        self._workspaces = workspaces

    def record(
        self, attempt: Attempt, raw: RawToolUse, input_json: Content | None, changes: Changes
    ) -> ToolUse:
        """Notes a tool call, once: the call itself and the question about it may come in either order."""
        known = attempt.inputs.get(raw.tool_use_id)
        if known is not None:
            return known
        tool_use = _keep(attempt, raw, input_json, changes)
        draft = changes.add(events.ToolUseRequested(tool_use), attempt.turn.id)
        changes.tool_calls.append(
            NewToolCall(draft=draft, turn_id=attempt.turn.id, attempt=attempt.key.attempt, tool_use=tool_use)
        )
        changes.count("tool_calls")
        return tool_use

    async def decide(
        self,
        attempt: Attempt,
        raw: RawToolUse,
        input_json: Content | None,
        changes: Changes,
        verdicts: Verdicts,
        transaction: FencedTransaction,
    ) -> None:
        """Decides a call, or asks a person and lets the turn wait."""
        tool_use = self.record(attempt, raw, input_json, changes)
        if tool_use.input_hash != raw.input_hash:
            # Another input is another question: what was decided, and what came of it, was about the one before.
            tool_use = _keep(attempt, raw, input_json, changes)
            changes.tool_call_updates.append(
                ToolCallUpdate(
                    attempt.key.attempt, raw.tool_use_id, ToolCallState.REQUESTED, asked_anew=tool_use
                )
            )
        changes.count("permission_checks")
        if attempt.interrupted:
            decision = ToolCallDecision(False, "SAFETY", "the turn is being stopped")
            self._decided(attempt, tool_use, decision, None, changes, verdicts)
            return
        rules = PermissionRules.from_options(
            attempt.session.sdk_options, self._workspaces.path(attempt.session.id)
        )
        found = rules.decide(raw.tool_name, parse_input(raw.input_json))
        if found.verdict is not Verdict.ASK:
            decision = ToolCallDecision(found.verdict is Verdict.ALLOW, found.source, found.reason)
            self._decided(attempt, tool_use, decision, None, changes, verdicts)
            return
        answer = _answer_for(raw, await transaction.answers(attempt.turn.id))
        if answer is not None:
            self._answered(attempt, tool_use, answer, changes, verdicts)
            return
        self._ask(attempt, tool_use, changes, transaction)

    def _ask(
        self, attempt: Attempt, tool_use: ToolUse, changes: Changes, transaction: FencedTransaction
    ) -> None:
        request = NewPermissionRequest(
            id=self._ids.new_id(),
            turn_id=attempt.turn.id,
            user_id=attempt.session.user_id,
            tool_use=tool_use,
            expire_time=transaction.now + attempt.session.permission_timeout,
        )
        changes.permission_requests.append(request)
        changes.add(events.PermissionRequested(request.id, tool_use, request.expire_time), attempt.turn.id)
        attempt.calls[tool_use.tool_use_id] = ToolCallState.WAITING
        changes.tool_call_updates.append(
            ToolCallUpdate(attempt.key.attempt, tool_use.tool_use_id, ToolCallState.WAITING)
        )
        changes.move_turn(attempt.session, attempt.turn, TurnState.WAITING, transaction.now)

    async def settle(
        self, attempt: Attempt, changes: Changes, verdicts: Verdicts, transaction: FencedTransaction
    ) -> datetime | None:
        """Uses the answers that have come for calls this attempt waits with, and lets questions expire.

        Returns:
            When the first question was asked that it goes on waiting with; None if there is none.
        """
        answers = expire(await transaction.answers(attempt.turn.id), attempt.turn.id, changes, transaction)
        for answer in answers:
            if answer.state in _ANSWERED and attempt.waits_for(answer):
                self._answered(attempt, attempt.inputs[answer.tool_use_id], answer, changes, verdicts)
        if attempt.turn.state is TurnState.WAITING and ToolCallState.WAITING not in attempt.calls.values():
            changes.move_turn(attempt.session, attempt.turn, TurnState.RUNNING, transaction.now)
        return min((answer.ask_time for answer in answers if attempt.waits_for(answer)), default=None)

    def _answered(
        self,
        attempt: Attempt,
        tool_use: ToolUse,
        answer: Answer,
        changes: Changes,
        verdicts: Verdicts,
    ) -> None:
        changes.permission_updates.append(PermissionUpdate(answer.id, consumed=True))
        self._decided(attempt, tool_use, decision_of(answer), answer, changes, verdicts)

    def _decided(
        self,
        attempt: Attempt,
        tool_use: ToolUse,
        decision: ToolCallDecision,
        answer: Answer | None,
        changes: Changes,
        verdicts: Verdicts,
    ) -> None:
        state = ToolCallState.RUNNING if decision.allowed else ToolCallState.DENIED
        attempt.calls[tool_use.tool_use_id] = state
        changes.add(events.ToolDecided(tool_use, decision, answer.id if answer else None), attempt.turn.id)
        changes.tool_call_updates.append(
            ToolCallUpdate(attempt.key.attempt, tool_use.tool_use_id, state, decision=decision)
        )
        verdicts.decided.append((tool_use, decision.allowed, decision.reason))


def _keep(attempt: Attempt, raw: RawToolUse, input_json: Content | None, changes: Changes) -> ToolUse:
    """Takes a call up with an input that is new; `input_json` is that input as it was stored."""
    kept = changes.keep(input_json if input_json is not None else Content(raw.input_json))
    tool_use = ToolUse(raw.tool_use_id, raw.tool_name, kept, raw.input_hash, raw.parent_tool_use_id)
    attempt.know(tool_use, ToolCallState.REQUESTED)
    return tool_use


def decision_of(answer: Answer) -> ToolCallDecision:
    """Reads a resolved permission request as a decision; anything but ALLOWED is a denial."""
    if answer.state is PermissionRequestState.EXPIRED:
        return ToolCallDecision(False, "EXPIRY", _EXPIRED)
    allowed = answer.state is PermissionRequestState.ALLOWED
    reason = answer.reason or ("allowed by a person" if allowed else "denied by a person")
    return ToolCallDecision(allowed, "PERSON", reason, answer.resolved_by)


def expire(
    answers: list[Answer], turn_id: UUID, changes: Changes, transaction: FencedTransaction
) -> list[Answer]:
    """Turns pending questions whose time is up into expired ones, with their events.

    Returns:
        All the questions, as they stand after it.
    """
    standing = []
    for answer in answers:
        if answer.state is PermissionRequestState.PENDING and answer.expire_time <= transaction.now:
            changes.permission_updates.append(
                PermissionUpdate(answer.id, state=PermissionRequestState.EXPIRED)
            )
            changes.add(
                events.PermissionResolved(answer.id, PermissionRequestState.EXPIRED, _EXPIRED, None),
                turn_id,
            )
            answer = replace(answer, state=PermissionRequestState.EXPIRED, reason=_EXPIRED, resolved_by=None)
        standing.append(answer)
    return standing


def _answer_for(raw: RawToolUse, answers: list[Answer]) -> Answer | None:
    """Finds an unused answer to the identical call; one given in an earlier attempt, for the call's own id is new."""
    for answer in answers:
        if (
            answer.state in _ANSWERED
            and answer.tool_name == raw.tool_name
            and answer.input_hash == raw.input_hash
        ):
            return answer
    return None
