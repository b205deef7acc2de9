"""What was seen from outside during a run: plain values, so that a checker can be given made-up ones."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Block = tuple[str, int, int]
"""Turn, attempt and number of a block."""


@dataclass
class Event:
    """An entry of a session's log. `at` is its creation time in seconds, `data` its payload as JSON."""

    sequence: int
    turn_id: str
    at: float
    kind: str
    digest: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Seen:
    """One thing that a watcher received: an event (with its digest), or a piece of a block."""

    at: float
    sequence: int = 0
    digest: str = ""
    completes: Block | None = None
    block: Block | None = None
    offset: int = 0
    text: str = ""


@dataclass
class WatcherRecord:
    """All that one watcher received over all its connections, in order."""

    name: str
    session_id: str
    deltas: bool = True
    connections: int = 0
    finished: bool = False
    seen: list[Seen] = field(default_factory=list)


@dataclass
class SessionRecord:
    """A session as it stands at the end; `files` holds the workspace's texts by path."""

    session_id: str
    log: list[Event] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class Sent:
    """A message, known by its `mark`.

    Attributes:
        turn_id: Empty if no try was answered.
        recalled: The mark of an earlier message of the conversation that its answer repeats, if any.
    """

    session_id: str
    mark: str
    turn_id: str = ""
    recalled: str = ""


@dataclass
class Answered:
    """An answer to a question that the suite has taken."""

    session_id: str
    permission_request_id: str
    allow: bool


@dataclass
class Uploaded:
    """A file whose upload was confirmed."""

    session_id: str
    path: str
    text: str


@dataclass
class Struck:
    """A fault that was done.

    Attributes:
        at: When it began; `until` when it was over: a thaw, or `at`.
        kind: Of the victim; `how`: what was done.
        session_ids: Those it hits; None for all.
        back_seconds: Until the supervisor had a successor that serves; None where none is due, -1 if it never came.
    """

    kind: str
    how: str
    at: float
    until: float
    session_ids: list[str] | None = None
    back_seconds: float | None = None
    victim: str = ""


@dataclass
class Leftover:
    """A process that should not be there."""

    pid: int
    command: str
    why: str


@dataclass
class Records:
    """A whole run. `missing` names the kinds of processes of which there were too few at its end."""

    sessions: list[SessionRecord] = field(default_factory=list)
    watchers: list[WatcherRecord] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    uploaded: list[Uploaded] = field(default_factory=list)
    struck: list[Struck] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    @property
    def last_fault(self) -> float:
        """When the last fault was over."""
        return max((struck.until for struck in self.struck), default=0.0)

    def save(self, path: Path) -> None:
        """Writes everything as JSON."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")
