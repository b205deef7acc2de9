"""Conversations of the real CLI: kept while they are held, and gone on with on another machine."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.executor.domain.items import (
    AttemptEnded,
    BlockCompleted,
    Decision,
    Item,
    Notice,
    Outcome,
    ToolUse,
)
from services.executor.domain.transcripts import Namer, missing_from_store
from services.executor.gateways import transcripts as gateway_module
from services.executor.gateways.agent import ClaudeAgent
from services.executor.gateways.agents import ClaudeAgents
from services.executor.gateways.isolation import Isolation
from services.executor.gateways.model_gateway import ModelGateway
from services.executor.gateways.transcript_files import TranscriptFiles
from services.executor.usecases.ports import AgentDied, TurnRequest
from tests.unit.executor.memory_transcripts import MemoryTranscripts
from tests.unit.executor.scripted_agent import a_request

pytestmark = pytest.mark.contract

SUBAGENT = {"description": "d", "prompt": "say it", "subagent_type": "general-purpose"}


class Machine:
    """A place for agents, with homes of its own; the workspaces are shared."""

    def __init__(self, agents: ClaudeAgents, state: Path, transcripts: MemoryTranscripts) -> None:
        self.agents = agents
        self.state = state
        self.transcripts = transcripts
        self.made: list[ClaudeAgent] = []
        self.items: list[Item] = []

    async def run(self, request: TurnRequest, *, agent: ClaudeAgent | None = None) -> ClaudeAgent:
        """Runs a turn, with a new agent unless one is given."""
        self.transcripts.begin(request.attempt_pass)
        self.items = []
        reused = agent is not None
        if agent is None:
            agent = self.agents.make(request.session_id)
            self.made.append(agent)
            await agent.start(request)

        async def emit(item: Item) -> None:
            self.items.append(item)

        async def ask(_call: ToolUse) -> Decision:
            return Decision(True, "")

        await agent.run(request, emit, ask, reused=reused)
        return agent

    @property
    def said(self) -> str:
        return " ".join(
            getattr(item, "text", "") for item in self.items if type(item).__name__ == "BlockCompleted"
        )

    @property
    def end(self) -> AttemptEnded:
        last = self.items[-1]
        assert isinstance(last, AttemptEnded)
        return last

    def file(self, request: TurnRequest, cli_session_id: str) -> Path:
        home = self.state / "agents" / str(request.session_id) / "home"
        [found] = home.glob(f".claude/projects/*/{cli_session_id}.jsonl")
        return found


class Conversation:
    """Turns of one session."""

    def __init__(self, transcripts: MemoryTranscripts) -> None:
        self.session_id = uuid4()
        self.cli_session_id = ""
        self.transcripts = transcripts

    def turn(self, *steps: dict[str, Any], **changes: Any) -> TurnRequest:
        return a_request(
            self.session_id,
            prompt=f"Please. <<SCRIPT>>{json.dumps(steps)}<<END>>",
            cli_session_id=self.cli_session_id,
            transcript_position=self.transcripts.position(self.session_id),
            transcript_token="a token",
            **changes,
        )


@pytest.fixture
async def machine(
    directory: Path, gateway: ModelGateway, strongest: Isolation, transcripts: MemoryTranscripts
) -> AsyncIterator[Callable[[], Machine]]:
    """Makes machines."""
    made: list[Machine] = []

    def make() -> Machine:
        state = directory / "state" / f"machine-{uuid4().hex[:8]}"
        agents = ClaudeAgents(
            state,
            directory / "workspaces",
            strongest,
            gateway,
            transcripts,
            offline_model=True,
            hook_timeout_seconds=60.0,
        )
        made.append(Machine(agents, state, transcripts))
        return made[-1]

    yield make
    await asyncio.gather(*(agent.stop() for one in made for agent in one.made))


@pytest.fixture
def talk(transcripts: MemoryTranscripts) -> Conversation:
    return Conversation(transcripts)


async def test_a_conversation_goes_on_on_another_machine_with_its_subagents(machine, talk):
    first, second = machine(), machine()
    delegate = {"tools": [{"name": "Agent", "input": SUBAGENT}]}
    agent = await first.run(
        talk.turn(
            {"text": "the word is plum"},
        )
    )
    talk.cli_session_id = agent.cli_session_id
    await first.run(talk.turn(delegate, {"text": "delegated"}), agent=agent)
    await agent.stop()
    request = talk.turn({"recall": "the word is \\w+"})
    await second.run(request)
    assert second.said == "I remember: the word is plum"
    kept = await talk.transcripts.read(request.attempt_pass, agent.cli_session_id)
    subpaths = {subpath for subpath, _, _ in kept.entries if subpath}
    there = {path.stem for path in (second.state / "agents").rglob("agent-*.jsonl")}
    assert subpaths
    assert there == {subpath.rpartition("/")[2] for subpath in subpaths}
    assert len(list((second.state / "agents").rglob("agent-*.meta.json"))) == len(there)


async def test_all_that_the_cli_wrote_in_a_turn_is_kept_when_it_ends(machine, talk):
    here = machine()
    use = {"tools": [{"name": "Bash", "input": {"command": "echo hello"}}]}
    request = talk.turn(use, {"text": "done"})
    agent = await here.run(request)
    workspace = here.agents._workspaces / request.workspace
    files = TranscriptFiles(
        here.state / "agents" / str(request.session_id) / "home", workspace, agent.cli_session_id
    ).read()
    kept = await talk.transcripts.read(request.attempt_pass, agent.cli_session_id)
    names = {uuid for _, uuid, _ in kept.entries}
    missing = [entry for entry in files[""] if entry.own and entry.id not in names]
    assert missing == []
    assert any(entry.answers() for entry in files[""])


async def test_a_live_agent_is_reused_only_where_the_store_stands(machine, talk):
    first, second = machine(), machine()
    agent = await first.run(talk.turn({"text": "one"}))
    talk.cli_session_id = agent.cli_session_id
    assert agent.fits(talk.turn({"text": "two"}))
    other = await second.run(talk.turn({"text": "said elsewhere"}))
    await other.stop()
    assert not agent.fits(talk.turn({"text": "three"}))
    await agent.stop()
    await first.run(talk.turn({"recall": "said elsewhere"}))
    assert first.said == "I remember: said elsewhere"


async def test_what_a_dead_attempt_of_this_machine_wrote_is_kept_before_it_goes_on(machine, talk):
    here = machine()
    request = talk.turn({"text": "the word is fig"})
    agent = await here.run(request)
    talk.cli_session_id = agent.cli_session_id
    await agent.stop()
    # As if the process had been killed before the last entries were sent.
    kept = talk.transcripts.entries[talk.session_id]
    lost = [entry for entry in kept if "the word is fig" in entry[3] and '"assistant"' in entry[3]]
    assert lost
    del kept[kept.index(lost[0]) :]
    await here.run(talk.turn({"recall": "the word is fig"}))
    assert here.said == "I remember: the word is fig"
    assert [entry for entry in talk.transcripts.entries[talk.session_id] if entry[2] == lost[0][2]]


async def test_a_call_whose_result_the_conversation_lost_is_told(machine, talk):
    first, second = machine(), machine()
    request = talk.turn({"text": "begun"}, attempt=1)
    agent = await first.run(request)
    talk.cli_session_id = agent.cli_session_id
    await agent.stop()
    finished = (("toolu_lost", "Bash", '{"command":"make"}', "made it"),)
    again = talk.turn({"text": "x"}, attempt=2, turn_id=request.turn_id, prompt_id=request.prompt_id)
    told = TurnRequest(**{**{f: getattr(again, f) for f in again.__slots__}, "finished_calls": finished})
    await second.run(told)
    sent = [entry[3] for entry in talk.transcripts.entries[talk.session_id] if "has been made" in entry[3]]
    assert sent
    assert "made it" in sent[0]
    assert "interrupted by a fault of the machine" in sent[0]


async def test_a_store_that_comes_back_gets_what_it_missed_before_the_end(machine, talk):
    here = machine()
    transcripts = talk.transcripts
    transcripts.away = True
    back = asyncio.get_running_loop().call_later(2.0, setattr, transcripts, "away", False)
    request = talk.turn({"text": "kept in the end"})
    agent = await here.run(request)
    back.cancel()
    assert here.end.outcome is Outcome.SUCCEEDED
    assert not [item for item in here.items if isinstance(item, Notice)]
    kept = await transcripts.read(request.attempt_pass, agent.cli_session_id)
    assert any("kept in the end" in text for _, _, text in kept.entries)
    talk.cli_session_id = agent.cli_session_id
    assert agent.fits(talk.turn())


async def test_a_store_that_stays_away_costs_the_turn_a_notice_and_no_more(
    machine, talk, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gateway_module.TranscriptMirror.settle, "__defaults__", (1.0,))
    here = machine()
    talk.transcripts.away = True
    agent = await here.run(talk.turn({"text": "said to nobody"}))
    assert here.end.outcome is Outcome.SUCCEEDED
    assert [item.code for item in here.items if isinstance(item, Notice)] == ["TRANSCRIPT_NOT_SAVED"]
    talk.cli_session_id = agent.cli_session_id
    talk.transcripts.away = False
    # It may not go on as it is: its successor finds the rest in the file.
    assert not agent.fits(talk.turn())
    await agent.stop()
    await here.run(talk.turn({"recall": "said to nobody"}))
    assert here.said == "I remember: said to nobody"


@pytest.mark.parametrize(
    "message", ["/clear", "/compact", "/model claude-opus-4-1", "/context", "/cost", "/hello", " /clear"]
)
async def test_a_message_is_no_command_of_the_cli(machine, talk, message: str):
    here = machine()
    agent = await here.run(talk.turn({"text": "the word is plum"}))
    talk.cli_session_id = agent.cli_session_id
    await here.run(replace(talk.turn(), prompt=message), agent=agent)
    assert here.said.endswith(f"You wrote: {message.strip()}")
    assert here.end.cli_session_id == agent.cli_session_id
    await here.run(talk.turn({"recall": "the word is \\w+"}), agent=agent)
    assert here.said == "I remember: the word is plum"
    assert {item.model for item in here.items if isinstance(item, BlockCompleted)} == {"claude-sonnet-4-5"}


async def test_a_file_that_a_message_names_is_not_read_without_a_decision(machine, talk, directory: Path):
    workspace = directory / "workspaces" / str(talk.session_id)
    workspace.mkdir(parents=True)
    (workspace / "note.txt").write_text("the word is plum", encoding="utf-8")
    here = machine()
    agent = await here.run(replace(talk.turn(), prompt="Look at @note.txt please."))
    talk.cli_session_id = agent.cli_session_id
    await here.run(talk.turn({"recall": "the word is \\w+"}), agent=agent)
    assert here.said == "I do not remember that."


async def test_a_start_without_the_store_is_given_up_in_time(machine, talk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gateway_module, "SAVE_SECONDS", 1.0)
    here = machine()
    agent = await here.run(talk.turn({"text": "one"}))
    talk.cli_session_id = agent.cli_session_id
    await agent.stop()
    talk.transcripts.away = True
    with pytest.raises(AgentDied, match="cannot be read"):
        await here.run(talk.turn({"text": "two"}))


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
async def test_what_an_agent_puts_in_the_way_is_not_followed(machine, talk, directory: Path, kind: str):
    here = machine()
    request = talk.turn({"text": "one"})
    agent = await here.run(request)
    talk.cli_session_id = agent.cli_session_id
    await agent.stop()
    secret = directory / "secret.jsonl"
    content = {"type": "user", "uuid": str(uuid4()), "message": {"role": "user", "content": "a secret"}}
    file = here.file(request, agent.cli_session_id)
    # It begins as the store's copy does, so that it would pass for what is ahead of it.
    secret.write_bytes(file.read_bytes() + json.dumps(content).encode() + b"\n")
    file.unlink()
    if kind == "link":
        file.symlink_to(secret)
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        folder = file.parent
        for path in folder.iterdir():
            if path.is_file() or path.is_symlink():
                path.unlink()
        folder.rename(folder.with_name("moved"))
        (directory / "elsewhere").mkdir(exist_ok=True)
        (directory / "elsewhere" / file.name).write_bytes(secret.read_bytes())
        folder.symlink_to(directory / "elsewhere")
    before = secret.read_bytes()
    async with asyncio.timeout(20):
        await here.run(talk.turn({"recall": "a secret"}))
    assert here.said == "I do not remember that."
    assert secret.read_bytes() == before
    assert not [entry for entry in talk.transcripts.entries[talk.session_id] if content["uuid"] == entry[2]]


def test_a_line_that_was_cut_off_is_taken_away(tmp_path: Path):
    files = TranscriptFiles(tmp_path, tmp_path / "workspace", "c")
    entries = [UUID(int=number) for number in (1, 2)]
    whole = [{"type": "user", "uuid": str(uuid)} for uuid in entries]
    files.replace({"": [Namer().name(content) for content in whole]})
    [file] = tmp_path.glob(".claude/projects/*/c.jsonl")
    with file.open("a", encoding="utf-8") as out:
        out.write('{"type": "user", "uu')
    assert [entry.id for entry in files.read(trim=True)[""]] == [str(uuid) for uuid in entries]
    assert file.read_text(encoding="utf-8").endswith("}\n")
    assert missing_from_store(files.read(), files.read()) == {}
