"""How attempts and turns end, and what is settled with them in the same transaction."""

from __future__ import annotations

from services.session.domain import events
from services.session.domain.driving import (
    MAX_LOST_ATTEMPTS,
    Changes,
    DrivenSession,
    DrivenTurn,
    PermissionUpdate,
    ToolCallUpdate,
)
from services.session.domain.entities import Failure
from services.session.domain.states import (
    PermissionRequestState,
    ToolCallState,
    TurnState,
    session_state_for,
)
from services.session.domain.turn_items import AttemptEnded, Outcome, Spent
from services.session.usecases.driver.attempt import Attempt
from services.session.usecases.driver.decisions import expire
from services.session.usecases.driver.ports import FencedTransaction

_FINAL = {
    Outcome.SUCCEEDED: TurnState.SUCCEEDED,
    Outcome.FAILED: TurnState.FAILED,
    Outcome.INTERRUPTED: TurnState.INTERRUPTED,
    Outcome.TIMED_OUT: TurnState.TIMED_OUT,
    Outcome.BUDGET_EXCEEDED: TurnState.BUDGET_EXCEEDED,
}

_OPEN_CALLS = frozenset({ToolCallState.REQUESTED, ToolCallState.WAITING, ToolCallState.RUNNING})


def spend(attempt: Attempt, item: Spent | AttemptEnded, changes: Changes) -> None:
    """Adds what an item says the model has cost to the turn and to the session, whose sum it stays."""
    session, turn = attempt.session, attempt.turn
    turn.usage += item.usage
    turn.cost_usd += item.cost_usd
    turn.model_calls += item.model_calls
    session.cost_usd += item.cost_usd
    changes.turn |= {
        "input_tokens": turn.usage.input_tokens,
        "output_tokens": turn.usage.output_tokens,
        "cache_read_tokens": turn.usage.cache_read_tokens,
        "cache_write_tokens": turn.usage.cache_write_tokens,
        "cost_usd": turn.cost_usd,
        "model_calls": turn.model_calls,
    }
    for counter in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"):
        changes.count(counter, getattr(item.usage, counter))
    changes.count("cost_usd", item.cost_usd)


async def end_attempt(
    attempt: Attempt, item: AttemptEnded, changes: Changes, transaction: FencedTransaction
) -> None:
    """Applies the end of an attempt: the turn ends with it, is parked, or will have another attempt."""
    session, turn = attempt.session, attempt.turn
    spend(attempt, item, changes)
    if item.cli_session_id is not None:
        session.cli_session_id = item.cli_session_id
        changes.session["cli_session_id"] = item.cli_session_id
    attempt.outcome = item.outcome
    await transaction.refresh(turn)
    if item.outcome is Outcome.PARKED and turn.interrupt_time is None:
        await _park(session, turn, changes, transaction)
        return
    if item.outcome is Outcome.LOST and turn.interrupt_time is None and not attempt.timed_out:
        await lose_attempt(session, turn, item.failure, changes, transaction)
        return
    await end_turn(
        session,
        turn,
        _final_state(attempt, item.outcome),
        item.failure,
        changes,
        transaction,
        structured_output_json=item.structured_output_json,
    )


async def _park(
    session: DrivenSession, turn: DrivenTurn, changes: Changes, transaction: FencedTransaction
) -> None:
    """The process is gone, as it was meant to be: the turn waits without one for as long as a question stands.

    An answer that came while the process ended finds no question standing: the next attempt begins with it.
    """
    questions = expire(await transaction.answers(turn.id), turn.id, changes, transaction)
    asked = {request.tool_use.tool_use_id for request in changes.permission_requests}
    turn.parked = bool(asked) or any(
        question.state is PermissionRequestState.PENDING for question in questions
    )
    turn.executor_incarnation = None
    changes.turn |= {"parked": turn.parked, "executor_incarnation": None}
    if turn.parked:
        changes.move_turn(session, turn, TurnState.WAITING, transaction.now)


def _final_state(attempt: Attempt, outcome: Outcome) -> TurnState:
    if outcome in (Outcome.INTERRUPTED, Outcome.PARKED, Outcome.LOST):
        return TurnState.TIMED_OUT if attempt.timed_out else TurnState.INTERRUPTED
    return _FINAL[outcome]


async def lose_attempt(
    session: DrivenSession,
    turn: DrivenTurn,
    failure: Failure | None,
    changes: Changes,
    transaction: FencedTransaction,
) -> None:
    """An attempt is gone without fault of the agent: the turn will have another one, or fails after the last.

    A turn that waits for a person waits on without a process: its question stands.
    """
    reason = failure or Failure("EXECUTOR_LOST", "the executor that ran the turn is gone")
    if reason.reason != "DRAINING":
        # An executor that is replaced in good order says nothing against the turn, however often.
        turn.lost_attempts += 1
        changes.count("retries")
    turn.executor_incarnation = None
    changes.turn |= {"lost_attempts": turn.lost_attempts, "executor_incarnation": None}
    if turn.lost_attempts >= MAX_LOST_ATTEMPTS:
        exhausted = Failure(
            "ATTEMPTS_EXHAUSTED", f"{turn.lost_attempts} attempts were lost; the last: {reason.message}"
        )
        await end_turn(session, turn, TurnState.FAILED, exhausted, changes, transaction)
        return
    changes.add(events.Notice("ATTEMPT_LOST", reason.message), turn.id)
    if turn.state is TurnState.WAITING:
        await _park(session, turn, changes, transaction)


async def end_turn(
    session: DrivenSession,
    turn: DrivenTurn,
    state: TurnState,
    failure: Failure | None,
    changes: Changes,
    transaction: FencedTransaction,
    *,
    structured_output_json: str = "",
) -> None:
    """Ends a turn with everything that is open in it, and makes the next one current."""
    if state is TurnState.TIMED_OUT and failure is None:
        failure = Failure("TURN_TIMEOUT", "the turn took longer than its time limit")
    if state in (TurnState.SUCCEEDED, TurnState.INTERRUPTED):
        failure = None
    for answer in await transaction.answers(turn.id):
        if answer.state is PermissionRequestState.PENDING:
            changes.permission_updates.append(
                PermissionUpdate(answer.id, state=PermissionRequestState.CANCELLED)
            )
            changes.add(
                events.PermissionResolved(
                    answer.id, PermissionRequestState.CANCELLED, "the turn has ended", None
                ),
                turn.id,
            )
    # What this transaction has already made of a call counts, not only what the database had before it.
    open_calls = await transaction.open_calls(turn.id)
    states = {(call.attempt, call.tool_use.tool_use_id): call.state for call in open_calls}
    states |= {
        (call.attempt, call.tool_use.tool_use_id): ToolCallState.REQUESTED for call in changes.tool_calls
    }
    states |= {(update.attempt, update.tool_use_id): update.state for update in changes.tool_call_updates}
    for (attempt, tool_use_id), call_state in states.items():
        if call_state in _OPEN_CALLS:
            left = (
                ToolCallState.POSSIBLY_RUN if call_state is ToolCallState.RUNNING else ToolCallState.ABANDONED
            )
            changes.tool_call_updates.append(ToolCallUpdate(attempt, tool_use_id, left, ended=True))
    changes.end_turn(
        session, turn, state, failure, transaction.now, structured_output_json=structured_output_json
    )
    following = await transaction.next_open_turn(turn.id)
    changes.session["current_turn_id"] = following[0] if following else None
    changes.move_session(session, session_state_for(following[1] if following else None))
