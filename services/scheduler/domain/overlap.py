"""What becomes of a fire while runs of earlier ones are open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

MAX_BUFFERED: Final = 100
"""How many runs a schedule may hold back; a fire beyond is skipped."""


class OverlapPolicy(StrEnum):
    """What a schedule does when it fires and a run of an earlier fire is open."""

    SKIP = "SKIP"
    """The fire makes no run."""
    BUFFER_ONE = "BUFFER_ONE"
    """One run waits until the open one is over; fires beyond it make none."""
    BUFFER_ALL = "BUFFER_ALL"
    """Runs wait, and follow one after another."""
    CANCEL_OTHER = "CANCEL_OTHER"
    """Open runs are asked to end; the new one waits for it. Runs that waited are skipped."""
    TERMINATE_OTHER = "TERMINATE_OTHER"
    """Open runs are asked to end, and the new one does not wait for it. Runs that waited are skipped."""
    ALLOW_ALL = "ALLOW_ALL"
    """Runs go side by side."""


ENDING_POLICIES: Final = frozenset({OverlapPolicy.CANCEL_OTHER, OverlapPolicy.TERMINATE_OTHER})
"""Those by which a fire ends other runs."""


class Outcome(StrEnum):
    """What becomes of a new fire; the names are those of the state that its run begins in."""

    START = "QUEUED"
    BUFFER = "PENDING"
    SKIP = "SKIPPED"


class SkipReason(StrEnum):
    """Why a run was skipped."""

    OVERLAP = "OVERLAP"
    """Another run was open, and the policy is SKIP."""
    BUFFER_FULL = "BUFFER_FULL"
    """As many runs as may wait did."""
    SUPERSEDED = "SUPERSEDED"
    """It waited, and a later fire took its place."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a fire, and of the runs before it.

    Attributes:
        outcome: What becomes of the fire.
        reason: Why it is skipped; None if it is not.
        cancel: Open runs that are to end: those that are queued at once, those that run are asked to.
        supersede: Waiting runs that are to be skipped, as SUPERSEDED.
    """

    outcome: Outcome
    reason: SkipReason | None = None
    cancel: tuple[UUID, ...] = ()
    supersede: tuple[UUID, ...] = ()


def decide(
    policy: OverlapPolicy,
    running: Sequence[UUID],
    queued: Sequence[UUID],
    buffered: Sequence[UUID],
    max_buffered: int = MAX_BUFFERED,
) -> Decision:
    """Decides about a new fire of a schedule.

    Args:
        policy: the schedule's, or the backfill's.
        running: its runs that a worker has.
        queued: its runs that no worker has yet.
        buffered: its runs that wait, in their order.
        max_buffered: how many may wait.
    """
    open_runs = (*running, *queued)
    busy = bool(open_runs or buffered)
    match policy:
        case OverlapPolicy.ALLOW_ALL:
            return Decision(Outcome.START)
        case OverlapPolicy.TERMINATE_OTHER:
            return Decision(Outcome.START, cancel=open_runs, supersede=tuple(buffered))
        case OverlapPolicy.CANCEL_OTHER:
            # What is queued is over as soon as it is cancelled: nothing is left to wait for.
            outcome = Outcome.BUFFER if running else Outcome.START
            return Decision(outcome, cancel=open_runs, supersede=tuple(buffered))
        case OverlapPolicy.SKIP:
            return Decision(Outcome.SKIP, SkipReason.OVERLAP) if busy else Decision(Outcome.START)
        case OverlapPolicy.BUFFER_ONE | OverlapPolicy.BUFFER_ALL:
            if not busy:
                return Decision(Outcome.START)
            places = min(1, max_buffered) if policy is OverlapPolicy.BUFFER_ONE else max_buffered
            if len(buffered) >= places:
                return Decision(Outcome.SKIP, SkipReason.BUFFER_FULL)
            return Decision(Outcome.BUFFER)


def promote(open_runs: Sequence[UUID], held_back: Sequence[tuple[UUID, OverlapPolicy]]) -> tuple[UUID, ...]:
    """Which runs of a schedule that wait may start now.

    Args:
        open_runs: its runs that are queued or running.
        held_back: its runs that wait, in their order, each with the policy of what made it: its backfill's, else its
            schedule's, which may be another one than when it began to wait.

    Returns:
        Those to start, in their order: one that may go beside others starts; another one only where nothing is open
        and nothing was started before it. Nobody overtakes: the first that has to wait keeps all behind it waiting.
    """
    started: list[UUID] = []
    for run, policy in held_back:
        if policy is not OverlapPolicy.ALLOW_ALL and (open_runs or started):
            break
        started.append(run)
    return tuple(started)
