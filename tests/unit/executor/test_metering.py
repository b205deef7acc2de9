"""The account of a turn: what is on it, when it is told, and when it is used up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from services.executor.domain.items import Spent, Usage
from services.executor.gateways.metering import MOST_CALLS, Account, MeteredCall, most_usd

pytestmark = pytest.mark.unit
MODEL = "claude-sonnet-4-5"
"""3 dollars for a million tokens in, 15 out."""


def event(kind: str, **content: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **content})}\n\n".encode()


def start(input_tokens: int, **usage: Any) -> bytes:
    reported = {"input_tokens": input_tokens, "output_tokens": 1, **usage}
    return event("message_start", message={"type": "message", "model": MODEL, "usage": reported})


def piece(text: str = "x") -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def end(output_tokens: int, **usage: Any) -> bytes:
    return event("message_delta", delta={}, usage={"output_tokens": output_tokens, **usage})


class Calls:
    """Calls on one account."""

    def __init__(self, budget_usd: float = 0.0) -> None:
        self.account = Account(budget_usd)
        self.aborted = 0

    def begin(self, *pieces: bytes, model: str = MODEL, most: float = 0.0) -> MeteredCall:
        call = self.account.begin(model, "other", self._abort, most)
        for said in pieces:
            call.feed(said)
        return call

    def make(self, *pieces: bytes, model: str = MODEL) -> None:
        self.begin(*pieces, model=model).done()

    def _abort(self) -> None:
        self.aborted += 1


@pytest.fixture
def calls() -> Calls:
    return Calls()


def test_an_answer_is_on_the_account_as_soon_as_its_last_word_has_passed(calls: Calls):
    call = calls.begin(start(1000), piece(), end(200))
    assert calls.account.take() == Spent(Usage(1000, 200), 0.006, 1)
    call.done()
    assert calls.account.take() is None
    assert calls.account.close() == Spent()


@pytest.mark.parametrize("size", [1, 7, 64])
def test_pieces_that_cut_an_event_in_two_are_read_all_the_same(calls: Calls, size: int):
    whole = start(1000, cache_read_input_tokens=50) + piece() + end(200)
    calls.make(*(whole[begin : begin + size] for begin in range(0, len(whole), size)))
    assert calls.account.take() == Spent(Usage(1000, 200, 50), 0.006015, 1)


def test_an_answer_that_does_not_stream_is_read(calls: Calls):
    usage = {
        "input_tokens": 10,
        "output_tokens": 20,
        "cache_creation_input_tokens": 3000,
        "cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 2000},
        "server_tool_use": {"web_search_requests": 2},
    }
    calls.make(json.dumps({"type": "message", "model": MODEL, "usage": usage}).encode(), model="other")
    spent = calls.account.close()
    assert spent.usage == Usage(10, 20, 0, 3000)
    assert spent.cost_usd == pytest.approx(0.03e-3 + 0.3e-3 + 3.75e-3 + 12e-3 + 0.02)


def test_the_answers_word_on_the_model_counts_and_not_the_agents(calls: Calls):
    calls.make(start(1_000_000), end(1), model="claude-haiku-5-5")
    assert calls.account.close().cost_usd == pytest.approx(3.000015)


def test_of_an_answer_that_was_cut_each_piece_counts_as_a_token(calls: Calls):
    calls.make(start(1000), *[piece()] * 40)
    assert calls.account.close() == Spent(Usage(1000, 40), 0.0036, 1)


def test_a_call_that_failed_costs_nothing(calls: Calls):
    calls.make(b'{"type": "error", "error": {"type": "overloaded_error", "message": "usage"}}')
    calls.make(
        b'data: {"type": "message_delta", "usage": "nonsense"}\n', b'data: {"usage": {"input_tokens": "9"}}\n'
    )
    assert calls.account.close() == Spent()


def test_parts_that_are_told_add_up_to_the_whole(calls: Calls):
    """Each third of a millionth is lost on its own; the sums of turn and session must not differ by them."""
    parts = []
    for _ in range(100):
        calls.make(start(0, cache_read_input_tokens=1), end(0))
        parts.append(calls.account.take() or Spent())
    parts.append(calls.account.close())
    assert sum(part.cost_usd for part in parts) == pytest.approx(100 * (15e-6 + 0.3e-6), abs=1e-12)
    assert all(round(part.cost_usd, 6) == part.cost_usd for part in parts)
    assert sum((part.usage for part in parts), Usage()) == Usage(0, 100, 100)


def test_a_turn_that_ends_takes_what_is_under_way_with_it(calls: Calls):
    call = calls.begin(start(1000), piece(), piece(), piece())
    assert calls.account.take() is None, "the call may still be answered"
    assert calls.account.close() == Spent(Usage(1000, 3), 0.003045, 1)
    assert calls.aborted == 1
    call.feed(end(500))
    call.done()
    assert calls.account.close() == Spent()
    assert not calls.account.admits()


def test_a_budget_stops_when_it_is_spent_and_not_before():
    calls = Calls(budget_usd=0.006)
    assert calls.account.admits()
    calls.make(start(1000), end(199))
    assert calls.account.admits()
    assert not calls.account.refused
    calls.make(start(1), end(1))
    assert not calls.account.admits()
    assert calls.account.refused


def test_a_budget_knows_of_calls_that_are_under_way():
    calls = Calls(budget_usd=0.003)
    calls.begin(start(1000))
    assert not calls.account.admits()


def test_without_a_budget_nothing_is_refused(calls: Calls):
    calls.make(start(100_000_000), end(1_000_000))
    assert calls.account.admits()


async def waits(calls: Calls, most: float) -> asyncio.Task[bool]:
    """Asks for one more call, which has to wait."""
    asking = asyncio.create_task(calls.account.admit(most))
    await asyncio.sleep(0)
    assert not asking.done()
    return asking


async def test_calls_side_by_side_do_not_outspend_the_budget_together():
    calls = Calls(budget_usd=0.01)
    assert await calls.account.admit(0.1), "one alone may be made while anything is left"
    first = calls.begin(most=0.006)
    assert await calls.account.admit(0.004)
    asking = await waits(calls, 0.005)
    first.feed(start(10) + end(10))
    assert await asking
    calls.begin(most=0.005)
    asking = await waits(calls, 0.006)
    calls.account.close()
    assert not await asking
    assert not calls.account.refused


async def test_a_budget_that_others_use_up_is_refused_to_who_waits():
    calls = Calls(budget_usd=0.01)
    first = calls.begin(most=0.01)
    asking = await waits(calls, 0.001)
    first.feed(start(1000) + end(1000))
    assert not await asking
    assert calls.account.refused


async def test_so_many_calls_at_once_and_no_more(calls: Calls):
    made = [calls.begin() for _ in range(MOST_CALLS)]
    asking = await waits(calls, 0.0)
    made[3].done()
    assert await asking


def test_a_call_may_cost_what_it_sends_and_all_that_it_asks_for():
    body = b'{"max_tokens": 1000, "messages": "%s"}' % (b"x" * 300_000)
    assert most_usd(MODEL, body) == pytest.approx(0.315, rel=0.01)


def test_a_document_has_its_usage_wherever_it_stands(calls: Calls):
    call = calls.begin()
    call.expect_document()
    usage = {"input_tokens": 1000, "output_tokens": 9}
    answer = json.dumps({"type": "message", "model": MODEL, "usage": usage}, indent=2)
    for at in range(0, len(answer), 7):
        call.feed(answer[at : at + 7].encode())
    call.done()
    assert calls.account.take() == Spent(Usage(1000, 9), 0.003135, 1)
