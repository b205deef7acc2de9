"""What workers have found out of runs, written for many of them in one transaction, each under its claim's epoch.

Whoever locks schedules and runs locks the schedules first, and of each kind several by their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from services.scheduler.domain.runs import Claim, Outcome, state_after
from services.scheduler.domain.states import RunState
from services.scheduler.store import endings, facts
from services.scheduler.store.endings import Ending
from services.scheduler.store.run_rows import TOKENS
from services.scheduler.usecases.worker.ports import NOT_YET, Progress, Recorded

_IDS: Final = ARRAY(sa.UUID())
_NUMBERS: Final = ARRAY(sa.BigInteger())
_TEXTS: Final = ARRAY(sa.Text())
FENCES: Final = (
    sa.bindparam("ids", type_=_IDS),
    sa.bindparam("epochs", type_=_NUMBERS),
    sa.bindparam("holders", type_=_TEXTS),
)

_LOCK_HELD = sa.text(
    """
    SELECT r.id, r.epoch, r.cancel_time IS NOT NULL AS cancelled,
        clock_timestamp() + w.pause < r.start_time + r.run_timeout AS in_time
    FROM unnest(:ids, :epochs, :holders, :pauses) AS w(id, epoch, holder, pause)
    JOIN scheduler.runs AS r
        ON r.id = w.id AND r.epoch = w.epoch AND r.lease_holder = w.holder AND r.state = 'RUNNING'
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
    """
).bindparams(*FENCES, sa.bindparam("pauses", type_=ARRAY(sa.Interval())))

_STILL_HELD = sa.text(
    """
    SELECT r.id, r.epoch FROM unnest(:ids, :epochs, :holders) AS w(id, epoch, holder)
    JOIN scheduler.runs AS r
        ON r.id = w.id AND r.epoch = w.epoch AND r.lease_holder = w.holder AND r.state = 'RUNNING'
    """
).bindparams(*FENCES)

_NOTE = sa.text(
    """
    WITH known AS (
        SELECT * FROM unnest(:ids, :attempts, :sessions, :turns) AS k(id, attempt, session_id, turn_id)
    ), noted AS (
        UPDATE scheduler.run_attempts AS a
        SET session_id = coalesce(k.session_id, a.session_id), turn_id = coalesce(k.turn_id, a.turn_id)
        FROM known AS k WHERE a.run_id = k.id AND a.number = k.attempt
    )
    UPDATE scheduler.runs AS r
    SET session_id = coalesce(k.session_id, r.session_id), update_time = clock_timestamp(), version = r.version + 1
    FROM known AS k WHERE r.id = k.id
    """
).bindparams(
    *(sa.bindparam(name, type_=_IDS) for name in ("ids", "sessions", "turns")),
    sa.bindparam("attempts", type_=_NUMBERS),
)

_END_ATTEMPTS = sa.text(
    """
    UPDATE scheduler.run_attempts AS a
    SET state = w.state, session_id = coalesce(w.session_id, a.session_id), turn_id = coalesce(w.turn_id, a.turn_id),
        failure_reason = w.reason, failure_message = w.message, input_tokens = w.input_tokens,
        output_tokens = w.output_tokens, cache_read_tokens = w.cache_read_tokens,
        cache_write_tokens = w.cache_write_tokens, cost_usd = CAST(w.cost_usd AS numeric(14, 6)),
        end_time = clock_timestamp()
    FROM unnest(:ids, :attempts, :states, :sessions, :turns, :reasons, :messages, :input_tokens, :output_tokens,
                :cache_read_tokens, :cache_write_tokens, :costs)
        AS w(id, attempt, state, session_id, turn_id, reason, message, input_tokens, output_tokens,
             cache_read_tokens, cache_write_tokens, cost_usd)
    WHERE a.run_id = w.id AND a.number = w.attempt
    """
).bindparams(
    *(sa.bindparam(name, type_=_IDS) for name in ("ids", "sessions", "turns")),
    *(sa.bindparam(name, type_=_NUMBERS) for name in ("attempts", *TOKENS)),
    *(sa.bindparam(name, type_=_TEXTS) for name in ("states", "reasons", "messages")),
    sa.bindparam("costs", type_=ARRAY(sa.Double())),
)

# What the attempt came to adds up in its run, as at an end.
_QUEUE_AGAIN = sa.text(
    """
    UPDATE scheduler.runs AS r
    SET state = 'QUEUED', available_time = clock_timestamp() + w.pause,
        session_id = coalesce(a.session_id, r.session_id),
        failure_reason = a.failure_reason, failure_message = a.failure_message,
        input_tokens = r.input_tokens + a.input_tokens, output_tokens = r.output_tokens + a.output_tokens,
        cache_read_tokens = r.cache_read_tokens + a.cache_read_tokens,
        cache_write_tokens = r.cache_write_tokens + a.cache_write_tokens, cost_usd = r.cost_usd + a.cost_usd,
        lease_holder = NULL, lease_expire_time = NULL, update_time = clock_timestamp(), version = r.version + 1
    FROM unnest(:ids, :pauses) AS w(id, pause), scheduler.run_attempts AS a
    WHERE r.id = w.id AND a.run_id = r.id AND a.number = r.attempt RETURNING r.organization_id
    """
).bindparams(sa.bindparam("ids", type_=_IDS), sa.bindparam("pauses", type_=ARRAY(sa.Interval())))


async def record(connection: AsyncConnection, steps: Sequence[Progress]) -> list[Recorded]:
    """Records how far attempts have come, and what becomes of the runs of those that have ended.

    Locks the schedules of runs whose attempt has ended, then all runs that are still their holder's; the rest is
    written to those alone. It waits for no lock: of a process that stands still while it has a schedule, the runs of
    that schedule are waited for, and no others. Dying before the commit leaves every run as its lease says: whoever
    takes it over makes the same calls, and comes to the same end.

    Args:
        connection: A system transaction.
        steps: What is known, at most one for each claim.

    Returns:
        For each step the run's state now: QUEUED if another attempt follows; CANCELLED if one would and somebody has
        asked for the end. A run whose time is up before the pause is over ends as its attempt did. NOT_YET where
        somebody else has the run or its schedule locked, and None where another worker has the run, or it is gone.
    """
    over = [step for step in steps if step.outcome is not None]
    locked = await endings.lock_free_schedules(connection, [step.claim.run_id for step in over])
    free = [step for step in steps if step.outcome is None or step.claim.run_id not in locked]
    rows = await connection.execute(
        _LOCK_HELD, {**fences([step.claim for step in free]), "pauses": [step.pause for step in free]}
    )
    held = {(row.id, row.epoch): row for row in rows}
    mine = [step for step in free if (step.claim.run_id, step.claim.epoch) in held]
    states: dict[tuple[UUID, int], Recorded] = dict.fromkeys(held, RunState.RUNNING)
    if len(mine) < len(steps):
        # Those whose lease is lost are not among the rows that are locked: what is read here is newer than the lock.
        others = [step.claim for step in steps if (step.claim.run_id, step.claim.epoch) not in held]
        for row in await connection.execute(_STILL_HELD, fences(others)):
            states[row.id, row.epoch] = NOT_YET
    noted = [step for step in mine if step.outcome is None]
    if noted:
        await connection.execute(_NOTE, _known(noted))
    ended: list[Ending] = []
    again: list[tuple[UUID, timedelta]] = []
    over = [step for step in mine if step.outcome is not None]
    for step, outcome in [(step, step.outcome) for step in over if step.outcome is not None]:
        key = (step.claim.run_id, step.claim.epoch)
        row, pause = held[key], step.pause
        state = state_after(
            outcome, retries=pause is not None, in_time=bool(row.in_time), cancelled=row.cancelled
        )
        states[key] = state
        if state is RunState.QUEUED and pause is not None:
            again.append((step.claim.run_id, pause))
        else:
            ended.append(_ending(step, outcome, state))
    if over:
        await connection.execute(_END_ATTEMPTS, _known(over) | _outcomes(over))
    if again:
        ids, pauses = zip(*again, strict=True)
        queued = await connection.execute(_QUEUE_AGAIN, {"ids": ids, "pauses": pauses})
        # Before the pause is over too: whoever finds nothing is told until when to sleep.
        await facts.add_queued_of_each(connection, queued.scalars())
    await endings.end(connection, ended)
    return [states.get((step.claim.run_id, step.claim.epoch)) for step in steps]


def fences(claims: Sequence[Claim]) -> dict[str, list[Any]]:
    """What `FENCES` is bound to: the claims under which a worker writes."""
    return {
        "ids": [claim.run_id for claim in claims],
        "epochs": [claim.epoch for claim in claims],
        "holders": [claim.holder for claim in claims],
    }


def _known(steps: Sequence[Progress]) -> dict[str, list[Any]]:
    return {
        "ids": [step.claim.run_id for step in steps],
        "attempts": [step.claim.attempt for step in steps],
        "sessions": [step.session_id for step in steps],
        "turns": [step.turn_id for step in steps],
    }


def _outcomes(steps: Sequence[Progress]) -> dict[str, list[Any]]:
    outcomes = [step.outcome for step in steps if step.outcome is not None]
    return {
        "states": [outcome.state.value for outcome in outcomes],
        "reasons": [outcome.failure and outcome.failure.reason for outcome in outcomes],
        "messages": [outcome.failure and outcome.failure.message for outcome in outcomes],
        **{name: [getattr(outcome.usage, name) for outcome in outcomes] for name in TOKENS},
        "costs": [outcome.cost_usd for outcome in outcomes],
    }


def _ending(step: Progress, outcome: Outcome, state: RunState) -> Ending:
    return Ending(
        step.claim.run_id,
        state,
        session_id=step.session_id,
        result=outcome.result,
        structured_output_json=outcome.structured_output_json,
        failure=outcome.failure,
        usage=outcome.usage,
        cost_usd=outcome.cost_usd,
    )
