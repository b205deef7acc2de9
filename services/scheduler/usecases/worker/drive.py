"""Carries one run through one attempt: a session, a message, the end of its turn.

Each call to the session service has a request id that follows from run and attempt: a worker that takes a run over
makes the same calls, and finds the session and the turn that are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog

from services.kernel.clock import Clock
from services.kernel.errors import ErrorKind, ServiceError
from services.scheduler.domain.runs import (
    CANCELLED,
    MAX_TURN_TIMEOUT,
    NO_BUDGET_LEFT,
    Claim,
    Failure,
    Outcome,
    TurnNow,
    TurnState,
    outcome_of,
    pause_after,
    timed_out,
)
from services.scheduler.domain.states import RunState
from services.scheduler.usecases.worker.ports import NewSession, Owner, Progress, Sessions
from services.scheduler.usecases.worker.recorder import Recorder

_log = structlog.get_logger(__name__)

WAIT_SECONDS: Final = 30
"""The longest wait for a turn in one call."""
LOOK_SECONDS: Final = 1.0
"""Between two looks at a turn, where the call that waits returns early: a person is asked, or a replica leaves."""
STOP_SECONDS: Final = 15.0
"""How long to try to stop the turn of a run whose time is up; the turn has a limit of its own."""
MAX_PAUSE_SECONDS: Final = 5.0
"""Between two tries of a call."""
_PASSING = frozenset(
    {
        ErrorKind.UNAVAILABLE,
        ErrorKind.DEADLINE_EXCEEDED,
        ErrorKind.RESOURCE_EXHAUSTED,
        ErrorKind.ABORTED,
        ErrorKind.CANCELLED,
    }
)
# Worth an attempt of its own; any other refusal would be met by every attempt.
_PERHAPS_PASSING = frozenset({ErrorKind.INTERNAL, ErrorKind.UNAUTHENTICATED})


class RunDrive:
    """One attempt, in the hands of one worker."""

    def __init__(
        self,
        claim: Claim,
        recorder: Recorder,
        sessions: Sessions,
        clock: Clock,
        draw: Callable[[], float],
        on_over: Callable[[], None],
    ) -> None:
        """Composes the drive.

        Args:
            claim: The run.
            recorder: Writes what is known of it.
            sessions: Where it is carried out.
            clock: For waiting.
            draw: A source of chance, 0 to 1 without 1.
            on_over: Called once the attempt is over, before that is recorded.
        """
        self.claim = claim
        self.over = False
        self._on_over = on_over
        self._recorder = recorder
        self._sessions = sessions
        self._clock = clock
        self._draw = draw
        self._owner = Owner(claim.user_id, claim.organization_id)
        self._cancelled = asyncio.Event()
        self._session_id = claim.session_id
        self._turn_id = claim.turn_id
        if claim.cancel_requested:
            self._cancelled.set()

    def cancel(self) -> None:
        """Somebody asks for the end of the run."""
        self._cancelled.set()

    async def drive(self) -> RunState:
        """Goes to the end of the attempt and records it; returns the run's state then.

        Raises:
            LeaseLost: another worker has the run.
            ServiceError: UNAVAILABLE: the database is away. The lease runs out; the run is taken over.
        """
        outcome = await self._attempt()
        self.over = True
        self._on_over()
        state = await self._recorder.record(
            self._progress(outcome, pause_after(self.claim, outcome, self._draw))
        )
        _log.info(
            "attempt ended",
            attempt=self.claim.attempt,
            outcome=outcome.state.value,
            reason=outcome.failure.reason if outcome.failure else "",
            run_state=state.value,
        )
        return state

    async def _attempt(self) -> Outcome:
        claim = self.claim
        if not claim.taken_over:
            # Nothing was begun.
            if claim.cancel_requested:
                return CANCELLED
            if claim.seconds_left <= 0:
                return timed_out(claim.content)
        budget = claim.budget_left_usd
        if budget is not None and budget <= 0:
            return NO_BUDGET_LEFT
        try:
            async with asyncio.timeout(max(0.0, claim.seconds_left)):
                await self._begin(budget)
                turn = await self._follow()
        except TimeoutError:
            return await self._stop_late()
        except ServiceError as error:
            if error.kind in _PASSING:
                # Of the session service it would have been met with patience: it is of the scheduler's own database.
                raise
            _log.warning("refused by the session service", reason=error.reason, why=str(error))
            failure = Failure(error.reason, error.message)
            return Outcome(RunState.FAILED, failure=failure, final=error.kind not in _PERHAPS_PASSING)
        return outcome_of(turn, claim.content)

    async def _begin(self, budget: float | None) -> None:
        """Makes sure that the session is there and the message is sent."""
        claim = self.claim
        if self._session_id is None:
            new = self._new_session(budget)
            self._session_id = await self._patiently(
                lambda: self._sessions.create_session(self._owner, new, claim.request_id("session"))
            )
            # Before anything is sent to it: a session that its owner has deleted must not come again.
            await self._recorder.record(self._progress())
        if self._turn_id is None:
            session_id = self._session_id
            self._turn_id = await self._patiently(
                lambda: self._sessions.send_message(
                    self._owner, session_id, claim.content.prompt, claim.request_id("message")
                )
            )
            # Not waited for: a successor that does not find it sends the message again, and by the same request id is
            # told the same turn. The end says it too, and is written after it or with it.
            self._recorder.post(self._progress())

    def _progress(self, outcome: Outcome | None = None, pause: timedelta | None = None) -> Progress:
        return Progress(self.claim, self._session_id, self._turn_id, outcome, pause)

    def _new_session(self, budget: float | None) -> NewSession:
        # Nothing of it may depend on who makes the call, or when: a repeated request must be the same.
        content = self.claim.content
        options = dict(content.sdk_options)
        if budget is not None:
            own = options.get("max_budget_usd") or budget
            options["max_budget_usd"] = min(own, budget)
        limit = min(MAX_TURN_TIMEOUT, max(content.run_timeout, timedelta(seconds=1)))
        return NewSession(content.name, options, content.labels, limit)

    async def _follow(self) -> TurnNow:
        """Waits for the end of the turn, and stops it when somebody asks for the end of the run."""
        waiting = asyncio.create_task(self._wait_end())
        asked = asyncio.create_task(self._cancelled.wait())
        try:
            await asyncio.wait((waiting, asked), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                await self._patiently(self._interrupt)
            return await waiting
        finally:
            for task in (waiting, asked):
                task.cancel()
            await asyncio.gather(waiting, asked, return_exceptions=True)

    async def _wait_end(self) -> TurnNow:
        session_id, turn_id = self._begun()
        while True:
            since = self._clock.monotonic()
            turn = await self._patiently(
                lambda: self._sessions.wait_turn(self._owner, session_id, turn_id, WAIT_SECONDS)
            )
            if turn.state is not TurnState.OPEN:
                return turn
            await self._clock.sleep(LOOK_SECONDS - (self._clock.monotonic() - since))

    async def _interrupt(self) -> None:
        session_id, turn_id = self._begun()
        await self._sessions.interrupt(self._owner, session_id, turn_id, self.claim.request_id("interrupt"))

    async def _stop_late(self) -> Outcome:
        """The time is up: stops the turn, and takes what it has come to if that is told soon."""
        turn = TurnNow(TurnState.OPEN)
        if self._turn_id is not None:
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._patiently(self._interrupt)
                    turn = await self._wait_end()
            except (TimeoutError, ServiceError) as error:
                _log.warning("turn not stopped; it has a limit of its own", why=str(error))
        if turn.state is TurnState.SUCCEEDED:
            return outcome_of(turn, self.claim.content)
        late = timed_out(self.claim.content)
        return Outcome(
            RunState.CANCELLED if self._cancelled.is_set() else late.state,
            failure=None if self._cancelled.is_set() else late.failure,
            usage=turn.usage,
            cost_usd=turn.cost_usd,
        )

    def _begun(self) -> tuple[UUID, UUID]:
        if self._session_id is None or self._turn_id is None:
            raise AssertionError("nothing was begun")
        return self._session_id, self._turn_id

    async def _patiently[T](self, call: Callable[[], Awaitable[T]]) -> T:
        """Makes a call again while trying again may help; it has a request id, or changes nothing."""
        pause = 0.1
        while True:
            try:
                return await call()
            except ServiceError as error:
                if error.kind not in _PASSING:
                    raise
                _log.info("session service does not answer", reason=error.reason, why=str(error))
            await self._clock.sleep(pause * (0.5 + self._draw() / 2))
            pause = min(MAX_PAUSE_SECONDS, pause * 2)
