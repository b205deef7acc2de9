"""An agent without a process that does what a test says, behind the port of the use cases."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

from services.executor.domain.items import (
    AgentStarted,
    AttemptEnded,
    BlockCompleted,
    BlockDelta,
    Outcome,
    Spent,
    ToolUse,
)
from services.executor.usecases.ports import AgentDied, Ask, Emit, TurnRequest

Play = Callable[["ScriptedAgent", Emit, Ask], Awaitable[None]]


def a_request(session_id: UUID | None = None, **changes: Any) -> TurnRequest:
    """A turn's request."""
    session = session_id or uuid4()
    values: dict[str, Any] = {
        "session_id": session,
        "organization_id": uuid4(),
        "turn_id": uuid4(),
        "attempt": 1,
        "options": {},
        "prompt": "Hello.",
        "prompt_id": uuid4(),
        "cli_session_id": "",
        "workspace": str(session),
        "timeout_seconds": 60.0,
        "budget_usd": 0.0,
        "earlier_decisions": (),
        "possibly_run": (),
    }
    return TurnRequest(**{**values, **changes})


def a_call(name: str = "Bash", **tool_input: Any) -> ToolUse:
    """A tool call."""
    return ToolUse(f"toolu_{uuid4().hex[:12]}", name, str(tool_input), "hash", "")


async def greet(agent: ScriptedAgent, emit: Emit, ask: Ask) -> None:
    """Says a word and ends."""
    await emit(BlockDelta(1, False, 0, "Hello."))
    await emit(BlockCompleted(1, False, "Hello.", "offline", ""))
    await emit(AttemptEnded(Outcome.SUCCEEDED, cli_session_id=agent.cli_session_id))


async def work_for_ever(agent: ScriptedAgent, emit: Emit, ask: Ask) -> None:
    """Works until it is interrupted; a kill ends it as it does any process."""
    waits = [asyncio.ensure_future(event.wait()) for event in (agent.interrupted, agent.stopped)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if not agent.interrupted.is_set():
        raise AgentDied("the agent process ended")
    await emit(AttemptEnded(Outcome.INTERRUPTED))


async def hear_nothing(agent: ScriptedAgent, emit: Emit, ask: Ask) -> None:
    """Works until it is stopped, whatever it is asked."""
    await agent.stopped.wait()
    raise AgentDied("the agent process ended")


async def die(agent: ScriptedAgent, emit: Emit, ask: Ask) -> None:
    """Dies in the middle of a block."""
    await emit(BlockDelta(1, False, 0, "Hel"))
    raise AgentDied("the agent process ended")


async def ask_once(agent: ScriptedAgent, emit: Emit, ask: Ask) -> None:
    """Asks for one tool call and tells the answer."""
    decision = await ask(a_call())
    await emit(BlockCompleted(1, False, f"{decision.allow}: {decision.reason}", "offline", ""))
    await emit(AttemptEnded(Outcome.SUCCEEDED))


class ScriptedAgent:
    """See `usecases.ports.Agent`."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.alive = False
        self.starts = self.stops = self.kills = 0
        self.interrupt_hangs = False
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.fails: set[str] = set()
        self.interrupted = asyncio.Event()
        self.stopped = asyncio.Event()
        self.may_prepare = asyncio.Event()
        self.may_prepare.set()
        self.cli_session_id = ""
        self.fails_to_start = False
        self.spent = Spent()

    def fits(self, request: TurnRequest) -> bool:
        return request.cli_session_id == self.cli_session_id

    async def prepare(self, request: TurnRequest) -> None:
        await self.may_prepare.wait()

    async def start(self, request: TurnRequest) -> None:
        self.starts += 1
        if self.fails_to_start:
            raise AgentDied("the agent process did not start")
        self.cli_session_id = request.cli_session_id or str(uuid4())
        self.alive = True

    async def run(self, request: TurnRequest, emit: Emit, ask: Ask, *, reused: bool) -> None:
        if not self.alive:
            raise AgentDied("the agent process is gone")
        await emit(AgentStarted(self.cli_session_id, reused, "offline", True))
        try:
            await self.play(self, emit, ask)
        except AgentDied:
            self.alive = False
            raise

    def settle(self) -> Spent:
        spent, self.spent = self.spent, Spent()
        return spent

    async def interrupt(self) -> None:
        if self.interrupt_hangs:
            await asyncio.Event().wait()
        if "interrupt" in self.fails:
            raise Exception("the control request failed")
        self.interrupted.set()

    async def kill(self) -> None:
        self.kills += 1
        if "kill" in self.fails:
            raise OSError("not killed")
        self.alive = False
        self.stopped.set()

    async def stop(self) -> None:
        self.alive = False
        self.stops += 1
        self.stopped.set()
        await self.may_stop.wait()


class ScriptedAgents:
    """See `usecases.ports.AgentFactory`; `plays` are taken one by one, the last one stays."""

    offline_model = True
    isolation = "PROCESS"

    def __init__(self, *plays: Play) -> None:
        self.plays = list(plays) or [greet]
        self.made: list[ScriptedAgent] = []
        self.forgotten: list[UUID] = []
        self.fail_to_start = False

    def make(self, session_id: UUID) -> ScriptedAgent:
        agent = ScriptedAgent(self.plays.pop(0) if len(self.plays) > 1 else self.plays[0])
        agent.fails_to_start = self.fail_to_start
        self.made.append(agent)
        return agent

    async def forget(self, session_id: UUID) -> None:
        self.forgotten.append(session_id)
