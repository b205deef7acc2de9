"""Carries one run through one attempt: a session, a message, the end of its turn.

Each call to the session service has a request id that follows from run and attempt: a worker that takes a run over
makes the same calls, and finds the session and the turn that are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog

from services.kernel.clock import Clock
from services.kernel.errors import ErrorKind, ServiceError
from services.scheduler.domain.runs import (
    MAX_TURN_TIMEOUT,
    NO_BUDGET_LEFT,
    Claim,
    Failure,
    Outcome,
    TurnNow,
    TurnState,
    outcome_of,
    outcome_of_stopped,
    pause_after,
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
"""How long to try to stop the turn of a run that is to end, and to learn what it has come to; then the run ends without
that. The turn has a limit of its own."""
STOP_WAIT_SECONDS: Final = 4
"""The longest wait for its end in one call: so what it has spent is known, although its end be not."""
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
        # A session is recorded before anything is sent to it: whoever finds one does not know whether something was.
        self._sent = claim.session_id is not None
        self._turn = TurnNow(TurnState.OPEN)
        if claim.cancel_requested:
            self._cancelled.set()

    def cancel(self) -> None:
        """Somebody asks for the end of the run."""
        self._cancelled.set()

    async def drive(self) -> Outcome:
        """Goes to the end of the attempt and records it; returns what it came to.

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
        return outcome

    async def _attempt(self) -> Outcome:
        claim = self.claim
        if claim.cancel_requested or claim.seconds_left <= 0:
            return await self._stop()
        budget = claim.budget_left_usd
        if budget is not None and budget <= 0:
            return NO_BUDGET_LEFT
        try:
            async with asyncio.timeout(claim.seconds_left):
                over = await self._unless_cancelled(self._carry(budget))
        except TimeoutError:
            over = False
        except ServiceError as error:
            if error.kind in _PASSING:
                # Of the session service it would have been met with patience: it is of the scheduler's own database.
                raise
            _log.warning("refused by the session service", reason=error.reason, why=str(error))
            failure = Failure(error.reason, error.message)
            return Outcome(RunState.FAILED, failure=failure, final=error.kind not in _PERHAPS_PASSING)
        return outcome_of(self._turn, claim.content) if over else await self._stop()

    async def _unless_cancelled(self, work: Coroutine[None, None, None]) -> bool:
        """Does something, or puts it down where it stands when somebody asks for the end of the run; False then.

        A call that is put down may have been carried out: it is made again, or what it asked for is not needed.
        """
        working = asyncio.create_task(work)
        asked = asyncio.create_task(self._cancelled.wait())
        try:
            await asyncio.wait((working, asked), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
                return True
            return False
        finally:
            for task in (working, asked):
                task.cancel()
            await asyncio.gather(working, asked, return_exceptions=True)

    async def _carry(self, budget: float | None) -> None:
        """Makes sure that the session is there and the message is sent, and waits for the end of the turn."""
        claim = self.claim
        if self._session_id is None:
            new = self._new_session(budget)
            self._session_id = await self._patiently(
                lambda: self._sessions.create_session(self._owner, new, claim.request_id("session"))
            )
            # Before anything is sent to it: a session that its owner has deleted must not come again.
            await self._recorder.record(self._progress())
        session_id = self._session_id
        await self._wait_end(session_id, await self._send(session_id), WAIT_SECONDS)

    async def _send(self, session_id: UUID) -> UUID:
        """Sends the message, where its turn is not known yet; returns the turn."""
        if self._turn_id is None:
            claim = self.claim
            self._sent = True
            self._turn_id = await self._patiently(
                lambda: self._sessions.send_message(
                    self._owner, session_id, claim.content.prompt, claim.request_id("message")
                )
            )
            # Not waited for: a successor that does not find it sends the message again, and by the same request id is
            # told the same turn. The end says it too, and is written after it or with it.
            self._recorder.post(self._progress())
        return self._turn_id

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

    async def _wait_end(self, session_id: UUID, turn_id: UUID, seconds: int) -> None:
        while True:
            since = self._clock.monotonic()
            self._turn = await self._patiently(
                lambda: self._sessions.wait_turn(self._owner, session_id, turn_id, seconds)
            )
            if self._turn.state is not TurnState.OPEN:
                return
            await self._clock.sleep(LOOK_SECONDS - (self._clock.monotonic() - since))

    async def _stop(self) -> Outcome:
        """The run is to end: stops its turn, if it may have one, and takes what that has come to if it is told soon.

        Whether a message was sent whose answer is missing only the same call tells: the turn that it names is stopped.
        Where the session service stays away the run ends nevertheless, with what was known of its turn before.
        """
        if self._session_id is not None and self._sent:
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._interrupt(self._session_id)
            except (TimeoutError, ServiceError) as error:
                _log.warning("turn not stopped; it has a limit of its own", why=str(error))
        return outcome_of_stopped(self._turn, self.claim.content, cancelled=self._cancelled.is_set())

    async def _interrupt(self, session_id: UUID) -> None:
        turn_id = await self._send(session_id)
        request_id = self.claim.request_id("interrupt")
        await self._patiently(lambda: self._sessions.interrupt(self._owner, session_id, turn_id, request_id))
        await self._wait_end(session_id, turn_id, STOP_WAIT_SECONDS)

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


async def stop_turn(sessions: Sessions, claim: Claim) -> None:
    """Tries once to stop the turn of a run that is over already; the turn has a limit of its own.

    Args:
        sessions: Where it is.
        claim: The run, whose session and turn are known.
    """
    if claim.session_id is None or claim.turn_id is None:
        return
    owner = Owner(claim.user_id, claim.organization_id)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await sessions.interrupt(owner, claim.session_id, claim.turn_id, claim.request_id("interrupt"))
    except (TimeoutError, ServiceError) as error:
        _log.warning("turn not stopped; it has a limit of its own", run_id=str(claim.run_id), why=str(error))
