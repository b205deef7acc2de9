"""How long the suite took to go on after each fault."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from .records import Records, SessionRecord, Struck


@dataclass(frozen=True)
class Recovery:
    """From a fault's end to the next sign of progress of a session that it hit."""

    seconds: float
    kind: str
    how: str
    session_id: str
    at: float


def recoveries(records: Records) -> list[Recovery]:
    """One for each fault and session that had something to do when it struck and went on after it.

    A session has something to do while a turn of it is open and nobody is asked. Progress is an event of the log, or
    a piece of text at any watcher.
    """
    found = []
    for session in records.sessions:
        progress = sorted(
            [event.at for event in session.log]
            + [
                seen.at
                for watcher in records.watchers
                if watcher.session_id == session.session_id
                for seen in watcher.seen
                if seen.block is not None
            ]
        )
        busy = _busy(session)
        for struck in records.struck:
            if struck.session_ids is not None and session.session_id not in struck.session_ids:
                continue
            if not any(begin <= struck.at < end for begin, end in busy):
                continue
            after = next((at for at in progress if at > struck.at), None)
            if after is not None:
                seconds = max(0.0, after - struck.until)
                found.append(Recovery(seconds, struck.kind, struck.how, session.session_id, struck.at))
    return found


def _busy(session: SessionRecord) -> list[tuple[float, float]]:
    """Spans between two entries of the log during which the agent or the suite had to do something."""
    spans = []
    open_turns: set[str] = set()
    asked: set[str] = set()
    for event, following in pairwise(session.log):
        match event.kind:
            case "user_message":
                open_turns.add(event.turn_id)
            case "turn_ended":
                open_turns.discard(event.turn_id)
                asked.clear()
            case "permission_requested":
                asked.add(event.data["permission_request_id"])
            case "permission_resolved":
                asked.discard(event.data["permission_request_id"])
        if open_turns and not asked:
            spans.append((event.at, following.at))
    return spans


def longest(records: Records) -> Recovery | None:
    """The longest recovery of a run."""
    return max(recoveries(records), key=lambda recovery: recovery.seconds, default=None)


def longest_by_kind(records: Records) -> dict[str, float]:
    """The longest recovery of each kind of fault, in seconds."""
    found: dict[str, float] = {}
    for recovery in recoveries(records):
        name = f"{recovery.kind} {recovery.how}"
        found[name] = round(max(recovery.seconds, found.get(name, 0.0)), 1)
    return dict(sorted(found.items()))


def kinds_of(struck: list[Struck]) -> dict[str, int]:
    """How many faults of each kind were done."""
    counts: dict[str, int] = {}
    for one in struck:
        name = f"{one.kind} {one.how}"
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))
