"""Transcripts of agents: the CLI's own record of a conversation, entry by entry."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class AttemptName:
    """Which attempt writes or reads."""

    session_id: UUID
    turn_id: UUID
    attempt: int


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry to add; `json` is its text."""

    uuid: UUID
    json: str


@dataclass(frozen=True, slots=True)
class TranscriptEntry:
    """An entry as it is kept; `position` counts all entries of the session from 1."""

    position: int
    subpath: str
    uuid: UUID
    json: str
