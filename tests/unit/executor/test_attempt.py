"""The buffer of an attempt: nothing is lost, nothing comes twice, and it does not grow without bounds."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.domain.items import (
    AttemptEnded,
    BlockCompleted,
    BlockDelta,
    Decision,
    DecisionNeeded,
    Notice,
    Outcome,
    Spent,
    ToolResult,
    Usage,
)
from services.executor.usecases.attempt import BUFFER_BYTES, Attempt
from services.kernel.errors import ServiceError
from services.kernel.testing import FakeClock

from .scripted_agent import a_call, a_request

pytestmark = pytest.mark.unit


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def attempt(clock: FakeClock) -> Attempt:
    return Attempt(a_request(), clock)


async def read_all(attempt: Attempt, after: int = 0) -> list:
    """Reads to the end."""
    return [numbered async for batch in attempt.read(after) for numbered in batch]


async def first_batch(attempt: Attempt, after: int = 0) -> list:
    async for batch in attempt.read(after):
        return batch
    raise AssertionError("no batch")


async def test_readers_see_every_item_with_its_offset_to_the_end(attempt: Attempt):
    reading = asyncio.create_task(read_all(attempt))
    await asyncio.sleep(0)
    await attempt.emit(Notice("A", "a"))
    await attempt.emit(Notice("B", "b"))
    await attempt.emit(AttemptEnded(Outcome.SUCCEEDED))
    seen = await reading
    assert [numbered.offset for numbered in seen] == [1, 2, 3]
    assert [type(numbered.item) for numbered in seen] == [Notice, Notice, AttemptEnded]
    assert await read_all(attempt) == seen, "a second reader sees the same"
    assert await read_all(attempt, after=2) == seen[2:]


async def test_nothing_follows_the_end(attempt: Attempt):
    await attempt.emit(AttemptEnded(Outcome.SUCCEEDED))
    await attempt.emit(Notice("LATE", "too late"))
    await attempt.emit(AttemptEnded(Outcome.FAILED))
    [last] = await read_all(attempt)
    assert last.item.outcome is Outcome.SUCCEEDED


async def test_deltas_that_nobody_has_read_are_joined(attempt: Attempt):
    await attempt.emit(BlockDelta(1, False, 0, "one "))
    await attempt.emit(BlockDelta(1, False, 4, "two "))
    [joined] = await first_batch(attempt)
    assert (joined.offset, joined.item) == (2, BlockDelta(1, False, 0, "one two "))
    await attempt.emit(BlockDelta(1, False, 8, "three"))
    [after] = await first_batch(attempt, joined.offset)
    assert after.item == BlockDelta(1, False, 8, "three"), "what was read is not read again"


async def test_deltas_of_other_blocks_or_with_a_gap_are_not_joined(attempt: Attempt):
    for delta in (
        BlockDelta(1, True, 0, "hm"),
        BlockDelta(1, False, 0, "a"),
        BlockDelta(2, False, 0, "b"),
        BlockDelta(2, False, 7, "c"),
    ):
        await attempt.emit(delta)
    assert len(await first_batch(attempt)) == 4


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), max_size=20),
    st.data(),
)
async def test_whoever_attaches_anywhere_gets_the_text_once(pieces: list[str], data: st.DataObject):
    attempt = Attempt(a_request(), FakeClock())
    offset = position = 0
    text = ""
    for piece in pieces:
        await attempt.emit(BlockDelta(1, False, position, piece))
        position += len(piece)
        if data.draw(st.booleans()):
            # A connection that is cut after one batch; the next one attaches where it stood.
            for numbered in await first_batch(attempt, offset):
                assert numbered.item.text_offset == len(text)
                text += numbered.item.text
                offset = numbered.offset
            if data.draw(st.booleans()):
                attempt.acknowledge(offset)
            if not data.draw(st.integers(0, 3)):
                await attempt.emit(Notice("N", "n"))
                offset = (await first_batch(attempt, offset))[-1].offset
    await attempt.emit(AttemptEnded(Outcome.SUCCEEDED))
    for numbered in await read_all(attempt, offset):
        if isinstance(numbered.item, BlockDelta):
            assert numbered.item.text_offset == len(text)
            text += numbered.item.text
    assert text == "".join(pieces)


@pytest.mark.parametrize("stopping", [None, Outcome.PARKED, Outcome.LOST, Outcome.TIMED_OUT])
async def test_an_end_tells_what_was_spent_whoever_tells_it(clock: FakeClock, stopping: Outcome | None):
    rest = [Spent(Usage(3, 4), 0.1, 1)]
    attempt = Attempt(a_request(), clock, settle=lambda: rest.pop() if rest else Spent())
    attempt.stopping = stopping
    await attempt.emit(Spent(Usage(1, 2), 0.2, 1))
    await attempt.emit(AttemptEnded(stopping or Outcome.SUCCEEDED))
    await attempt.emit(AttemptEnded(Outcome.LOST))
    told, end = [numbered.item for numbered in await read_all(attempt)]
    assert told == Spent(Usage(1, 2), 0.2, 1)
    assert end == AttemptEnded(stopping or Outcome.SUCCEEDED, spent=Spent(Usage(3, 4), 0.1, 1))


async def test_acknowledged_items_are_gone_and_say_so(attempt: Attempt):
    for number in range(3):
        await attempt.emit(Notice("N", str(number)))
    attempt.acknowledge(2)
    with pytest.raises(ServiceError) as refused:
        await read_all(attempt, after=1)
    assert (refused.value.reason, refused.value.metadata) == ("OFFSET_GONE", {"first": "3"})
    assert [numbered.offset for numbered in await first_batch(attempt, 2)] == [3]


async def test_an_acknowledgement_beyond_the_end_forgets_nothing_that_comes(attempt: Attempt):
    await attempt.emit(Notice("N", "1"))
    attempt.acknowledge(99)
    await attempt.emit(Notice("N", "2"))
    assert [numbered.offset for numbered in await first_batch(attempt, 1)] == [2]


async def test_it_is_settled_when_the_end_was_acknowledged(attempt: Attempt):
    await attempt.emit(AttemptEnded(Outcome.SUCCEEDED))
    assert not attempt.settled
    attempt.acknowledge(1)
    assert attempt.settled


async def test_a_full_buffer_holds_the_agent_back_until_somebody_acknowledges(attempt: Attempt):
    large = "x" * (BUFFER_BYTES // 2)
    await attempt.emit(ToolResult("1", large, False))
    waiting = asyncio.create_task(attempt.emit(ToolResult("2", large, False)))
    await asyncio.sleep(0)
    assert not waiting.done()
    attempt.acknowledge((await first_batch(attempt))[-1].offset)
    await waiting
    assert [numbered.item.tool_use_id for numbered in await first_batch(attempt, 1)] == ["2"]


async def test_the_end_is_taken_even_when_the_buffer_is_full(attempt: Attempt):
    large = "x" * (BUFFER_BYTES // 2)
    await attempt.emit(ToolResult("1", large, False))
    waiting = asyncio.create_task(attempt.emit(ToolResult("2", large, False)))
    await asyncio.sleep(0)
    await attempt.emit(AttemptEnded(Outcome.LOST))
    await waiting
    assert isinstance((await read_all(attempt))[-1].item, AttemptEnded)


async def test_an_account_is_taken_even_when_the_buffer_is_full(attempt: Attempt):
    spent = Spent(Usage(1, 1), 0.5, 1)
    await attempt.emit(ToolResult("1", "x" * BUFFER_BYTES, False))
    telling = asyncio.create_task(attempt.emit(spent))
    await asyncio.sleep(0)
    await attempt.emit(AttemptEnded(Outcome.LOST))
    await telling
    assert [numbered.item for numbered in await read_all(attempt)][1] == spent


async def test_large_items_come_in_batches_of_their_own(attempt: Attempt):
    for number in range(3):
        await attempt.emit(BlockCompleted(number, False, "x" * 700_000, "m", ""))
    await attempt.emit(AttemptEnded(Outcome.SUCCEEDED))
    assert [len(batch) async for batch in attempt.read(0)] == [1, 1, 2]


async def test_a_question_waits_for_its_answer(attempt: Attempt):
    call = a_call()
    asking = asyncio.create_task(attempt.ask(call))
    [asked] = await first_batch(attempt)
    assert asked.item == DecisionNeeded(call)
    attempt.decide(call.tool_use_id, Decision(False, "not on a Friday"))
    assert await asking == Decision(False, "not on a Friday")


async def test_the_first_answer_counts_and_is_kept(attempt: Attempt):
    call = a_call()
    asking = asyncio.create_task(attempt.ask(call))
    await first_batch(attempt)
    attempt.decide(call.tool_use_id, Decision(True, "yes"))
    attempt.decide(call.tool_use_id, Decision(False, "no"))
    assert await asking == Decision(True, "yes")
    assert await attempt.ask(call) == Decision(True, "yes"), "the CLI may ask for the same call again"


async def test_an_answer_is_for_the_input_that_was_looked_at(attempt: Attempt):
    harmless = a_call(command="ls")
    harmful = replace(harmless, input_json='{"command": "rm"}', input_hash="another hash")
    first = asyncio.create_task(attempt.ask(harmless))
    await first_batch(attempt)
    attempt.decide(harmless.tool_use_id, Decision(True, "yes"), harmless.input_hash)
    assert await first == Decision(True, "yes")
    second = asyncio.create_task(attempt.ask(harmful))
    [asked] = await first_batch(attempt, 1)
    assert asked.item == DecisionNeeded(harmful)
    # The first decision once more, as a driver sends it after it was lost, and one that does not say what it is for.
    attempt.decide(harmless.tool_use_id, Decision(True, "yes"), harmless.input_hash)
    with pytest.raises(ServiceError):
        attempt.decide(harmless.tool_use_id, Decision(True, "yes"))
    assert not second.done()
    attempt.decide(harmful.tool_use_id, Decision(False, "no"), harmful.input_hash)
    assert await second == Decision(False, "no")
    assert await attempt.ask(harmless) == Decision(True, "yes")


async def test_an_answer_to_no_question_is_an_error(attempt: Attempt):
    with pytest.raises(ServiceError) as refused:
        attempt.decide("toolu_unknown", Decision(True, ""))
    assert refused.value.reason == "TOOL_USE_NOT_WAITING"


@pytest.mark.parametrize("end", ["stopping", "ended"])
async def test_whoever_stops_or_ends_denies_what_waits(attempt: Attempt, end: str):
    asking = asyncio.create_task(attempt.ask(a_call()))
    await first_batch(attempt)
    if end == "stopping":
        attempt.stopping = Outcome.INTERRUPTED
        attempt.deny_all("the turn is being stopped")
    else:
        await attempt.emit(AttemptEnded(Outcome.LOST))
    assert (await asking).allow is False
    assert (await attempt.ask(a_call())).allow is False


async def test_time_spent_waiting_for_people_does_not_count(attempt: Attempt, clock: FakeClock):
    await clock.advance(3)
    call = a_call()
    asking = asyncio.create_task(attempt.ask(call))
    await first_batch(attempt)
    await clock.advance(1000)
    assert attempt.worked_seconds == 3
    attempt.decide(call.tool_use_id, Decision(True, ""))
    await asking
    await clock.advance(2)
    assert attempt.worked_seconds == 5


async def test_the_buffer_is_bounded_in_bytes_whatever_the_script(attempt: Attempt):
    text = "\ufffd" * (BUFFER_BYTES // 6)
    await attempt.emit(ToolResult("a", text, False))
    await attempt.emit(BlockDelta(1, False, 0, "\ufffd"))
    second = asyncio.create_task(attempt.emit(ToolResult("b", text, False)))
    await asyncio.sleep(0)
    assert not second.done(), "two of them are as many bytes as there is room for"
    attempt.acknowledge(1)
    await second


async def test_a_batch_is_no_larger_than_a_message_may_be(attempt: Attempt):
    # Joined deltas and several items: each alone is told as it is, together they are bounded.
    for number in range(40):
        await attempt.emit(BlockDelta(1, False, number * 100_000, "\u20ac" * 100_000))
    await attempt.emit(ToolResult("a", "\u20ac" * 4_000_000, False))
    await attempt.emit(AttemptEnded(Outcome.SUCCEEDED))
    async for batch in attempt.read(0):
        told = sum(len(getattr(numbered.item, "text", "").encode()) for numbered in batch)
        assert told <= 1024 * 1024 or len(batch) == 1
        assert told < 13 * 1024 * 1024
