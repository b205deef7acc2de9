"""Judges a run by its records alone: it knows the contract, and nothing of how the suite keeps it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from .records import Block, Event, Records, SessionRecord, WatcherRecord
from .tools import judge_tools

END_SECONDS = 30.0
"""A turn has ended so long after the last fault."""
FORGOTTEN = "I do not remember that."
"""What the offline model says when a script's `recall` finds nothing in the conversation."""


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept, where, and what was seen."""

    promise: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.where}: {self.what}"


def judge(records: Records) -> list[Violation]:
    """Finds every violation in a run's records."""
    found = [Violation("harness", "-", trouble) for trouble in records.troubles]
    logs = {session.session_id: session for session in records.sessions}
    for session in records.sessions:
        found += _log(session)
        found += _turns(session, records.last_fault)
        found += [Violation(promise, session.session_id, what) for promise, what in judge_tools(session)]
    for watcher in records.watchers:
        found += _watcher(watcher, logs[watcher.session_id])
        if watcher.deltas:
            found += _texts(watcher, logs[watcher.session_id])
    found += _messages(records, logs)
    found += _answers(records, logs)
    for uploaded in records.uploaded:
        if logs[uploaded.session_id].files.get(uploaded.path) != uploaded.text:
            what = f"{uploaded.path} is not in the workspace as it was uploaded"
            found.append(Violation("upload lost", uploaded.session_id, what))
    for left in records.leftovers:
        found.append(Violation("process left over", f"pid {left.pid}", f"{left.why}: {left.command}"))
    found += [Violation("not started again", "at the end", kind) for kind in records.missing]
    for struck in records.struck:
        if struck.back_seconds == -1:
            found.append(Violation("not started again", struck.victim, f"{struck.kind} {struck.how}"))
    return found


def _log(session: SessionRecord) -> Iterator[Violation]:
    for place, event in enumerate(session.log, start=1):
        if event.sequence != place:
            what = f"ListEvents has {event.sequence} at place {place}"
            yield Violation("log not gapless", session.session_id, what)
            return


def _turns(session: SessionRecord, last_fault: float) -> Iterator[Violation]:
    begun = [event for event in session.log if event.kind == "user_message"]
    ends: dict[str, list[Event]] = defaultdict(list)
    for event in session.log:
        if event.kind == "turn_ended":
            ends[event.turn_id].append(event)
    for event in begun:
        where = f"{session.session_id} turn {event.turn_id}"
        ended = ends.get(event.turn_id, [])
        if not ended:
            yield Violation("turn without an end", where, f"last seen: {_last(session, event.turn_id)}")
        elif len(ended) > 1:
            yield Violation("turn ended twice", where, f"events {[end.sequence for end in ended]}")
        elif ended[0].at > last_fault + END_SECONDS:
            late = ended[0].at - last_fault
            yield Violation("turn ended late", where, f"{late:.1f} s after the last fault")
        elif ended[0].data.get("state") not in ("SUCCEEDED", "INTERRUPTED") and not ended[0].data.get(
            "failure", {}
        ).get("reason"):
            yield Violation("turn ended without a reason", where, str(ended[0].data))


def _last(session: SessionRecord, turn_id: str) -> str:
    last = [event for event in session.log if event.turn_id == turn_id][-1]
    return (
        f"event {last.sequence} {last.kind} {last.data if last.kind == 'turn_state_changed' else ''}".strip()
    )


def _watcher(watcher: WatcherRecord, session: SessionRecord) -> Iterator[Violation]:
    where = f"{watcher.name} of {watcher.session_id}"
    log = {event.sequence: event for event in session.log}
    last = 0
    for seen in watcher.seen:
        if not seen.sequence:
            continue
        if seen.sequence <= last:
            yield Violation("event doubled", where, f"{seen.sequence} after {last}")
            continue
        if seen.sequence > last + 1:
            yield Violation("event lost", where, f"{seen.sequence} after {last}")
        last = seen.sequence
        entry = log.get(seen.sequence)
        if entry is None:
            yield Violation("event unknown to the log", where, str(seen.sequence))
        elif entry.digest != seen.digest:
            yield Violation("event with another content", where, f"{seen.sequence} {entry.kind}")
    if last < len(session.log) or not watcher.finished:
        what = f"ended at {last} of {len(session.log)}"
        yield Violation("event lost", where, what if watcher.finished else f"{what}; its stream did not end")


