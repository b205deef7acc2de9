"""The checker under made-up records: one that is whole, and each promise broken once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .checker import END_SECONDS, FORGOTTEN, figures, judge
from .records import (
    Answered,
    Event,
    Leftover,
    Records,
    Seen,
    Sent,
    SessionRecord,
    Struck,
    Uploaded,
    WatcherRecord,
)
from .recovery import longest

pytestmark = pytest.mark.unit

SESSION, TURN, CALL, ASKED = "session", "turn", "call", "question"
BLOCK = (TURN, 1, 1)
TEXT = "Hello, world."


def event(sequence: int, kind: str, **data: Any) -> Event:
    """An event of the turn, a second after the one before it."""
    return Event(sequence, TURN, 100.0 + sequence, kind, f"d{sequence}", data)


def whole() -> Records:
    """A run without a violation: one turn with a call that a person has allowed, two watchers, one fault."""
    log = [
        event(1, "user_message", content={"text": "[mark] please"}),
        event(2, "attempt_started", attempt=1),
        event(3, "tool_use", tool_use_id=CALL, input={"command": "echo token $(date) >> ran.txt"}),
        event(4, "permission_requested", permission_request_id=ASKED, tool_use_id=CALL),
        event(5, "permission_resolved", permission_request_id=ASKED, state="ALLOWED"),
        event(6, "tool_decision", tool_use_id=CALL, decision="ALLOW", permission_request_id=ASKED),
        event(7, "tool_result", tool_use_id=CALL),
        event(8, "assistant_message", attempt=1, block=1, content={"text": TEXT}),
        event(9, "turn_ended", state="SUCCEEDED"),
    ]
    pieces = [
        Seen(107.5, block=BLOCK, text=TEXT[:6]),
        Seen(107.6, block=BLOCK, offset=6, text=TEXT[6:]),
    ]
    events = [Seen(it.at, it.sequence, it.digest, BLOCK if it.sequence == 8 else None) for it in log]
    return Records(
        sessions=[SessionRecord(SESSION, log, {"ran.txt": "token 106.5\n", "up.txt": "up"})],
        watchers=[
            WatcherRecord("with deltas", SESSION, True, 2, True, [*events[:7], *pieces, *events[7:]]),
            WatcherRecord("without", SESSION, False, 1, True, list(events)),
        ],
        sent=[Sent(SESSION, "[mark]", TURN)],
        answered=[Answered(SESSION, ASKED, True)],
        uploaded=[Uploaded(SESSION, "up.txt", "up")],
        struck=[Struck("session", "kill", 106.2, 106.2, None, 1.0)],
    )


def test_a_whole_run_has_no_violation():
    assert judge(whole()) == []


def log_of(records: Records) -> list[Event]:
    return records.sessions[0].log


def seen_of(records: Records) -> list[Seen]:
    return records.watchers[0].seen


def lose_an_event(records: Records) -> None:
    del seen_of(records)[3]


def lose_the_last_event(records: Records) -> None:
    del seen_of(records)[-1]


def double_an_event(records: Records) -> None:
    seen_of(records).insert(4, seen_of(records)[3])


def change_an_event(records: Records) -> None:
    seen_of(records)[3].digest = "another"


def invent_an_event(records: Records) -> None:
    seen_of(records).append(Seen(120.0, 10, "d10"))


def tear_the_log(records: Records) -> None:
    for entry in log_of(records)[4:]:
        entry.sequence += 1


def lose_a_piece(records: Records) -> None:
    del seen_of(records)[8]


def repeat_a_piece(records: Records) -> None:
    seen_of(records).insert(8, seen_of(records)[7])


def change_a_piece(records: Records) -> None:
    seen_of(records)[8].text = "moon.."


def send_a_piece_late(records: Records) -> None:
    seen_of(records).append(Seen(120.0, block=BLOCK, offset=len(TEXT), text="!"))


def not_end(records: Records) -> None:
    log_of(records).pop()
    for watcher in records.watchers:
        watcher.seen.pop()


def end_late(records: Records) -> None:
    log_of(records)[-1].at = 106.2 + END_SECONDS + 1


def end_twice(records: Records) -> None:
    log_of(records).append(event(10, "turn_ended", state="SUCCEEDED"))
    for watcher in records.watchers:
        watcher.seen.append(Seen(110.0, 10, "d10"))


def end_without_a_reason(records: Records) -> None:
    log_of(records)[-1].data = {"state": "FAILED"}


def replace(records: Records, sequence: int, kind: str, **data: Any) -> None:
    """Puts another event into the log, as if all watchers had seen it."""
    entry = log_of(records)[sequence - 1]
    entry.kind, entry.data = kind, data


def run_undecided(records: Records) -> None:
    replace(records, 6, "notice")


def run_denied(records: Records) -> None:
    records.answered.clear()
    replace(records, 6, "tool_decision", tool_use_id=CALL, decision="DENY")


def leave_a_mark_without_a_call(records: Records) -> None:
    records.sessions[0].files["ran.txt"] += "other 107.0\n"


def leave_a_mark_before_the_decision(records: Records) -> None:
    records.sessions[0].files["ran.txt"] = "token 105.5\n"


def run_twice(records: Records) -> None:
    records.sessions[0].files["ran.txt"] += "token 107.0\n"


def decide_twice(records: Records) -> None:
    replace(records, 2, "tool_decision", tool_use_id=CALL, decision="ALLOW")


def result_twice(records: Records) -> None:
    replace(records, 8, "tool_result", tool_use_id=CALL)


def forget_an_answer(records: Records) -> None:
    replace(records, 5, "notice")


def not_use_an_answer(records: Records) -> None:
    # Nothing ran, and the turn waits for ever.
    records.sessions[0].files["ran.txt"] = ""
    for sequence in (6, 7, 9):
        replace(records, sequence, "notice")


def use_an_answer_twice(records: Records) -> None:
    replace(records, 2, "tool_decision", tool_use_id="other", decision="ALLOW", permission_request_id=ASKED)


def turn_an_answer_round(records: Records) -> None:
    records.sessions[0].files["ran.txt"] = ""
    replace(records, 7, "tool_result", tool_use_id=CALL, is_error=True)
    replace(records, 6, "tool_decision", tool_use_id=CALL, decision="DENY", permission_request_id=ASKED)


def lose_a_message(records: Records) -> None:
    records.sent.append(Sent(SESSION, "[other]", "other-turn"))


def double_a_message(records: Records) -> None:
    replace(records, 2, "user_message", content={"text": "[mark] please"})


def forget_the_conversation(records: Records) -> None:
    records.sent[0].recalled = "[earlier]"
    replace(records, 2, "assistant_message", attempt=1, block=1, content={"text": FORGOTTEN})


def lose_an_upload(records: Records) -> None:
    del records.sessions[0].files["up.txt"]


def leave_a_process(records: Records) -> None:
    records.leftovers.append(Leftover(4711, "sleep 60", "has no parent left"))


def not_start_again(records: Records) -> None:
    records.struck[0].back_seconds = -1


def miss_one_at_the_end(records: Records) -> None:
    records.missing.append("session: 1 of 2")


def garble_the_workspace(records: Records) -> None:
    records.sessions[0].files["ran.txt"] += "tok\n"


def not_answer_a_call(records: Records) -> None:
    records.troubles.append("SendMessage was not answered")


@pytest.mark.parametrize(
    ("break_it", "promise"),
    [
        (lose_an_event, "event lost"),
        (lose_the_last_event, "event lost"),
        (double_an_event, "event doubled"),
        (change_an_event, "event with another content"),
        (invent_an_event, "event unknown to the log"),
        (tear_the_log, "log not gapless"),
        (lose_a_piece, "text not that of its message"),
        (repeat_a_piece, "text with a gap or an overlap"),
        (change_a_piece, "text not that of its message"),
        (send_a_piece_late, "text after its message"),
        (not_end, "turn without an end"),
        (end_late, "turn ended late"),
        (end_twice, "turn ended twice"),
        (end_without_a_reason, "turn ended without a reason"),
        (run_undecided, "tool run without a decision"),
        (run_denied, "tool run without a decision"),
        (leave_a_mark_without_a_call, "tool run without a decision"),
        (leave_a_mark_before_the_decision, "tool run without a decision"),
        (run_twice, "tool run twice for one call"),
        (decide_twice, "tool call decided twice"),
        (result_twice, "tool result doubled"),
        (forget_an_answer, "answer lost"),
        (not_use_an_answer, "answer lost"),
        (use_an_answer_twice, "answer used twice"),
        (turn_an_answer_round, "answer turned round"),
        (lose_a_message, "message lost"),
        (double_a_message, "message doubled"),
        (forget_the_conversation, "conversation forgotten"),
        (lose_an_upload, "upload lost"),
        (leave_a_process, "process left over"),
        (not_start_again, "not started again"),
        (miss_one_at_the_end, "not started again"),
        (garble_the_workspace, "workspace damaged"),
        (not_answer_a_call, "harness"),
    ],
)
def test_each_broken_promise_is_seen(break_it: Callable[[Records], None], promise: str):
    records = whole()
    break_it(records)
    assert promise in {violation.promise for violation in judge(records)}


def test_a_call_repeated_by_a_new_attempt_with_its_own_decision_is_no_violation():
    records = whole()
    records.answered.clear()
    replace(records, 4, "tool_decision", tool_use_id="first", decision="ALLOW")
    replace(records, 2, "tool_use", tool_use_id="first", input={"command": "echo token $(date) >> ran.txt"})
    records.sessions[0].files["ran.txt"] = "token 104.5\ntoken 106.5\n"
    assert judge(records) == []


def test_a_token_that_begins_another_is_not_taken_for_it():
    records = whole()
    records.sessions[0].files["ran.txt"] += "tok 107.0\n"
    assert [violation.promise for violation in judge(records)] == ["tool run without a decision"]


def test_the_longest_recovery_leaves_out_the_time_a_person_took():
    records = whole()
    found = longest(records)
    assert found is not None
    assert found.seconds == pytest.approx(0.8)
    records.struck = [Struck("cli", "kill", 104.5, 104.5, [SESSION])]
    assert longest(records) is None
    records.struck = [Struck("cli", "kill", 106.2, 106.2, ["another"])]
    assert longest(records) is None


def test_a_recovery_counts_from_a_thaw():
    records = whole()
    records.struck = [Struck("executor", "freeze", 106.2, 106.9, None)]
    found = longest(records)
    assert found is not None
    assert found.seconds == pytest.approx(0.1)


def test_figures_count_what_a_run_consisted_of():
    counted = figures(whole())
    assert counted["turns"] == counted["turns SUCCEEDED"] == 1
    assert counted["events at watchers"] == 18
    assert counted["deltas at watchers"] == 2
