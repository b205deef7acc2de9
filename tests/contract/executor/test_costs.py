"""What turns of the real CLI cost: each the same, whatever came before it and however it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from claude_agent_sdk import ResultMessage

from services.executor.domain.items import (
    AttemptEnded,
    BlockDelta,
    Decision,
    Item,
    Outcome,
    Spent,
    ToolResult,
    ToolUse,
    Usage,
)
from services.executor.gateways import agent as agent_module
from services.executor.gateways import offline_model
from services.executor.gateways.agent import ClaudeAgent
from services.executor.gateways.agents import ClaudeAgents
from services.executor.gateways.isolation import Isolation
from services.executor.gateways.model_gateway import ModelGateway
from services.executor.usecases.ports import AgentDied, TurnRequest
from tests.unit.executor.memory_transcripts import MemoryTranscripts
from tests.unit.executor.scripted_agent import a_request

pytestmark = pytest.mark.contract
CALL_USD = 0.045
"""Of a call of the default model, by the usage below."""
USAGE = {"input_tokens": 10_000, "output_tokens": 1_000}
USE = {"tools": [{"name": "Bash", "input": {"command": "echo hello"}}]}
DELEGATE = {
    "tools": [
        {"name": "Agent", "input": {"description": "d", "prompt": "p", "subagent_type": "general-purpose"}}
    ]
}
SAY = {"text": "done"}


@pytest.fixture(autouse=True)
def each_call_uses_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_model, "_usage", lambda _body, _output: dict(USAGE))


class Executor:
    """One session's agents, with homes of their own."""

    def __init__(
        self, directory: Path, isolation: Isolation, gateway: ModelGateway, transcripts: MemoryTranscripts
    ) -> None:
        self.agents = ClaudeAgents(
            directory / "state" / f"executor-{uuid4().hex[:8]}",
            directory / "workspaces",
            isolation,
            gateway,
            transcripts,
            offline_model=True,
            hook_timeout_seconds=60.0,
        )
        self.transcripts = transcripts
        self.agent: ClaudeAgent | None = None
        self.items: list[Item] = []

    async def run(
        self,
        request: TurnRequest,
        *,
        kill_at: type[Item] | None = None,
        interrupt_at: type[Item] | None = None,
    ) -> Spent:
        """Runs a turn, with the agent that lives if one does; returns what it has cost by all that was told."""
        self.transcripts.begin(request.attempt_pass)
        self.items = []
        reused = self.agent is not None
        if self.agent is None:
            self.agent = self.agents.make(request.session_id)
            await self.agent.start(request)
        else:
            assert self.agent.fits(request), "a budget is no reason to start anew"
        agent = self.agent
        stopping: list[asyncio.Task[None]] = []

        async def emit(item: Item) -> None:
            self.items.append(item)
            if isinstance(item, kill_at or ()):
                await agent.kill()
            if isinstance(item, interrupt_at or ()):
                stopping.append(asyncio.create_task(agent.interrupt()))

        async def ask(_call: ToolUse) -> Decision:
            return Decision(True, "")

        await agent.run(request, emit, ask, reused=reused)
        await asyncio.gather(*stopping)
        return self.told(agent.settle())

    def told(self, rest: Spent) -> Spent:
        parts = [item for item in self.items if isinstance(item, Spent)] + [rest]
        return Spent(
            sum((part.usage for part in parts), Usage()),
            round(sum(part.cost_usd for part in parts), 6),
            sum(part.model_calls for part in parts),
        )

    @property
    def end(self) -> AttemptEnded:
        last = self.items[-1]
        assert isinstance(last, AttemptEnded)
        return last

    async def close(self) -> None:
        if self.agent is not None:
            await self.agent.stop()
        self.agent = None


class Talk:
    """One session on two executors."""

    def __init__(self, here: Executor, elsewhere: Executor) -> None:
        self.here, self.elsewhere = here, elsewhere
        self.session_id = uuid4()
        self.cli_session_id = str(uuid4())

    def turn(self, *steps: dict[str, Any], **changes: Any) -> TurnRequest:
        return a_request(
            self.session_id,
            prompt=f"Please. <<SCRIPT>>{json.dumps(steps)}<<END>>",
            cli_session_id=self.cli_session_id,
            transcript_position=self.here.transcripts.position(self.session_id),
            transcript_token="a token",
            **changes,
        )


@pytest.fixture
async def talk(
    directory: Path, strongest: Isolation, gateway: ModelGateway, transcripts: MemoryTranscripts
) -> AsyncIterator[Talk]:
    made = Talk(*(Executor(directory, strongest, gateway, transcripts) for _ in range(2)))
    yield made
    await asyncio.gather(made.here.close(), made.elsewhere.close())


