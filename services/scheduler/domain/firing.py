"""What one look at a schedule, or at a backfill of one, comes to: the runs to make, those that give way, where it goes
on.

Pure: whoever looks holds the schedule's row locked, says what is open, and records all of it or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from services.scheduler.domain.backfills import Backfill
from services.scheduler.domain.catch_up import Fire, take_step
from services.scheduler.domain.fires import RunLimit
from services.scheduler.domain.overlap import MAX_BUFFERED, Outcome, OverlapPolicy, SkipReason, decide
from services.scheduler.domain.schedules import Schedule, ScheduleState, Standing
from services.scheduler.domain.states import RunState

FIRES_AT_ONCE: Final = 50
"""Of one schedule in one look: more of them are made in the next."""


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run of a schedule that is not over."""

    id: UUID
    state: RunState


@dataclass(frozen=True, slots=True)
class NewFireRun:
    """A run that a fire makes.

    Attributes:
        state: QUEUED, PENDING when it is held back, or a final one: SKIPPED with a reason, CANCELLED when a later fire
            of the same look ended it, FAILED when its prompt cannot be rendered.
    """

    id: UUID
    fire_time: datetime
    due_time: datetime
    state: RunState
    skip_reason: SkipReason | None = None


@dataclass(slots=True)
class FirePlan:
    """What fires come to.

    Attributes:
        runs: The runs to make, in their order.
        cancel: Runs that were open before and are to end.
        supersede: Runs that were held back before and are to be skipped.
    """

    runs: list[NewFireRun] = field(default_factory=list)
    cancel: list[UUID] = field(default_factory=list)
    supersede: list[UUID] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a schedule comes to.

    Attributes:
        plan: The runs.
        standing: Where the schedule stands afterwards.
        remaining_runs: How many fires it may still make; None for no limit.
        missed: How many fires were too late.
    """

    plan: FirePlan
    standing: Standing
    remaining_runs: int | None
    missed: int


@dataclass(frozen=True, slots=True)
class BackfillLook:
    """What one look at a backfill comes to.

    Attributes:
        plan: The runs.
        handled_until: The nominal time up to which its fires are made then.
        done: Whether all of them are.
        waits: Whether the next one waits until a run that is held back begins.
    """

    plan: FirePlan
    handled_until: datetime
    done: bool
    waits: bool


def look_at_schedule(
    schedule: Schedule,
    open_runs: Sequence[OpenRun],
    *,
    now: datetime,
    renders: bool,
    new_id: Callable[[], UUID],
    limit: int = FIRES_AT_ONCE,
) -> Look:
    """Decides what a schedule does now.

    Args:
        schedule: an ACTIVE one.
        open_runs: its runs that are not over, in their order.
        now: the instant, by the clock that all replicas go by.
        renders: whether its prompt can be rendered; if not, its runs fail, and no other gives way to them.
        new_id: names runs.
        limit: how many fires one look makes.

    Raises:
        ServiceError: INVALID_ARGUMENT: its timing means nothing any more; its zone is gone from the database of zones.
    """
    content, standing = schedule.content, schedule.standing
    remaining = RunLimit(content.remaining_runs)
    step = take_step(
        content.timing.spec(),
        str(schedule.id),
        handled_until=standing.handled_until,
        now=now,
        window=content.catch_up_window,
        limit=limit,
        remaining=remaining,
    )
    plan = _plan(content.overlap_policy, step.fires, open_runs, renders=renders, new_id=new_id)
    after = Standing(ScheduleState.ENDED, step.handled_until)
    if step.next_fire is not None:
        after = Standing(
            ScheduleState.ACTIVE, step.handled_until, step.next_fire.nominal_time, step.next_fire.due_time
        )
    return Look(plan, after, remaining.after(len(step.fires)).remaining, step.missed)


def look_at_backfill(
    schedule: Schedule,
    backfill: Backfill,
    open_runs: Sequence[OpenRun],
    *,
    now: datetime,
    renders: bool,
    new_id: Callable[[], UUID],
    limit: int = FIRES_AT_ONCE,
) -> BackfillLook:
    """Decides what a backfill does now; arguments and errors as for `look_at_schedule`.

    Where the policy lets all wait, no more fires are made than may; the next look makes more.
    """
    spec = schedule.content.timing.spec()
    found = spec.between(backfill.handled_until, backfill.end_time, limit + 1)
    places = limit
    if backfill.overlap_policy is OverlapPolicy.BUFFER_ALL and renders:
        held_back = sum(run.state is RunState.PENDING for run in open_runs)
        # One more may start at once where nothing is in its way.
        places = max(0, MAX_BUFFERED - held_back) + (0 if open_runs else 1)
    taken = found[: min(limit, places)]
    fires = [Fire(nominal, now) for nominal in taken]
    plan = _plan(backfill.overlap_policy, fires, open_runs, renders=renders, new_id=new_id)
    done = len(taken) == len(found)
    handled_until = backfill.end_time if done else (taken[-1] if taken else backfill.handled_until)
    return BackfillLook(plan, handled_until, done, waits=not done and places < limit)


def _plan(
    policy: OverlapPolicy,
    fires: Sequence[Fire],
    open_runs: Sequence[OpenRun],
    *,
    renders: bool,
    new_id: Callable[[], UUID],
) -> FirePlan:
    """Lets each fire meet what those before it have left open."""
    plan = FirePlan()
    made: dict[UUID, NewFireRun] = {}
    states = {run.id: run.state for run in open_runs}

    def in_state(state: RunState) -> list[UUID]:
        return [run_id for run_id, known in states.items() if known is state]

    for fire in fires:
        run = NewFireRun(new_id(), fire.nominal_time, fire.due_time, RunState.FAILED)
        made[run.id] = run
        if not renders:
            continue
        found = decide(
            policy, in_state(RunState.RUNNING), in_state(RunState.QUEUED), in_state(RunState.PENDING)
        )
        for other in found.cancel:
            if other in made:
                made[other] = replace(made[other], state=RunState.CANCELLED)
            elif other not in plan.cancel:
                plan.cancel.append(other)
        for other in found.supersede:
            if other in made:
                made[other] = replace(made[other], state=RunState.SKIPPED, skip_reason=SkipReason.SUPERSEDED)
            else:
                plan.supersede.append(other)
            del states[other]
        made[run.id] = replace(run, state=RunState(found.outcome.value), skip_reason=found.reason)
        if found.outcome is not Outcome.SKIP:
            states[run.id] = RunState(found.outcome.value)
    plan.runs = list(made.values())
    return plan
