"""Runs attempts on live agents: fencing, places, time limits, and the end of what nobody drives any more."""

from __future__ import annotations

import asyncio
import contextvars
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import structlog
from prometheus_client import Counter

from services.executor.domain import errors
from services.executor.domain.items import AttemptEnded, Decision, Outcome
from services.executor.domain.places import background_places
from services.executor.usecases.attempt import Attempt
from services.executor.usecases.ports import Agent, AgentDied, AgentFactory, TurnRequest
from services.kernel.clock import Clock
from services.kernel.context import about, detached
from services.kernel.errors import ServiceError
from services.kernel.telemetry import registry

_log = structlog.get_logger(__name__)

DRIVER_SILENCE_SECONDS = 15.0
"""An attempt without a sign of life of its driver is ended after so long. Drivers wait 17 s before another one."""
TIMEOUT_GRACE_SECONDS = 5.0
"""How much longer than its limit a turn may take here: its driver, who sees the other attempts too, comes first."""
LOOK_SECONDS = 0.2
"""How often attempts are looked at: a silent driver's agent is dead half a second after its time at the latest."""
STOP_SECONDS = 1.2
"""How long an agent may take to stop by itself before it is killed, from the call on."""
STARTS_AT_ONCE = 2
"""A start costs half a second of a core: more at once make all of them slow."""
_REMEMBERED = 10_000
FAULTS: Final = Counter(
    "aiagent_executor_faults_total",
    "Unexpected errors that the executor went on after.",
    ("place",),
    registry=registry,
)


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
    killed: bool = False


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
        self.max_background_clients = background_places(max_live_clients)
        self._idle_seconds = idle_seconds
        self._live: dict[UUID, _Live] = {}
        self._leaving: dict[asyncio.Task[None], UUID] = {}
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
        place, reused = self._place(request)
        self._bar(key)
        attempt = self._attempts[key] = Attempt(request, self._clock, place.agent.settle)
        place.attempt = attempt
        task = asyncio.create_task(
            self._run(place, attempt, reused, self._before(request.session_id)),
            name=f"turn-{request.turn_id}",
            context=_about(request),
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return attempt

    def _place(self, request: TurnRequest) -> tuple[_Live, bool]:
        """Finds a place for the turn's agent; returns it, and whether its agent goes on."""
        if request.background and self.background_clients >= self.max_background_clients:
            raise errors.background_full(self.max_live_clients, self.max_background_clients)
        live = self._live.get(request.session_id)
        if live is not None:
            if live.attempt is not None:
                # Another attempt of the session is still ending: its place is not free before it has.
                raise errors.executor_full(self.max_live_clients)
            if live.agent.alive and live.agent.fits(request):
                return live, True
            self._leave(request.session_id)
        elif len(self._live) >= self.max_live_clients:
            idle = [
                (place.idle_since, session_id)
                for session_id, place in self._live.items()
                if place.attempt is None
            ]
            if not idle:
                raise errors.executor_full(self.max_live_clients)
            self._leave(min(idle)[1])
        place = self._live[request.session_id] = _Live(
            self._factory.make(request.session_id), None, self._clock.monotonic()
        )
        return place, False

    def _leave(self, session_id: UUID) -> asyncio.Task[None]:
        """Stops an agent and gives its place away."""
        agent = self._live.pop(session_id).agent
        loop = asyncio.get_running_loop()
        task = asyncio.Task(
            agent.stop(), loop=loop, name="agent-leaving", context=detached(), eager_start=True
        )
        self._leaving[task] = session_id
        task.add_done_callback(self._left)
        return task

    def _left(self, task: asyncio.Task[None]) -> None:
        del self._leaving[task]
        self._done(task)

    def _before(self, session_id: UUID) -> list[asyncio.Task[None]]:
        """Agents that must have gone before one of a session starts: those in its home and workspace, and, where all
        places are taken, those whose places it may take."""
        full = len(self._live) + len(self._leaving) > self.max_live_clients
        return [task for task, left in self._leaving.items() if full or left == session_id]

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

    def decide(self, fence: Fence, tool_use_id: str, decision: Decision, input_hash: str = "") -> None:
        """Answers a waiting agent."""
        self._find(fence).decide(tool_use_id, decision, input_hash)

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
                self._spawn(self._stop(attempt), attempt)

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

    @property
    def background_clients(self) -> int:
        """How many agents are in a turn of a session in the background."""
        attempts = (live.attempt for live in self._live.values())
        return sum(attempt.request.background for attempt in attempts if attempt is not None)

    @property
    def draining(self) -> bool:
        """Whether it takes no more turns."""
        return self._draining

    def counts(self) -> tuple[int, int, list[UUID]]:
        """Live agents, those in a turn, and the sessions whose agent is idle."""
        idle = [session_id for session_id, live in self._live.items() if live.attempt is None]
        return len(self._live), len(self._live) - len(idle), idle

    # The life of an attempt

    def _spawn(self, work: Coroutine[Any, Any, None], attempt: Attempt | None = None) -> None:
        task = asyncio.create_task(work, context=_about(attempt.request) if attempt else detached())
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            FAULTS.labels("task").inc()
            _log.error("a task failed", exc_info=error)

    async def _run(
        self, live: _Live, attempt: Attempt, reused: bool, before: list[asyncio.Task[None]]
    ) -> None:
        agent = live.agent
        end: AttemptEnded | None = None
        try:
            if not reused:
                if before:
                    await asyncio.wait(before)
                if attempt.stopping is None:
                    await agent.prepare(attempt.request)
                async with self._starts:
                    if attempt.stopping is None:
                        await agent.start(attempt.request)
            if attempt.stopping is None:
                await agent.run(attempt.request, attempt.emit, attempt.ask, reused=reused)
        except AgentDied as died:
            end = AttemptEnded(Outcome.LOST, "CLI_DIED", str(died))
        except Exception:
            _log.exception("attempt failed")
            end = AttemptEnded(Outcome.LOST, "EXECUTOR_FAULT", "the executor met an unexpected error")
        finally:
            if not attempt.ended:
                await self._kill(agent)
                if attempt.stopping is not None:
                    end = self._stopped(attempt.stopping)
                await attempt.emit(end or AttemptEnded(Outcome.LOST, "CLI_DIED", "the agent ended early"))
            live.attempt = None
            live.idle_since = self._clock.monotonic()
            if not agent.alive or attempt.stopping is not None:
                if self._live.get(attempt.request.session_id) is live:
                    await asyncio.wait([self._leave(attempt.request.session_id)])
                else:
                    await agent.stop()

    async def _stop(self, attempt: Attempt) -> None:
        """Lets the agent stop by itself for a moment, then kills it. Whatever fails, agent and attempt are ended."""
        deadline = self._clock.monotonic() + STOP_SECONDS
        live = self._live.get(attempt.request.session_id)
        agent = live.agent if live is not None and live.attempt is attempt else None
        interrupting: asyncio.Task[None] | None = None
        try:
            attempt.deny_all("the turn is being stopped")
            if agent is not None:
                interrupting = asyncio.create_task(agent.interrupt(), name="interrupt")
                while not attempt.ended and self._clock.monotonic() < deadline:
                    await self._clock.sleep(0.05)
        finally:
            if interrupting is not None:
                interrupting.cancel()
                for result in await asyncio.gather(interrupting, return_exceptions=True):
                    if isinstance(result, Exception):
                        _log.warning("the interrupt failed", error=type(result).__name__)
            await self._end(attempt, agent)

    async def _end(self, attempt: Attempt, agent: Agent | None) -> None:
        """Kills the agent of an attempt that has not ended, and only then tells the end: it is the proof of death."""
        if attempt.ended:
            return
        attempt.deny_all("the turn is being stopped")
        try:
            if agent is not None:
                await self._kill(agent)
        finally:
            await attempt.emit(self._stopped(attempt.stopping or Outcome.INTERRUPTED))
            if agent is not None:
                await agent.stop()

    def _stopped(self, outcome: Outcome) -> AttemptEnded:
        if outcome is Outcome.LOST and self._draining:
            return AttemptEnded(outcome, "DRAINING", "the executor is shutting down")
        return AttemptEnded(outcome)

    async def _kill(self, agent: Agent) -> None:
        try:
            await agent.kill()
        except Exception:
            FAULTS.labels("kill").inc()
            _log.exception("an agent could not be killed")

    async def watch(self) -> None:
        """Ends what is overdue, undriven or idle for too long. Runs until it is cancelled, whatever goes wrong."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            now = self._clock.monotonic()
            for session_id, live in list(self._live.items()):
                try:
                    self._look(session_id, live, now)
                except Exception:
                    # One session's trouble must not keep the others' agents alive.
                    FAULTS.labels("watch").inc()
                    _log.exception("a session could not be looked after", session_id=str(session_id))
            for key, attempt in list(self._attempts.items()):
                if attempt.ended and now - attempt.heard > 60.0:
                    del self._attempts[key]

    def _look(self, session_id: UUID, live: _Live, now: float) -> None:
        attempt = live.attempt
        if attempt is None:
            if now - live.idle_since > self._idle_seconds or not live.agent.alive:
                self._leave(session_id)
        elif attempt.ended or live.killed:
            return
        elif now - attempt.heard >= DRIVER_SILENCE_SECONDS:
            # Before long another attempt may begin elsewhere: no courtesy, not even to one that is being stopped.
            live.killed = True
            _log.warning("no driver; the attempt ends", turn_id=str(attempt.request.turn_id))
            attempt.stopping = attempt.stopping or Outcome.LOST
            self._spawn(self._end(attempt, live.agent), attempt)
        elif attempt.stopping is not None:
            return
        elif attempt.worked_seconds > attempt.request.timeout_seconds + TIMEOUT_GRACE_SECONDS:
            attempt.stopping = Outcome.TIMED_OUT
            self._spawn(self._stop(attempt), attempt)

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
        running = [
            live for live in self._live.values() if live.attempt is not None and not live.attempt.ended
        ]
        for live in running:
            if live.attempt is not None:
                live.attempt.stopping = Outcome.LOST
        await asyncio.gather(*(self._kill(live.agent) for live in running))
        for live in running:
            if live.attempt is not None and not live.attempt.ended:
                await live.attempt.emit(self._stopped(Outcome.LOST))
        await asyncio.gather(*(live.agent.stop() for live in self._live.values()), return_exceptions=True)
        self._live.clear()
        if self._leaving:
            await asyncio.wait(list(self._leaving))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _about(request: TurnRequest) -> contextvars.Context:
    return about(
        request=request.request_id,
        session_id=str(request.session_id),
        turn_id=str(request.turn_id),
        attempt=str(request.attempt),
    )
