"""The gate under any weather: whatever is dropped, doubled or swapped, what leaves is whole, in order and once."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.session.domain.gate import BlockKey, Delta, Gate, GateEvent, NeedBlock, NeedRead

TURN = UUID(int=7)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@dataclass
class History:
    """What a driver wrote and published, in its order, and the texts of the completed blocks."""

    log: list[GateEvent] = field(default_factory=list)
    published: list[GateEvent | Delta] = field(default_factory=list)
    texts: dict[BlockKey, str] = field(default_factory=dict)

    def event(self, **fields: object) -> None:
        event = GateEvent(len(self.log) + 1, f"event {len(self.log) + 1}", **fields)  # type: ignore[arg-type]
        self.log.append(event)
        self.published.append(event)


@st.composite
def histories(draw: st.DrawFn) -> History:
    """One or two turns of one or two attempts: blocks with their deltas, events between them, blocks left open."""
    history = History()
    turns = draw(st.integers(1, 2))
    for number in range(1, turns + 1):
        turn = UUID(int=number)
        history.event()
        for attempt in range(1, draw(st.integers(1, 2)) + 1):
            history.event(begins_attempt=(turn, attempt))
            for block in range(1, draw(st.integers(1, 4)) + 1):
                add_block(draw, history, BlockKey(turn, attempt, block))
        if number < turns or draw(st.booleans()):
            history.event(ends_turn=turn)
    return history


def add_block(draw: st.DrawFn, history: History, key: BlockKey) -> None:
    thinking = draw(st.booleans())
    offset = 0
    pieces = draw(st.lists(TEXT, max_size=5))
    for piece in pieces:
        history.published.append(Delta(key, offset, piece, thinking, len(history.log)))
        offset += len(piece)
        if draw(st.integers(0, 5)) == 0:
            history.event()
    if draw(st.integers(0, 5)):
        # A message may hold more than its deltas said: the last of them were never published.
        text = "".join(pieces) + draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=3))
        if text:
            history.texts[key] = text
            history.event(completes=key, text=text, thinking=thinking)
    if draw(st.integers(0, 2)) == 0:
        history.event()


@dataclass
class Client:
    """What a watcher has made of what it was sent."""

    gate: Gate
    events: list[int] = field(default_factory=list)
    texts: dict[BlockKey, str] = field(default_factory=dict)

    def take(self, items: list[Delta | GateEvent]) -> None:
        for item in items:
            if isinstance(item, GateEvent):
                self.events.append(item.sequence)
                if item.completes is not None:
                    assert self.texts.get(item.completes, "") == item.text
            else:
                known = self.texts.get(item.key, "")
                assert item.offset == len(known), "a piece follows the one before it"
                assert item.text, "no empty pieces"
                self.texts[item.key] = known + item.text


def feed(client: Client, history: History, arriving: list[GateEvent | Delta]) -> None:
    """Drives a gate as the use case does: reads the log where it asks for it, and a block's text where it does."""
    for frame in arriving:
        while True:
            try:
                client.take(
                    client.gate.event(frame) if isinstance(frame, GateEvent) else client.gate.delta(frame)
                )
                break
            except NeedRead:
                for event in history.log[client.gate.sequence :]:
                    client.take(client.gate.event(event))
            except NeedBlock:
                assert isinstance(frame, Delta)
                with suppress(NeedRead, NeedBlock):
                    client.take(client.gate.delta(text_so_far(history, frame)))
                break


def text_so_far(history: History, delta: Delta) -> Delta:
    """The text of the delta's block up to its end, as the driver keeps it for those who join."""
    text = ""
    for item in history.published:
        if isinstance(item, Delta) and item.key == delta.key and item.offset <= delta.offset:
            text = text[: item.offset] + item.text
    return Delta(delta.key, 0, text, delta.thinking, delta.after_sequence)


def finish(client: Client, history: History) -> None:
    for event in history.log[client.gate.sequence :]:
        client.take(client.gate.event(event))


