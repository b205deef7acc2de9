"""The ports of the use cases."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from services.executor.domain.items import Decision, Item, Spent, ToolUse
from services.executor.domain.transcripts import Entry


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What a turn needs; times in seconds, money in US dollars."""

    session_id: UUID
    organization_id: UUID
    turn_id: UUID
    attempt: int
    options: Mapping[str, Any]
    prompt: str
    prompt_id: UUID
    cli_session_id: str
    workspace: str
    timeout_seconds: float
    budget_usd: float
    earlier_decisions: tuple[tuple[str, str, bool, str], ...]
    possibly_run: tuple[tuple[str, str], ...]
    transcript_position: int = 0
    transcript_token: str = ""
    finished_calls: tuple[tuple[str, str, str, str], ...] = ()
    request_id: str = ""
    background: bool = False

    @property
    def attempt_pass(self) -> AttemptPass:
        """What the store of transcripts asks for."""
        return AttemptPass(self.session_id, self.turn_id, self.attempt, self.transcript_token)


@dataclass(frozen=True, slots=True)
class AttemptPass:
    """An attempt, and the token that lets it write its conversation."""

    session_id: UUID
    turn_id: UUID
    attempt: int
    token: str


@dataclass(frozen=True, slots=True)
class StoredTranscript:
    """A conversation in the store: the session's last position, and entries as (subpath, id, JSON text) in order."""

    position: int
    entries: tuple[tuple[str, str, str], ...]


class TranscriptUnavailable(Exception):
    """The store of transcripts cannot be reached; trying again may help."""


class TranscriptRefused(Exception):
    """The store does not take this attempt's word any more: another one has begun, or the session is gone."""


class TranscriptPort(Protocol):
    """Keeps conversations outside of this machine. Both calls raise TranscriptUnavailable or TranscriptRefused."""

    async def append(
        self, attempt: AttemptPass, cli_session_id: str, subpath: str, entries: Sequence[Entry]
    ) -> int:
        """Adds entries to a transcript, dropping those whose id it has; returns the session's last position."""

    async def read(self, attempt: AttemptPass, cli_session_id: str) -> StoredTranscript:
        """Reads a conversation."""


Emit = Callable[[Item], Awaitable[None]]
"""Takes an item into the attempt's buffer; waits while the buffer is full."""
Ask = Callable[[ToolUse], Awaitable[Decision]]
"""Asks whether a tool call may run, and waits for the decision."""


class Agent(Protocol):
    """A live Claude Code process of one session."""

    @property
    def alive(self) -> bool:
        """Whether it can take a turn."""

    def fits(self, request: TurnRequest) -> bool:
        """Whether it stands where the turn begins: same conversation, same options."""

    async def prepare(self, request: TurnRequest) -> None:
        """Does what a start needs and what may wait for others; raises AgentDied if it cannot be done."""

    async def start(self, request: TurnRequest) -> None:
        """Starts the process; raises AgentDied if it does not come up."""

    async def run(self, request: TurnRequest, emit: Emit, ask: Ask, *, reused: bool) -> None:
        """Runs a turn; its last item is AttemptEnded unless the process died, which raises AgentDied."""

    def settle(self) -> Spent:
        """Ends the account of the turn that ran last, with the model calls that are under way; returns what no item
        has told yet, the second time nothing. A turn that was killed has cost what it has cost."""

    async def interrupt(self) -> None:
        """Asks the agent to stop its turn; may take long, or for ever, and may be cancelled. Raises nothing."""

    async def kill(self) -> None:
        """Kills the process and all that it has started; when it returns they run no more. `stop` tidies up after."""

    async def stop(self) -> None:
        """Ends the process, whatever it does. May be called twice."""


class AgentFactory(Protocol):
    """Makes agents."""

    def make(self, session_id: UUID) -> Agent:
        """Returns an agent that is not started."""

    async def forget(self, session_id: UUID) -> None:
        """Removes a session's private files."""

    @property
    def offline_model(self) -> bool:
        """Whether the scripted offline model answers."""

    @property
    def isolation(self) -> str:
        """BUBBLEWRAP or PROCESS."""


class AgentDied(Exception):
    """The agent process ended, or never came up; the text may be shown to a person."""
