"""The states of a run, and the moves between them.

The names are those of the enum in `aiagent.scheduler.v1`; the database stores them as text.
"""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """Where a run stands."""

    PENDING = "PENDING"
    """Recorded, and held back by its schedule's overlap policy."""
    QUEUED = "QUEUED"
    """To be claimed by a worker, at once or when the pause before its next attempt is over."""
    RUNNING = "RUNNING"
    """Claimed by a worker, or by its successor when that one died."""
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"
    SKIPPED = "SKIPPED"
    """Recorded, and never to run: its schedule's overlap policy left no place for it."""

    @property
    def final(self) -> bool:
        """Whether the run is over."""
        return self in FINAL_RUN_STATES

    @property
    def open(self) -> bool:
        """Whether the run counts as another one to its schedule's overlap policy: it may run, or does."""
        return self in OPEN_RUN_STATES


FINAL_RUN_STATES = frozenset(
    {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT, RunState.SKIPPED}
)
OPEN_RUN_STATES = frozenset({RunState.QUEUED, RunState.RUNNING})
RETRYABLE_RUN_STATES = FINAL_RUN_STATES - {RunState.SUCCEEDED}
"""What somebody may have done again."""

FIRST_RUN_STATES = frozenset(
    {RunState.PENDING, RunState.QUEUED, RunState.SKIPPED, RunState.CANCELLED, RunState.FAILED}
)
"""In which a run may be made: as over where its schedule has no place for it, where a later fire of the same look ends
it, or where its prompt cannot be rendered."""

RUN_TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    RunState.PENDING: frozenset({RunState.QUEUED, RunState.CANCELLED, RunState.SKIPPED}),
    RunState.QUEUED: frozenset({RunState.RUNNING, RunState.CANCELLED}),
    RunState.RUNNING: frozenset(
        {RunState.QUEUED, RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT}
    ),
    **{state: frozenset() for state in FINAL_RUN_STATES},
}
"""Where a run may go. PENDING goes to QUEUED when its schedule has a place for it, to SKIPPED when a later fire takes
it; RUNNING goes back to QUEUED when an attempt failed and another one is due. A run whose worker died stays RUNNING.

The moves themselves are SQL, each with the state that it begins from in its condition: the integration tests have
PostgreSQL refuse every move that is not in here, and see every one that is."""