def _texts(watcher: WatcherRecord, session: SessionRecord) -> Iterator[Violation]:
    where = f"{watcher.name} of {watcher.session_id}"
    messages = {event.sequence: event for event in session.log if event.kind == "assistant_message"}
    texts: dict[Block, str] = {}
    done: set[Block] = set()
    for seen in watcher.seen:
        if seen.block is not None:
            known = texts.get(seen.block, "")
            if seen.block in done:
                yield Violation("text after its message", where, f"{seen.block} at {seen.offset}")
            elif seen.offset != len(known):
                what = f"{seen.block}: a piece at {seen.offset} after {len(known)}"
                yield Violation("text with a gap or an overlap", where, what)
            texts[seen.block] = known[: seen.offset] + seen.text
        elif seen.completes is not None and seen.sequence in messages:
            done.add(seen.completes)
            text = messages[seen.sequence].data.get("content", {}).get("text", "")
            if texts.get(seen.completes, "") != text:
                what = f"event {seen.sequence}: {texts.get(seen.completes, '')[-40:]!r} is not {text[-40:]!r}"
                yield Violation("text not that of its message", where, what)


def _messages(records: Records, logs: dict[str, SessionRecord]) -> Iterator[Violation]:
    for sent in records.sent:
        messages = [event for event in logs[sent.session_id].log if event.kind == "user_message"]
        having = [event for event in messages if sent.mark in event.data.get("content", {}).get("text", "")]
        if sent.turn_id and not any(event.turn_id == sent.turn_id for event in having):
            yield Violation("message lost", sent.session_id, f"{sent.mark}, turn {sent.turn_id}")
        if len(having) > 1:
            what = f"{sent.mark} is in events {[event.sequence for event in having]}"
            yield Violation("message doubled", sent.session_id, what)
        answers = [
            event.data.get("content", {}).get("text", "")
            for event in logs[sent.session_id].log
            if event.kind == "assistant_message" and event.turn_id == sent.turn_id
        ]
        if sent.recalled and FORGOTTEN in answers:
            what = f"{sent.mark} asked for {sent.recalled}, which had been answered"
            yield Violation("conversation forgotten", sent.session_id, what)


def _answers(records: Records, logs: dict[str, SessionRecord]) -> Iterator[Violation]:
    for answer in records.answered:
        log = logs[answer.session_id].log
        asked = answer.permission_request_id
        where = f"{answer.session_id} question {asked}"
        resolved = [
            event
            for event in log
            if event.kind == "permission_resolved" and event.data.get("permission_request_id") == asked
        ]
        states = [event.data.get("state") for event in resolved]
        if states != ["ALLOWED" if answer.allow else "DENIED"]:
            yield Violation("answer lost", where, f"allow={answer.allow} was taken, the log says {states}")
            continue
        used = [
            event
            for event in log
            if event.kind == "tool_decision" and event.data.get("permission_request_id") == asked
        ]
        if len(used) > 1:
            yield Violation("answer used twice", where, f"events {[event.sequence for event in used]}")
        if any((event.data.get("decision") == "ALLOW") is not answer.allow for event in used):
            yield Violation("answer turned round", where, f"allow={answer.allow}, {used[0].data}")
        turn_id = resolved[0].turn_id
        if not used and not any(event.kind == "turn_ended" and event.turn_id == turn_id for event in log):
            yield Violation(
                "answer lost", where, f"its turn waits still: {_last(logs[answer.session_id], turn_id)}"
            )


def figures(records: Records) -> dict[str, int]:
    """What a run consisted of, in numbers."""
    kinds = Counter(event.kind for session in records.sessions for event in session.log)
    ends = Counter(
        f"turns {event.data.get('state', '?')}"
        for session in records.sessions
        for event in session.log
        if event.kind == "turn_ended"
    )
    return {
        "sessions": len(records.sessions),
        "turns": kinds["user_message"],
        **dict(sorted(ends.items())),
        "attempts": kinds["attempt_started"],
        "tool calls": kinds["tool_use"],
        "questions": kinds["permission_requested"],
        "answers": len(records.answered),
        "interrupts": kinds["interrupt_requested"],
        "uploads": len(records.uploaded),
        "events": sum(kinds.values()),
        "watchers": len(records.watchers),
        "watchers' connections": sum(watcher.connections for watcher in records.watchers),
        "events at watchers": sum(bool(seen.sequence) for w in records.watchers for seen in w.seen),
        "deltas at watchers": sum(seen.block is not None for w in records.watchers for seen in w.seen),
    }
