"""What became of tool calls: by the log, and by the marks that tools leave in the workspace.

A tool call of the harness appends one line, `TOKEN seconds`, to one file. An attempt that is lost
may ask for the same call again, under another id and with another decision; so lines are compared with decisions.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator

from .records import Event, SessionRecord

MARKS = "ran.txt"
"""The file that tools append to."""
CLOCK_SECONDS = 0.05
"""A decision's time is the database's, a mark's the shell's: one clock, read at two places."""


def judge_tools(session: SessionRecord) -> Iterator[tuple[str, str]]:
    """Yields (promise, what was seen) for each violation."""
    calls: dict[str, Event] = {}
    decisions: dict[str, list[Event]] = defaultdict(list)
    results: dict[str, list[Event]] = defaultdict(list)
    for event in session.log:
        call_id = str(event.data.get("tool_use_id", ""))
        match event.kind:
            case "tool_use":
                if call_id in calls:
                    yield (
                        "tool call doubled",
                        f"{call_id}: events {calls[call_id].sequence}, {event.sequence}",
                    )
                calls[call_id] = event
            case "tool_decision":
                decisions[call_id].append(event)
            case "tool_result":
                results[call_id].append(event)
    for call_id, made in decisions.items():
        if len(made) > 1:
            yield "tool call decided twice", f"{call_id}: events {[event.sequence for event in made]}"
    for call_id, ended in results.items():
        if len(ended) > 1:
            yield "tool result doubled", f"{call_id}: events {[event.sequence for event in ended]}"
        first = ended[0]
        before = [event for event in decisions[call_id] if event.sequence < first.sequence]
        allowed = any(event.data.get("decision") == "ALLOW" for event in before)
        if not allowed and not first.data.get("is_error"):
            yield "tool run without a decision", f"{call_id}: event {first.sequence} is its result"
    yield from _marks(session, calls, decisions)


def _marks(
    session: SessionRecord, calls: dict[str, Event], decisions: dict[str, list[Event]]
) -> Iterator[tuple[str, str]]:
    ran: dict[str, list[float]] = defaultdict(list)
    for line in session.files.get(MARKS, "").splitlines():
        token, _, seconds = line.partition(" ")
        try:
            ran[token].append(float(seconds))
        except ValueError:
            yield "workspace damaged", f"{MARKS} has the line {line!r}"
    allowed: dict[str, list[float]] = defaultdict(list)
    for call_id, call in calls.items():
        text = json.dumps(call.data.get("input", {}))
        for token in ran:
            # Tokens end where the shell's word does: s1 is not s10.
            if f"{token} " in text:
                made = decisions[call_id]
                allowed[token] += [event.at for event in made if event.data.get("decision") == "ALLOW"][:1]
    for token, times in ran.items():
        given = sorted(allowed[token])
        if not given:
            yield "tool run without a decision", f"{token} ran at {times}, and no call of it was allowed"
            continue
        for number, at in enumerate(sorted(times), start=1):
            had = sum(when <= at + CLOCK_SECONDS for when in given)
            if had < number:
                what = f"{token} ran for the {number}. time at {at:.3f}, after {had} decisions of {given}"
                yield ("tool run twice for one call" if had else "tool run without a decision"), what
                break
