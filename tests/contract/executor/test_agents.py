"""The port of agents: what the use cases may expect of the real CLI and of its scripted stand-in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import psutil
import pytest

from services.executor.domain.items import AgentStarted, AttemptEnded, Decision, Item, Outcome, ToolUse
from services.executor.gateways.agents import ClaudeAgents
from services.executor.usecases.ports import Agent, AgentDied, AgentFactory, TurnRequest
from tests.unit.executor.memory_transcripts import MemoryTranscripts
from tests.unit.executor.scripted_agent import (
    ScriptedAgents,
    a_request,
    ask_once,
    greet,
    hear_nothing,
    work_for_ever,
)

pytestmark = pytest.mark.contract

BASH = {"tools": [{"name": "Bash", "input": {"command": "echo from the shell"}}]}
# What the model of a real agent does, and what a scripted one does.
STEPS = {
    greet: [{"text": "Hello."}],
    ask_once: [BASH, {"text": "Done."}],
    work_for_ever: [{"hang": True}],
    hear_nothing: [{"hang": True}],
}


@dataclass
class Turn:
    """One turn as the use cases run it: its items, and an answer to its questions."""

    items: list[Item] = field(default_factory=list)
    asked: list[ToolUse] = field(default_factory=list)
    answer: Decision = field(default_factory=lambda: Decision(True, "allowed"))
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def emit(self, item: Item) -> None:
        self.items.append(item)
        self.begun.set()

    async def ask(self, call: ToolUse) -> Decision:
        self.asked.append(call)
        return self.answer

    @property
    def end(self) -> AttemptEnded:
        last = self.items[-1]
        assert isinstance(last, AttemptEnded)
        return last

    @property
    def start(self) -> AgentStarted:
        first = self.items[0]
        assert isinstance(first, AgentStarted)
        return first


class Desk:
    """Makes agents of one kind that play."""

    def __init__(self, factory: AgentFactory, transcripts: MemoryTranscripts) -> None:
        self.factory = factory
        self.transcripts = transcripts
        self.made: list[Agent] = []

    def agent(self, play: object, session_id: UUID | None = None) -> tuple[Agent, TurnRequest]:
        if isinstance(self.factory, ScriptedAgents):
            self.factory.plays = [play]  # type: ignore[list-item]
        request = self.request(play, session_id or uuid4())
        self.made.append(self.factory.make(request.session_id))
        return self.made[-1], request

    def request(self, play: object, session_id: UUID, cli_session_id: str = "") -> TurnRequest:
        prompt = f"Please. <<SCRIPT>>{json.dumps(STEPS[play])}<<END>>"  # type: ignore[index]
        return a_request(
            session_id,
            prompt=prompt,
            cli_session_id=cli_session_id,
            transcript_position=self.transcripts.position(session_id),
        )


@pytest.fixture(params=["scripted", "claude"])
async def desk(
    request: pytest.FixtureRequest, claude_agents: ClaudeAgents, transcripts: MemoryTranscripts
) -> AsyncIterator[Desk]:
    made = Desk(ScriptedAgents() if request.param == "scripted" else claude_agents, transcripts)
    yield made
    await asyncio.gather(*(agent.stop() for agent in made.made))


async def test_a_turn_begins_with_the_start_and_ends_with_the_end(desk: Desk):
    agent, request = desk.agent(greet)
    assert not agent.alive
    await agent.start(request)
    assert agent.alive
    turn = Turn()
    await agent.run(request, turn.emit, turn.ask, reused=False)
    assert (turn.start.reused, turn.start.offline_model) == (False, True)
    assert turn.end.outcome is Outcome.SUCCEEDED
    assert agent.alive


async def test_it_fits_the_next_turn_of_its_conversation_and_no_other(desk: Desk):
    agent, request = desk.agent(greet)
    await agent.start(request)
    first, second = Turn(), Turn()
    await agent.run(request, first.emit, first.ask, reused=False)
    following = desk.request(greet, request.session_id, first.start.cli_session_id)
    assert agent.fits(following)
    assert not agent.fits(desk.request(greet, request.session_id, str(uuid4())))
    await agent.run(following, second.emit, second.ask, reused=True)
    assert second.start.reused
    assert second.start.cli_session_id == first.start.cli_session_id
    assert second.end.outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize("allow", [True, False])
async def test_it_asks_before_a_tool_runs(desk: Desk, allow: bool):
    agent, request = desk.agent(ask_once)
    await agent.start(request)
    turn = Turn(answer=Decision(allow, "because we say so"))
    await agent.run(request, turn.emit, turn.ask, reused=False)
    [call] = turn.asked
    assert call.tool_name == "Bash"
    assert turn.end.outcome is Outcome.SUCCEEDED


async def test_an_interrupt_ends_the_turn_and_leaves_the_agent(desk: Desk):
    agent, request = desk.agent(work_for_ever)
    await agent.start(request)
    turn = Turn()
    running = asyncio.create_task(agent.run(request, turn.emit, turn.ask, reused=False))
    await turn.begun.wait()
    # The CLI takes an interrupt once it works on the message; until then it has nothing to stop.
    async with asyncio.timeout(20):
        while not running.done():
            await agent.interrupt()
            await asyncio.wait({running}, timeout=0.2)
    assert turn.end.outcome is Outcome.INTERRUPTED


async def test_a_stop_in_mid_turn_says_that_the_agent_died(desk: Desk):
    agent, request = desk.agent(hear_nothing)
    await agent.start(request)
    turn = Turn()
    running = asyncio.create_task(agent.run(request, turn.emit, turn.ask, reused=False))
    await turn.begun.wait()
    await agent.stop()
    with pytest.raises(AgentDied):
        await running
    assert not agent.alive


async def test_a_stopped_agent_takes_no_turn_and_may_be_stopped_again(desk: Desk):
    agent, request = desk.agent(greet)
    await agent.start(request)
    await agent.stop()
    await agent.stop()
    turn = Turn()
    with pytest.raises(AgentDied):
        await agent.run(request, turn.emit, turn.ask, reused=False)


def claude_processes() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


async def test_a_stop_before_it_is_up_ends_the_start_and_leaves_no_process(claude_agents: ClaudeAgents):
    before = claude_processes()
    request = a_request()
    agent = claude_agents.make(request.session_id)
    starting = asyncio.create_task(agent.start(request))
    async with asyncio.timeout(20):
        while not claude_processes() - before:
            await asyncio.sleep(0.01)
        await agent.stop()
        with pytest.raises(AgentDied):
            await starting
        while claude_processes() - before:
            await asyncio.sleep(0.01)


async def test_forgetting_a_session_removes_what_its_agent_kept(claude_agents: ClaudeAgents, directory):
    request = a_request()
    agent = claude_agents.make(request.session_id)
    await agent.start(request)
    await agent.stop()
    private = directory / "state" / "agents" / str(request.session_id)
    assert private.is_dir()
    await claude_agents.forget(request.session_id)
    assert not private.exists()
