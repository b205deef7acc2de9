"""Places of agents: how many live at once, which one makes room, and what waits for what."""

from __future__ import annotations

import asyncio

import pytest

from services.executor.domain.items import Outcome
from services.executor.domain.places import background_places
from services.executor.usecases.turns import STARTS_AT_ONCE
from services.kernel.errors import ServiceError

from .scripted_agent import a_request, work_for_ever
from .turns_bench import IDLE_SECONDS, PLACES, Bench, refused

pytestmark = pytest.mark.unit


async def test_with_every_place_at_work_the_next_turn_is_told_to_wait(bench: Bench):
    bench.agents.plays = [work_for_ever]
    running = [bench.begin() for _ in range(PLACES)]
    with pytest.raises(ServiceError) as error:
        bench.begin()
    assert refused(error) == "EXECUTOR_FULL"
    assert error.value.retry_after_seconds
    bench.turns.interrupt(bench.fence(running[0].request), park=False)
    assert (await bench.to_end(running[0])).outcome is Outcome.INTERRUPTED
    assert bench.begin()


async def test_a_place_is_kept_from_the_background(bench: Bench):
    bench.agents.plays = [work_for_ever]
    hanging = bench.begin(a_request(background=True))
    with pytest.raises(ServiceError) as error:
        bench.begin(a_request(background=True))
    assert refused(error) == "EXECUTOR_FULL"
    assert error.value.metadata == {"max_live_clients": "2", "max_background_clients": "1"}
    assert bench.begin(), "an interactive turn was kept out"
    bench.turns.interrupt(bench.fence(hanging.request), park=False)
    await bench.to_end(hanging)
    assert bench.begin(a_request(background=True))


async def test_interactive_turns_may_have_every_place(bench: Bench):
    bench.agents.plays = [work_for_ever]
    for _ in range(PLACES):
        bench.begin()
    with pytest.raises(ServiceError):
        bench.begin()


@pytest.mark.parametrize(
    ("places", "background"), [(1, 1), (2, 1), (3, 2), (4, 3), (7, 6), (8, 6), (20, 15), (1000, 750)]
)
def test_a_quarter_of_the_places_is_kept(places: int, background: int):
    assert background_places(places) == background


async def test_the_agent_that_has_been_idle_longest_makes_room(bench: Bench):
    for _ in range(PLACES):
        await bench.to_end(bench.begin())
        await bench.clock.advance(1)
    await bench.to_end(bench.begin())
    assert [agent.stops for agent in bench.agents.made] == [1, 0, 0]


async def test_idle_agents_are_closed_after_a_while(bench: Bench):
    request = a_request()
    await bench.to_end(bench.begin(request))
    await bench.seconds(IDLE_SECONDS - 1)
    assert bench.turns.counts() == (1, 0, [request.session_id])
    await bench.seconds(3)
    assert bench.turns.counts() == (0, 0, [])
    assert bench.agents.made[0].stops == 1


@pytest.mark.parametrize("sessions", [1, PLACES], ids=["of its session", "whose place it takes"])
async def test_an_agent_starts_only_when_the_one_before_has_gone(bench: Bench, sessions: int):
    requests = [a_request() for _ in range(sessions)]
    for request in requests:
        await bench.to_end(bench.begin(request))
    for agent in bench.agents.made:
        agent.may_stop.clear()
    await bench.seconds(IDLE_SECONDS + 1)
    assert bench.turns.counts() == (0, 0, [])
    again = requests[0] if sessions == 1 else a_request()
    follower = a_request(again.session_id)
    attempt = bench.begin(follower)
    await bench.seconds(2, attempt)
    leaving, new = bench.agents.made[0], bench.agents.made[-1]
    assert (leaving.stops, new.starts) == (1, 0), "two at once in one home, or more than there are places for"
    for agent in bench.agents.made:
        agent.may_stop.set()
    assert (await bench.to_end(attempt)).outcome is Outcome.SUCCEEDED
    assert new.starts == 1


async def test_conversations_that_are_long_in_coming_hold_no_start_back(bench: Bench):
    bench.turns.max_live_clients = STARTS_AT_ONCE + 1
    slow = [bench.begin() for _ in range(STARTS_AT_ONCE)]
    for agent in bench.agents.made:
        agent.may_prepare.clear()
    async with asyncio.timeout(5):
        await bench.to_end(bench.begin())
    assert [agent.starts for agent in bench.agents.made] == [0] * STARTS_AT_ONCE + [1]
    for agent in bench.agents.made:
        agent.may_prepare.set()
    for attempt in slow:
        await bench.to_end(attempt)
