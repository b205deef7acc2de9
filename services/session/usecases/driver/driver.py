"""Drives one session under its lease, turn after turn, until nothing is left to do.

What may die, and what happens then:

* This process, anywhere: the lease runs out, a successor takes it, finds the attempt stored with the turn and attaches
  to it after `applied_offset`. Decisions that were committed but perhaps not sent are sent again.
* The executor: its restart (another incarnation), its word that it does not know the attempt, or 17 s without a
  heartbeat prove that the attempt is gone; then there is another one, from the transcript. An attempt whose items the
  log has lost (a failover, a restore) is stopped and waited out first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import structlog

from services.kernel.clock import Clock
from services.kernel.context import name_work
from services.kernel.errors import ErrorKind, ServiceError
from services.session.domain import events
from services.session.domain.driving import (
    HEARTBEAT_GRACE,
    Changes,
    DrivenSession,
    DrivenTurn,
    ToolCallUpdate,
    Work,
)
from services.session.domain.entities import Failure, Lease, LogEvent
from services.session.domain.errors import LeaseLost, TurnMoved
from services.session.domain.states import PermissionRequestState, ToolCallState, TurnState
from services.session.domain.turn_items import (
    AttemptKey,
    AttemptPlan,
    EarlierDecision,
    ExecutorInfo,
    FinishedCall,
    TurnItem,
)
from services.session.usecases.driver.attempt import Attempt
from services.session.usecases.driver.breaking import AHEAD, GONE, NO_ROOM, cause_of
from services.session.usecases.driver.decisions import Decider, Verdicts, decision_of, expire
from services.session.usecases.driver.ending import end_turn, lose_attempt
from services.session.usecases.driver.placement import Room, Search
from services.session.usecases.driver.runner import AttemptRunner, DriverPorts
from services.session.usecases.ports import BlobStorePort, WorkspaceStorePort

_log = structlog.get_logger(__name__)

RETRY_SECONDS = 0.5
"""Between two tries to reach an executor, and between two looks at a turn that waits for a person."""
LOOK_SECONDS = 5.0
"""At most this long between two looks for commands; the pool wakes the driver within a second of one."""
TOLD_CHARACTERS = 2000
"""Of the result of a call that an earlier attempt has made: enough to go on with."""


class SessionDriver:
    """Drives one session."""

    def __init__(
        self,
        ports: DriverPorts,
        lease: Lease,
        *,
        clock: Clock,
        workspaces: WorkspaceStorePort,
        blobs: BlobStorePort,
        hold_seconds: float,
        room: Room,
    ) -> None:
        """Takes up a session.

        Args:
            ports: What drivers work with.
            lease: The lease, just taken.
            clock: For waiting.
            workspaces: The sessions' directories.
            blobs: The sessions' large texts.
            hold_seconds: How long a process is held while a person is asked; then the turn is parked.
            room: Where it waits for a place on an executor.
        """
        self.lease = lease
        self._ports = ports
        self._clock = clock
        self._workspaces = workspaces
        self._blobs = blobs
        self._hold_seconds = hold_seconds
        self._search = Search(room, clock)
        self._decider = Decider(ports.ids, workspaces)
        self._woken = asyncio.Event()
        self.attempt: Attempt | None = None

    def wake(self) -> None:
        """Makes the driver look for commands: an interrupt, an answer, a new turn, a deletion."""
        self._woken.set()

    @property
    def woken(self) -> bool:
        """Whether it was woken and has not looked since."""
        return self._woken.is_set()

    async def drive(self) -> None:
        """Works until the session has nothing to do and its lease is given back.

        Raises:
            LeaseLost: The lease is another's by now.
        """
        while True:
            self._woken.clear()
            work = await self._ports.store.work(self.lease)
            if work is None:
                if await self._ports.store.release_if_idle(self.lease):
                    return
                continue
            if work.session.deleted:
                await self._remove(work)
                return
            if work.turn is not None:
                try:
                    await self._advance(work.session, work.turn, work.now)
                except TurnMoved as moved:
                    _log.info("looking again", why=str(moved))

    async def _advance(self, session: DrivenSession, turn: DrivenTurn, now: datetime) -> None:
        """Takes a turn one step: follows its attempt, starts one, or ends it."""
        name_work(request=turn.correlation, session_id=str(session.id), turn_id=str(turn.id))
        key = turn.key(session.id)
        if key is not None:
            await self._reattach(session, turn, key, now)
        elif turn.interrupt_time is not None:
            await self._end(session, turn, TurnState.INTERRUPTED, None)
        elif turn.active_time(now) >= session.turn_timeout:
            await self._end(session, turn, TurnState.TIMED_OUT, None)
        elif session.budget_left_usd is not None and session.budget_left_usd <= 0:
            spent = Failure("BUDGET_EXCEEDED", "the session has spent its budget")
            await self._end(session, turn, TurnState.BUDGET_EXCEEDED, spent)
        elif turn.parked and not await self._may_resume(session, turn):
            return
        else:
            await self._start(session, turn, now)

    async def _end(
        self, session: DrivenSession, turn: DrivenTurn, state: TurnState, failure: Failure | None
    ) -> None:
        changes = Changes()
        async with self._ports.store.fenced(self.lease) as transaction:
            await transaction.confirm(turn)
            await end_turn(session, turn, state, failure, changes, transaction)
            written = await transaction.write(turn, changes, expected_offset=turn.applied_offset)
        await self._ports.feed.publish_events(session.id, written)

    async def _may_resume(self, session: DrivenSession, turn: DrivenTurn) -> bool:
        """Lets questions of a parked turn expire; tells whether all of them have found their end."""
        changes = Changes()
        async with self._ports.store.fenced(self.lease) as transaction:
            answers = expire(await transaction.answers(turn.id), turn.id, changes, transaction)
            written = await transaction.write(turn, changes, expected_offset=turn.applied_offset)
        await self._ports.feed.publish_events(session.id, written)
        if any(answer.state is PermissionRequestState.PENDING for answer in answers):
            await self._pause()
            return False
        return True

    async def _pause(self) -> None:
        """Waits for a command, but not long."""
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                await self._woken.wait()
        except TimeoutError:
            return

    # Starting

    async def _start(self, session: DrivenSession, turn: DrivenTurn, now: datetime) -> None:
        executors = await self._ports.executors.list_executors()
        chosen = self._search.choose(executors, session, turn)
        if chosen is None:
            await self._search.wait(self._woken, background=session.background)
            return
        plan, attempt = await self._plan(session, turn, chosen, now)
        self.attempt = attempt
        await self._follow(attempt, self._ports.executors.run(attempt.key, self.lease.epoch, plan))

    async def _plan(
        self, session: DrivenSession, turn: DrivenTurn, chosen: ExecutorInfo, now: datetime
    ) -> tuple[AttemptPlan, Attempt]:
        """Stores the new attempt and its executor, before the executor is first called."""
        left = session.turn_timeout - turn.active_time(now)
        changes = Changes()
        async with self._ports.store.fenced(self.lease) as transaction:
            await transaction.confirm(turn)
            possibly_run = []
            for call in await transaction.open_calls(turn.id):
                use, running = call.tool_use, call.state is ToolCallState.RUNNING
                if running:
                    possibly_run.append((use.tool_name, use.input_json))
                state = ToolCallState.POSSIBLY_RUN if running else ToolCallState.ABANDONED
                changes.tool_call_updates.append(
                    ToolCallUpdate(call.attempt, use.tool_use_id, state, ended=True)
                )
            earlier = [
                (answer.tool_name, answer.input, decision_of(answer))
                for answer in await transaction.answers(turn.id)
                if answer.state is not PermissionRequestState.PENDING
            ]
            position = await transaction.transcript_position()
            finished = await transaction.finished_calls(turn.id)
            changes.move_turn(session, turn, TurnState.STARTING, transaction.now)
            expected_offset, turn.applied_offset = turn.applied_offset, 0
            turn.attempt += 1
            turn.parked = False
            turn.executor_id = chosen.executor_id
            turn.executor_target = chosen.target
            turn.executor_incarnation = chosen.incarnation
            turn.heartbeat_time = transaction.now
            if turn.start_time is None:
                turn.start_time = transaction.now
                changes.count("turns")
            changes.turn |= {
                "attempt": turn.attempt,
                "applied_offset": 0,
                "parked": False,
                "executor_id": turn.executor_id,
                "executor_target": turn.executor_target,
                "executor_incarnation": turn.executor_incarnation,
                "heartbeat_time": turn.heartbeat_time,
                "start_time": turn.start_time,
            }
            changes.session |= {"current_turn_id": turn.id}
            changes.add(events.AttemptStarted(turn.attempt, chosen.executor_id), turn.id)
            written = await transaction.write(turn, changes, expected_offset=expected_offset)
        await self._ports.feed.publish_events(session.id, written)
        read = self._ports.contents.read
        plan = AttemptPlan(
            options=dict(session.sdk_options),
            prompt=await read(session.id, turn.message),
            prompt_id=turn.message_id,
            cli_session_id=session.cli_session_id,
            timeout_seconds=left.total_seconds(),
            budget_usd=session.budget_left_usd or 0.0,
            organization_id=session.organization_id,
            earlier_decisions=tuple(
                [
                    EarlierDecision(name, await read(session.id, text), decision.allowed, decision.reason)
                    for name, text, decision in earlier
                ]
            ),
            possibly_run=tuple([(name, await read(session.id, text)) for name, text in possibly_run]),
            transcript_position=position,
            background=session.background,
            finished_calls=tuple(
                [
                    FinishedCall(
                        call.tool_use_id,
                        call.tool_name,
                        await read(session.id, call.input_json),
                        (await read(session.id, result))[:TOLD_CHARACTERS],
                    )
                    for call, result in finished
                ]
            ),
        )
        key = turn.key(session.id)
        if key is None:
            raise AssertionError("a started attempt names its executor")
        return plan, Attempt(session, turn, key, self.lease, last_sequence=written[-1].sequence)

    # Following

    async def _reattach(
        self, session: DrivenSession, turn: DrivenTurn, key: AttemptKey, now: datetime
    ) -> None:
        attempt = self.attempt = Attempt(session, turn, key, self.lease)
        try:
            await self._recall(attempt)
        except ServiceError as error:
            # Not followed without its decisions: an agent that waits for one would wait for ever.
            self.attempt = None
            await self._broken(key, error)
            return
        stream = self._ports.executors.attach(key, self.lease.epoch, turn.applied_offset)
        await self._follow(attempt, stream)

    async def _recall(self, attempt: Attempt) -> None:
        """Learns from the log what has become of an attempt, whoever drove it, and sends its decisions once more."""
        verdicts = Verdicts()
        async with self._ports.store.fenced(self.lease) as transaction:
            attempt.last_sequence = transaction.last_sequence
            for call in await transaction.calls_of(attempt.turn.id, attempt.key.attempt):
                attempt.know(call.tool_use, call.state)
                if call.decision_allowed is not None and not call.ended:
                    verdicts.decided.append((call.tool_use, call.decision_allowed, call.decision_reason))
            # Where the hold is over the agent may have been told to park: then an answer is for the next attempt.
            held_since = transaction.now - timedelta(seconds=self._hold_seconds)
            answers = await transaction.answers(attempt.turn.id)
            attempt.parking = any(attempt.waits_for(one) and one.ask_time <= held_since for one in answers)
        await AttemptRunner(self._ports, self._decider, attempt).send(verdicts)

    async def _follow(self, attempt: Attempt, stream: AsyncGenerator[Sequence[TurnItem]]) -> None:
        runner = AttemptRunner(self._ports, self._decider, attempt)
        broken: ServiceError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                commands = group.create_task(self._obey(runner))
                try:
                    await runner.follow(stream)
                finally:
                    commands.cancel()
        except ExceptionGroup as failures:
            broken = cause_of(failures, asyncio.current_task())
        finally:
            # Without heartbeats the executor ends the attempt by itself: so long as nobody follows it, none is sent.
            attempt.connected = False
        self.attempt = None
        if attempt.outcome is not None:
            self._search.left()
        if broken is not None:
            await self._broken(attempt.key, broken)
        elif attempt.outcome is None:
            await self._pause()

    async def _broken(self, key: AttemptKey, error: ServiceError) -> None:
        """The stream could not be had, or broke, or a transaction failed: looks at what that proves."""
        work = await self._ports.store.work(self.lease)
        if work is None or work.turn is None or work.turn.key(work.session.id) != key:
            return
        session, turn = work.session, work.turn
        _log.info("item stream broke", reason=error.reason, message=error.message)
        if error.reason == "LEASE_EPOCH_STALE":
            raise LeaseLost(f"the executor has seen a higher epoch than {self.lease.epoch}")
        if error.reason in NO_ROOM and turn.state is TurnState.STARTING and turn.applied_offset == 0:
            await self._unplace(session, turn)
            await self._search.wait(self._woken, background=session.background)
            return
        if error.reason == AHEAD:
            await self._outwait(turn, key)
        proof = error.reason in GONE or error.reason == AHEAD
        if not proof and error.kind in (ErrorKind.INVALID_ARGUMENT, ErrorKind.FAILED_PRECONDITION):
            refused = Failure("EXECUTOR_REFUSED", f"the executor refused the turn: {error.message}")
            await self._end(session, turn, TurnState.FAILED, refused)
            return
        if proof or await self._silent(turn):
            changes = Changes()
            async with self._ports.store.fenced(self.lease) as transaction:
                await transaction.refresh(turn)
                offset = turn.applied_offset
                if turn.interrupt_time is not None:
                    await end_turn(session, turn, TurnState.INTERRUPTED, None, changes, transaction)
                else:
                    gone = Failure("EXECUTOR_LOST", "the executor that ran the turn is gone")
                    await lose_attempt(session, turn, gone, changes, transaction)
                written = await transaction.write(turn, changes, expected_offset=offset)
            await self._ports.feed.publish_events(session.id, written)
            return
        await self._pause()

    async def _outwait(self, turn: DrivenTurn, key: AttemptKey) -> None:
        """Stops an attempt whose items are lost, and waits until it has certainly ended, heard or not."""
        async with self._ports.store.fenced(self.lease) as transaction:
            # It was heard just now, whatever the log says.
            stopped = Changes(turn={"heartbeat_time": transaction.now})
            await transaction.write(turn, stopped, expected_offset=turn.applied_offset)
        while not await self._silent(turn):
            self._woken.clear()
            with suppress(ServiceError):
                await self._ports.executors.interrupt(key, self.lease.epoch, park=False)
            await self._pause()

    async def _silent(self, turn: DrivenTurn) -> bool:
        """Whether the executor has been without a heartbeat for so long that it has ended the attempt."""
        async with self._ports.store.fenced(self.lease) as transaction:
            await transaction.refresh(turn)
            last = turn.heartbeat_time or transaction.now - HEARTBEAT_GRACE
            return transaction.now - last >= HEARTBEAT_GRACE

    async def _unplace(self, session: DrivenSession, turn: DrivenTurn) -> None:
        """The executor had no room after all: the turn is queued again, and the attempt never was."""
        changes = Changes()
        async with self._ports.store.fenced(self.lease) as transaction:
            changes.move_turn(session, turn, TurnState.QUEUED, transaction.now)
            turn.executor_incarnation = None
            changes.turn["executor_incarnation"] = None
            written = await transaction.write(turn, changes, expected_offset=turn.applied_offset)
        await self._ports.feed.publish_events(session.id, written)

    # Commands

    async def _obey(self, runner: AttemptRunner) -> None:
        """Looks for commands whenever it is woken, and keeps the turn's and the hold's time."""
        attempt = runner.attempt
        while True:
            self._woken.clear()
            turn_left, hold_left = await self._look(runner)
            if hold_left <= 0:
                attempt.parking = True
                await self._ports.executors.interrupt(attempt.key, self.lease.epoch, park=True)
            try:
                # When a time is up, and for one that is up already every half second.
                async with asyncio.timeout(max(RETRY_SECONDS, min(LOOK_SECONDS, turn_left, hold_left))):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _look(self, runner: AttemptRunner) -> tuple[float, float]:
        """Carries out what has been asked for; returns how many seconds are left of the turn's time, and of the hold's.

        An interrupt is sent at every look until the attempt has ended: one that overtook the attempt's start on its
        way to the executor was lost. The hold begins with the first question that the agent waits with, whoever drove
        it then: it is `_recall`'s rule, too.
        """
        attempt, turn = runner.attempt, runner.attempt.turn
        changes, verdicts = Changes(), Verdicts()
        written: list[LogEvent] = []
        hold_left = self._hold_seconds
        async with attempt.lock, self._ports.store.fenced(self.lease) as transaction:
            await transaction.refresh(turn)
            left = (attempt.session.turn_timeout - turn.active_time(transaction.now)).total_seconds()
            # An answer to an agent that is gone, or will be, is for the next attempt.
            waits = turn.state is TurnState.WAITING and attempt.outcome is None
            if waits and attempt.parking:
                hold_left = 0.0
            elif waits and turn.interrupt_time is None:
                since = await self._decider.settle(attempt, changes, verdicts, transaction)
                if since is not None:
                    hold_left -= (transaction.now - since).total_seconds()
            if changes.drafts:
                written = await transaction.write(turn, changes, expected_offset=turn.applied_offset)
        await runner.publish(written)
        await runner.send(verdicts)
        if turn.interrupt_time is not None or left <= 0:
            attempt.interrupted = True
            attempt.timed_out = turn.interrupt_time is None
            await self._ports.executors.interrupt(attempt.key, self.lease.epoch, park=False)
        return left, hold_left

    # Removal

    async def _remove(self, work: Work) -> None:
        """Removes a deleted session: what runs, its files, then its rows. Each step may be repeated."""
        session_id = work.session.id
        ran_on = await self._ports.store.executor_targets(session_id)
        await self._ports.executors.forget(session_id, self.lease.epoch, ran_on)
        await self._workspaces.delete(session_id)
        await self._blobs.delete_session(session_id)
        await self._ports.store.purge(self.lease)