async def test_a_turn_costs_the_same_in_a_process_of_any_past(talk: Talk):
    costs = [await talk.here.run(talk.turn(SAY)), await talk.here.run(talk.turn(SAY))]
    await talk.here.close()
    # This one goes on from the total of the first, and the next one, on another machine, from nothing.
    costs.append(await talk.here.run(talk.turn(SAY)))
    await talk.here.close()
    costs.append(await talk.elsewhere.run(talk.turn(SAY)))
    assert costs == [Spent(Usage(10_000, 1_000), CALL_USD, 1)] * 4


async def test_a_budget_is_the_turns_own_after_a_resume_and_does_not_end_the_agent(talk: Talk):
    for _ in range(2):
        await talk.here.run(talk.turn(SAY))
    await talk.here.close()
    within = await talk.here.run(talk.turn(USE, SAY, budget_usd=CALL_USD * 2.5))
    assert (talk.here.end.outcome, within.model_calls) == (Outcome.SUCCEEDED, 2)
    over = await talk.here.run(talk.turn(USE, USE, USE, SAY, budget_usd=CALL_USD * 1.5))
    assert (talk.here.end.outcome, talk.here.end.reason) == (Outcome.BUDGET_EXCEEDED, "BUDGET_EXCEEDED")
    assert over == Spent(Usage(20_000, 2_000), CALL_USD * 2, 2)
    assert not [item for item in talk.here.items if "API Error" in getattr(item, "text", "")]
    await talk.here.run(talk.turn(SAY, budget_usd=CALL_USD))
    assert talk.here.end.outcome is Outcome.SUCCEEDED


async def test_subagents_and_programs_of_the_agent_are_on_the_turns_account_and_within_its_budget(talk: Talk):
    delegated = await talk.here.run(talk.turn(DELEGATE, SAY))
    assert delegated == Spent(Usage(30_000, 3_000), CALL_USD * 3, 3)
    stopped = await talk.here.run(talk.turn(DELEGATE, SAY, budget_usd=CALL_USD / 2))
    assert (talk.here.end.outcome, stopped.model_calls) == (Outcome.BUDGET_EXCEEDED, 1)
    # A program that calls by itself, with what the CLI does not hand on to it.
    key = '$(tr "\\0" "\\n" </proc/1/environ | sed -n s/^ANTHROPIC_API_KEY=//p)'
    body = json.dumps({"model": "claude-opus-4-1", "max_tokens": 9, "messages": []})
    command = f'curl -s "$ANTHROPIC_BASE_URL/v1/messages" -H "x-api-key: {key}" -d \'{body}\''
    called = await talk.here.run(talk.turn({"tools": [{"name": "Bash", "input": {"command": command}}]}, SAY))
    assert called == Spent(Usage(30_000, 3_000), CALL_USD * 2 + 0.225, 3)


async def test_a_turn_that_is_stopped_has_cost_what_it_has_cost(talk: Talk):
    spoken = {"text": "word " * 600, "tokens_per_second": 20}
    interrupted = await talk.here.run(talk.turn(spoken), interrupt_at=BlockDelta)
    assert talk.here.end.outcome is Outcome.INTERRUPTED
    assert interrupted == Spent(Usage(10_000, 1_000), CALL_USD, 1)
    with pytest.raises(AgentDied):
        await talk.here.run(talk.turn(USE, SAY), kill_at=ToolResult)
    assert talk.here.agent is not None
    # The call was told before the tool ran: it would have been kept, had this executor died too.
    assert [item.cost_usd for item in talk.here.items if isinstance(item, Spent)][:1] == [CALL_USD]
    killed = talk.here.told(talk.here.agent.settle())
    assert CALL_USD <= killed.cost_usd <= CALL_USD * 2, "the second call may have been under way"
    assert talk.here.agent.settle() == Spent()


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "claude-opus-5-5", "claude-haiku-5-5"])
async def test_prices_are_those_of_the_cli(talk: Talk, model: str, monkeypatch: pytest.MonkeyPatch):
    usage = {
        "input_tokens": 30_000,
        "output_tokens": 7_000,
        "cache_read_input_tokens": 90_000,
        "cache_creation_input_tokens": 50_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 20_000, "ephemeral_1h_input_tokens": 30_000},
        "server_tool_use": {"web_search_requests": 1, "web_fetch_requests": 0},
    }
    monkeypatch.setattr(offline_model, "_usage", lambda _body, _output: usage)
    results: list[ResultMessage] = []
    read = agent_module.TurnReader.read

    def hear(reader: Any, message: Any) -> Any:
        results.extend([message] if isinstance(message, ResultMessage) else [])
        return read(reader, message)

    monkeypatch.setattr(agent_module.TurnReader, "read", hear)
    spent = await talk.here.run(talk.turn(SAY, options={"model": model}))
    [result] = results
    assert spent.cost_usd == pytest.approx(result.total_cost_usd, abs=1e-6)