def weather(history: History, draw: st.DrawFn) -> list[GateEvent | Delta]:
    """What arrives of what was published: from two sources, with losses, repetitions and in another order."""
    arriving = [item for item in history.published for _ in range(draw(st.integers(0, 2)))]
    for _ in range(draw(st.integers(0, 6))):
        if arriving:
            place, other = (draw(st.integers(0, len(arriving) - 1)) for _ in range(2))
            arriving[place], arriving[other] = arriving[other], arriving[place]
    return arriving


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_events_are_gapless_and_once_and_deltas_join_to_messages(data: st.DataObject):
    history = data.draw(histories())
    client = Client(Gate())
    feed(client, history, weather(history, data.draw))
    finish(client, history)
    assert client.events == [event.sequence for event in history.log]
    for key, text in history.texts.items():
        assert client.texts[key] == text


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_watcher_that_is_cut_off_anywhere_goes_on_where_it_stood(data: st.DataObject):
    history = data.draw(histories())
    client = Client(Gate())
    for _ in range(data.draw(st.integers(1, 4))):
        arriving = weather(history, data.draw)
        feed(client, history, arriving[: data.draw(st.integers(0, len(arriving)))])
        # A new connection, perhaps to another replica, knows nothing but the cursor, and what happened before it.
        gate = Gate(client.gate.sequence, client.gate.key, client.gate.offset)
        for event in history.log[: client.gate.sequence]:
            gate.observe(event)
        client.gate = gate
    feed(client, history, history.published)
    finish(client, history)
    assert client.events == [event.sequence for event in history.log]
    for key, text in history.texts.items():
        assert client.texts[key] == text


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_two_watchers_see_the_same_events(data: st.DataObject):
    history = data.draw(histories())
    seen = []
    for _ in range(2):
        client = Client(Gate())
        feed(client, history, weather(history, data.draw))
        finish(client, history)
        seen.append(client.events)
    assert seen[0] == seen[1]


KEY = BlockKey(TURN, 1, 1)


def test_the_missing_rest_of_a_block_goes_out_before_its_message():
    gate = Gate()
    assert gate.delta(Delta(KEY, 0, "naïve 🦊", False)) == [Delta(KEY, 0, "naïve 🦊", False)]
    out = gate.event(GateEvent(1, "e", completes=KEY, text="naïve 🦊 jumps"))
    assert out[0] == Delta(KEY, 7, " jumps", False)
    assert isinstance(out[1], GateEvent)


def test_overlap_is_cut_and_a_gap_waits():
    gate = Gate()
    gate.delta(Delta(KEY, 0, "abc", False))
    assert gate.delta(Delta(KEY, 1, "bcde", False)) == [Delta(KEY, 3, "de", False)]
    assert gate.delta(Delta(KEY, 0, "abc", False)) == []
    with pytest.raises(NeedBlock):
        gate.delta(Delta(KEY, 9, "z", False))
    assert gate.offset == 5


def test_a_completed_block_gets_no_more_pieces():
    gate = Gate()
    gate.event(GateEvent(1, "e", completes=KEY, text="done"))
    assert gate.delta(Delta(KEY, 0, "done", False)) == []
    assert gate.delta(Delta(BlockKey(TURN, 1, 2), 0, "next", False))


def test_a_new_attempt_voids_the_open_block():
    gate = Gate()
    gate.delta(Delta(KEY, 0, "half", False))
    gate.event(GateEvent(1, "e", begins_attempt=(TURN, 2)))
    assert gate.key is None
    assert gate.delta(Delta(KEY, 4, " more", False)) == []


def test_a_start_of_before_that_is_told_late_brings_no_old_attempt_back():
    gate = Gate(7)
    gate.event(GateEvent(8, "e", begins_attempt=(TURN, 2)))
    gate.observe(GateEvent(3, "e", begins_attempt=(TURN, 1)))
    assert gate.delta(Delta(KEY, 0, "old", False, 3)) == []


def test_what_comes_too_early_asks_for_the_log():
    gate = Gate()
    with pytest.raises(NeedRead):
        gate.event(GateEvent(2, "e"))
    with pytest.raises(NeedRead):
        gate.delta(Delta(KEY, 0, "x", False, after_sequence=1))
    assert gate.event(GateEvent(1, "e"))
    assert gate.event(GateEvent(1, "e")) == []
