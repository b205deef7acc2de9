"""Runs attempts on live agents: fencing, places, time limits, and the end of what nobody drives any more."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog

from services.executor.domain import errors
from services.executor.domain.items import AttemptEnded, Decision, Outcome
from services.executor.usecases.attempt import Attempt
from services.executor.usecases.ports import Agent, AgentDied, AgentFactory, TurnRequest
from services.kernel.clock import Clock
from services.kernel.context import detached
from services.kernel.errors import ServiceError

_log = structlog.get_logger(__name__)

DRIVER_SILENCE_SECONDS = 15.0
"""An attempt without a sign of life of its driver is ended after so long. Drivers wait 16 s before another one."""
TIMEOUT_GRACE_SECONDS = 5.0
"""How much longer than its limit a turn may take here: its driver, who sees the other attempts too, comes first."""
STOP_SECONDS = 1.2
"""How long an agent may take to stop by itself before it is killed."""
STARTS_AT_ONCE = 2
"""A start costs half a second of a core: more at once make all of them slow."""
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Fence:
    """Which attempt a call is about, and the epoch that proves the right to it."""

    session_id: UUID
    turn_id: UUID
    attempt: int
    lease_epoch: int
    incarnation: UUID


@dataclass(slots=True)
class _Live:
    agent: Agent
    attempt: Attempt | None
    idle_since: float


class Turns:
    """All attempts and live agents of this executor."""

    def __init__(
        self,
        factory: AgentFactory,
        *,
        incarnation: UUID,
        clock: Clock,
        max_live_clients: int,
        idle_seconds: float,
    ) -> None:
        """Composes it.

        Args:
            factory: Makes agents.
            incarnation: This process's own id.
            clock: For its times.
            max_live_clients: Agents that may live at once.
            idle_seconds: How long an idle one is kept.
        """
        self._factory = factory
        self.incarnation = incarnation
        self._clock = clock
        self.max_live_clients = max_live_clients
        self._idle_seconds = idle_seconds
        self._live: dict[UUID, _Live] = {}
        self._attempts: dict[tuple[UUID, int], Attempt] = {}
        self._barred: OrderedDict[tuple[UUID, int], None] = OrderedDict()
        self._epochs: OrderedDict[UUID, int] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE)
        self._draining = False

    # Fencing

    def _check(self, fence: Fence) -> None:
        if fence.incarnation != self.incarnation:
            raise errors.incarnation_mismatch()
        self._check_epoch(fence.session_id, fence.lease_epoch)

    def _check_epoch(self, session_id: UUID, lease_epoch: int) -> None:
        seen = self._epochs.get(session_id, 0)
        if lease_epoch < seen:
            raise errors.lease_epoch_stale(lease_epoch, seen)
        self._epochs[session_id] = lease_epoch
        self._epochs.move_to_end(session_id)
        if len(self._epochs) > _REMEMBERED:
            self._epochs.popitem(last=False)

    def _bar(self, key: tuple[UUID, int]) -> None:
        self._barred[key] = None
        if len(self._barred) > _REMEMBERED:
            self._barred.popitem(last=False)

    def _find(self, fence: Fence) -> Attempt:
        self._check(fence)
        attempt = self._attempts.get((fence.turn_id, fence.attempt))
        if attempt is None:
            raise errors.attempt_unknown(fence.attempt)
        return attempt

    # Calls

    def begin(self, fence: Fence, request: TurnRequest) -> Attempt:
        """Takes a turn; one that runs already is simply returned.

        Raises:
            ServiceError: as documented at ExecutorService.RunTurn.
        """
        self._check(fence)
        key = (fence.turn_id, fence.attempt)
        known = self._attempts.get(key)
        if known is not None:
            return known
        if key in self._barred:
            raise errors.attempt_barred()
        if self._draining:
            raise errors.draining()
        place, reused, replaced = self._place(request)
        self._bar(key)
        attempt = self._attempts[key] = Attempt(request, self._clock)
        place.attempt = attempt
        task = asyncio.create_task(
            self._run(place, attempt, reused, replaced), name=f"turn-{request.turn_id}", context=detached()
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return attempt

    def _place(self, request: TurnRequest) -> tuple[_Live, bool, list[Agent]]:
        """Finds a place for the turn's agent; returns it, whether its agent goes on, and agents to end before."""
        replaced: list[Agent] = []
        live = self._live.get(request.session_id)
        if live is not None:
            if live.attempt is not None:
                # Another attempt of the session is still ending: its place is not free before it has.
                raise errors.executor_full(self.max_live_clients)
            if live.agent.alive and live.agent.fits(request):
                return live, True, replaced
            replaced.append(live.agent)
            del self._live[request.session_id]
        elif len(self._live) >= self.max_live_clients:
            idle = [
                (place.idle_since, session_id)
                for session_id, place in self._live.items()
                if place.attempt is None
            ]
            if not idle:
                raise errors.executor_full(self.max_live_clients)
            replaced.append(self._live.pop(min(idle)[1]).agent)
        place = self._live[request.session_id] = _Live(
            self._factory.make(request.session_id), None, self._clock.monotonic()
        )
        return place, False, replaced

    def known(self, fence: Fence) -> Attempt:
        """Finds an attempt, or bars it for good.

        Raises:
            ServiceError: as documented at ExecutorService.AttachTurn.
        """
        try:
            return self._find(fence)
        except ServiceError as error:
            if error.reason == "ATTEMPT_UNKNOWN":
                self._bar((fence.turn_id, fence.attempt))
            raise

    def acknowledge(self, fence: Fence, offset: int) -> None:
        """Forgets items, and the attempt with its last one."""
        attempt = self._find(fence)
        attempt.acknowledge(offset)
        if attempt.settled:
            del self._attempts[(fence.turn_id, fence.attempt)]

    def decide(self, fence: Fence, tool_use_id: str, decision: Decision) -> None:
        """Answers a waiting agent."""
        self._find(fence).decide(tool_use_id, decision)

    def heartbeat(self, fence: Fence) -> None:
        """The driver lives."""
        self._find(fence).hear()

    def interrupt(self, fence: Fence, *, park: bool) -> None:
        """Stops an attempt; the first word on how to call its end counts, but an interrupt beats parking."""
        attempt = self._find(fence)
        if attempt.ended:
            return
        wanted = Outcome.PARKED if park else Outcome.INTERRUPTED
        if attempt.stopping is None or (attempt.stopping == Outcome.PARKED and not park):
            first = attempt.stopping is None
            attempt.stopping = wanted
            if first:
                self._spawn(self._stop(attempt))

    async def forget(self, session_id: UUID, lease_epoch: int) -> None:
        """Ends a session's agent and removes its private files."""
        self._check_epoch(session_id, lease_epoch)
        live = self._live.pop(session_id, None)
        if live is not None:
            if live.attempt is not None:
                live.attempt.stopping = Outcome.INTERRUPTED
                live.attempt.deny_all("the session was deleted")
            await live.agent.stop()
        for key, attempt in list(self._attempts.items()):
            if attempt.request.session_id == session_id:
                await attempt.emit(AttemptEnded(Outcome.INTERRUPTED))
                del self._attempts[key]
        await self._factory.forget(session_id)

    def counts(self) -> tuple[int, int, list[UUID]]:
        """Live agents, those in a turn, and the sessions whose agent is idle."""
        idle = [session_id for session_id, live in self._live.items() if live.attempt is None]
        return len(self._live), len(self._live) - len(idle), idle

    # The life of an attempt

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, context=detached())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, live: _Live, attempt: Attempt, reused: bool, replaced: list[Agent]) -> None:
        agent = live.agent
        end: AttemptEnded | None = None
        try:
            for old in replaced:
                await old.stop()
            if not reused:
                async with self._starts:
                    if attempt.stopping is None:
                        await agent.start(attempt.request)
            if attempt.stopping is None:
                await agent.run(attempt.request, attempt.emit, attempt.ask, reused=reused)
        except AgentDied as died:
            end = AttemptEnded(Outcome.LOST, "CLI_DIED", str(died))
        except Exception:
            _log.exception("attempt failed", turn_id=str(attempt.request.turn_id))
            end = AttemptEnded(Outcome.LOST, "EXECUTOR_FAULT", "the executor met an unexpected error")
        finally:
            if not attempt.ended:
                if attempt.stopping is not None:
                    end = AttemptEnded(attempt.stopping)
                await attempt.emit(end or AttemptEnded(Outcome.LOST, "CLI_DIED", "the agent ended early"))
            live.attempt = None
            live.idle_since = self._clock.monotonic()
            if not agent.alive or attempt.stopping is not None:
                if self._live.get(attempt.request.session_id) is live:
                    del self._live[attempt.request.session_id]
                await agent.stop()

    async def _stop(self, attempt: Attempt) -> None:
        """Lets the agent stop by itself for a moment, then ends it."""
        attempt.deny_all("the turn is being stopped")
        live = self._live.get(attempt.request.session_id)
        if live is None or live.attempt is not attempt:
            return
        await live.agent.interrupt()
        waited = 0.0
        while not attempt.ended and waited < STOP_SECONDS:
            await self._clock.sleep(0.05)
            waited += 0.05
        if not attempt.ended:
            await attempt.emit(AttemptEnded(attempt.stopping or Outcome.INTERRUPTED))
            await live.agent.stop()

    async def watch(self) -> None:
        """Once a second ends what is overdue, undriven or idle for too long. Runs until it is cancelled."""
        while True:
            await self._clock.sleep(1.0)
            now = self._clock.monotonic()
            for session_id, live in list(self._live.items()):
                attempt = live.attempt
                if attempt is None:
                    if now - live.idle_since > self._idle_seconds or not live.agent.alive:
                        del self._live[session_id]
                        self._spawn(live.agent.stop())
                elif attempt.ended or attempt.stopping is not None:
                    continue
                elif now - attempt.heard > DRIVER_SILENCE_SECONDS:
                    _log.warning("no driver; the attempt ends", turn_id=str(attempt.request.turn_id))
                    attempt.stopping = Outcome.LOST
                    self._spawn(self._stop(attempt))
                elif attempt.worked_seconds > attempt.request.timeout_seconds + TIMEOUT_GRACE_SECONDS:
                    attempt.stopping = Outcome.TIMED_OUT
                    self._spawn(self._stop(attempt))
            for key, attempt in list(self._attempts.items()):
                if attempt.ended and now - attempt.heard > 60.0:
                    del self._attempts[key]

    async def drain(self, grace_seconds: float) -> None:
        """Takes no more turns, waits for those that run, then ends everything."""
        self._draining = True
        try:
            async with asyncio.timeout(grace_seconds):
                while any(live.attempt is not None for live in self._live.values()):
                    await self._clock.sleep(0.05)
        except TimeoutError:
            _log.info("turns were still running; they go on elsewhere, or at the next start")
        await self.stop()

    async def stop(self) -> None:
        """Ends all agents."""
        self._draining = True
        for live in list(self._live.values()):
            if live.attempt is not None and not live.attempt.ended:
                live.attempt.stopping = Outcome.LOST
                await live.attempt.emit(
                    AttemptEnded(Outcome.LOST, "DRAINING", "the executor is shutting down")
                )
        await asyncio.gather(*(live.agent.stop() for live in self._live.values()), return_exceptions=True)
        self._live.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
