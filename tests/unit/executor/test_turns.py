"""Attempts on live agents: one for each session, fenced, in their places, and ended when nobody drives them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
import structlog

from services.executor.domain.items import (
    AttemptEnded,
    Decision,
    DecisionNeeded,
    Outcome,
)
from services.executor.usecases.turns import (
    DRIVER_SILENCE_SECONDS,
    STOP_SECONDS,
    TIMEOUT_GRACE_SECONDS,
)
from services.kernel.errors import ServiceError

from .scripted_agent import (
    a_request,
    ask_once,
    die,
    greet,
    hear_nothing,
    work_for_ever,
)
from .turns_bench import IDLE_SECONDS, Bench, refused, started

pytestmark = pytest.mark.unit


async def test_a_turn_starts_an_agent_and_the_next_one_goes_on_with_it(bench: Bench):
    request = a_request()
    assert (await bench.to_end(bench.begin(request))).outcome is Outcome.SUCCEEDED
    [agent] = bench.agents.made
    follower = a_request(request.session_id, cli_session_id=agent.cli_session_id)
    assert (await bench.to_end(bench.begin(follower))).outcome is Outcome.SUCCEEDED
    assert (len(bench.agents.made), agent.starts) == (1, 1)


async def test_an_agent_that_does_not_fit_is_replaced_before_the_new_one_starts(bench: Bench):
    request = a_request()
    await bench.to_end(bench.begin(request))
    await bench.to_end(bench.begin(a_request(request.session_id, cli_session_id=str(uuid4()))))
    first, second = bench.agents.made
    assert (first.stops, second.starts) == (1, 1)


async def test_the_same_attempt_twice_runs_once(bench: Bench):
    request = a_request()
    first = bench.begin(request)
    assert bench.begin(request) is first
    await bench.to_end(first)
    assert len(bench.agents.made) == 1


async def test_an_attempt_that_was_forgotten_never_runs_again(bench: Bench):
    request = a_request()
    attempt = bench.begin(request)
    await bench.to_end(attempt)
    bench.turns.acknowledge(bench.fence(request), 99)
    with pytest.raises(ServiceError) as error:
        bench.begin(request)
    assert refused(error) == "ATTEMPT_BARRED"
    with pytest.raises(ServiceError) as error:
        bench.turns.known(bench.fence(request))
    assert refused(error) == "ATTEMPT_UNKNOWN"


async def test_asking_for_an_unknown_attempt_bars_it(bench: Bench):
    # The driver that asked will start another one: this one must not begin when its call arrives late.
    request = a_request()
    with pytest.raises(ServiceError) as error:
        bench.turns.known(bench.fence(request))
    assert refused(error) == "ATTEMPT_UNKNOWN"
    with pytest.raises(ServiceError) as error:
        bench.begin(request)
    assert refused(error) == "ATTEMPT_BARRED"
    assert bench.begin(replace(request, attempt=2))


async def test_a_driver_whose_lease_was_taken_may_do_nothing(bench: Bench):
    bench.agents.plays = [work_for_ever]
    request = a_request()
    attempt = bench.begin(request, epoch=7)
    old = bench.fence(request, epoch=6)
    for call in (
        lambda: bench.turns.begin(old, request),
        lambda: bench.turns.known(old),
        lambda: bench.turns.acknowledge(old, 1),
        lambda: bench.turns.decide(old, "toolu_1", Decision(True, "")),
        lambda: bench.turns.interrupt(old, park=False),
        lambda: bench.turns.heartbeat(old),
    ):
        with pytest.raises(ServiceError) as error:
            call()
        assert refused(error) == "LEASE_EPOCH_STALE"
    assert not attempt.ended
    assert bench.turns.known(bench.fence(request, epoch=8)) is attempt


async def test_a_call_for_an_earlier_process_is_refused(bench: Bench):
    request = a_request()
    with pytest.raises(ServiceError) as error:
        bench.turns.begin(replace(bench.fence(request), incarnation=UUID(int=1)), request)
    assert refused(error) == "INCARNATION_MISMATCH"


async def test_a_dead_agent_ends_its_attempt_with_the_reason(bench: Bench):
    bench.agents.plays = [die]
    ended = await bench.to_end(bench.begin())
    assert (ended.outcome, ended.reason) == (Outcome.LOST, "CLI_DIED")
    assert bench.turns.counts()[0] == 0, "its place is free"


async def test_an_agent_that_does_not_start_ends_its_attempt_with_the_reason(bench: Bench):
    bench.agents.fail_to_start = True
    ended = await bench.to_end(bench.begin())
    assert (ended.outcome, ended.reason) == (Outcome.LOST, "CLI_DIED")
    assert "did not start" in ended.message


async def test_a_fault_of_our_own_ends_the_attempt_without_telling_how(bench: Bench):
    async def fault(*_: object) -> None:
        raise RuntimeError("/secret/path")

    bench.agents.plays = [fault]
    request = a_request(request_id="from-the-client")
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logs:
        ended = await bench.to_end(bench.begin(request))
    assert (ended.outcome, ended.reason) == (Outcome.LOST, "EXECUTOR_FAULT")
    assert "/secret/path" not in ended.message
    (line,) = [line for line in logs if line["event"] == "attempt failed"]
    assert (line["session_id"], line["turn_id"]) == (str(request.session_id), str(request.turn_id))
    assert line["request_id"] == "from-the-client"


async def test_an_interrupt_lets_the_agent_stop_by_itself(bench: Bench):
    bench.agents.plays = [work_for_ever]
    attempt = bench.begin()
    await started(attempt)
    bench.turns.interrupt(bench.fence(attempt.request), park=False)
    assert (await bench.to_end(attempt)).outcome is Outcome.INTERRUPTED


async def test_an_agent_that_does_not_hear_is_killed_in_time(bench: Bench):
    bench.agents.plays = [hear_nothing]
    attempt = bench.begin()
    await started(attempt)
    bench.turns.interrupt(bench.fence(attempt.request), park=False)
    await bench.clock.wait_for_sleepers(2)
    await bench.clock.advance(STOP_SECONDS + 0.1)
    assert (await bench.to_end(attempt)).outcome is Outcome.INTERRUPTED
    assert bench.agents.made[0].stops


async def test_an_interrupt_beats_parking_and_not_the_other_way(bench: Bench):
    bench.agents.plays = [hear_nothing]
    for order in ([True, False], [False, True]):
        attempt = bench.begin()
        await started(attempt)
        for park in order:
            bench.turns.interrupt(bench.fence(attempt.request), park=park)
        await bench.clock.wait_for_sleepers(2)
        await bench.clock.advance(STOP_SECONDS + 0.1)
        assert (await bench.to_end(attempt)).outcome is Outcome.INTERRUPTED


async def test_a_parked_attempt_says_so_whatever_its_agent_made_of_it(bench: Bench):
    # Denied by nobody, the agent goes on as if it had been, and may even succeed.
    bench.agents.plays = [ask_once]
    attempt = bench.begin()
    async for batch in attempt.read(0):
        if isinstance(batch[-1].item, DecisionNeeded):
            break
    bench.turns.interrupt(bench.fence(attempt.request), park=True)
    assert (await bench.to_end(attempt)).outcome is Outcome.PARKED
    assert bench.agents.made[0].stops, (
        "its conversation has gone astray: the next attempt needs a new process"
    )


async def test_a_turn_that_ends_while_it_is_interrupted_keeps_its_success(bench: Bench):
    bench.agents.plays = [ask_once]
    attempt = bench.begin()
    async for batch in attempt.read(0):
        if isinstance(batch[-1].item, DecisionNeeded):
            break
    bench.turns.interrupt(bench.fence(attempt.request), park=False)
    assert (await bench.to_end(attempt)).outcome is Outcome.SUCCEEDED


async def test_without_a_sign_of_life_of_its_driver_an_attempt_ends(bench: Bench):
    bench.agents.plays = [work_for_ever]
    attempt = bench.begin()
    await started(attempt)
    await bench.seconds(DRIVER_SILENCE_SECONDS - 1)
    assert not attempt.ended
    bench.turns.heartbeat(bench.fence(attempt.request))
    await bench.seconds(DRIVER_SILENCE_SECONDS - 1)
    assert not attempt.ended
    await bench.seconds(5)
    assert (await bench.to_end(attempt)).outcome is Outcome.LOST


async def test_the_agent_of_a_silent_driver_is_killed_at_once(bench: Bench):
    bench.agents.plays = [hear_nothing]
    attempt = bench.begin()
    await started(attempt)
    [agent] = bench.agents.made
    await bench.clock.wait_for_sleepers()
    await bench.clock.advance(DRIVER_SILENCE_SECONDS - 0.1)
    assert not agent.kills
    await bench.clock.advance(0.5)
    assert agent.kills == 1
    assert not agent.interrupted.is_set(), "no courtesy: another attempt may begin before long"
    assert (await bench.to_end(attempt)).outcome is Outcome.LOST


async def test_silence_kills_an_agent_that_is_being_stopped_as_well(bench: Bench):
    bench.agents.plays = [hear_nothing]
    attempt = bench.begin()
    await started(attempt)
    [agent] = bench.agents.made
    agent.interrupt_hangs = True
    await bench.clock.wait_for_sleepers()
    await bench.clock.advance(DRIVER_SILENCE_SECONDS - 0.1)
    bench.turns.interrupt(bench.fence(attempt.request), park=False)
    await bench.clock.advance(0.5)
    assert agent.kills
    assert (await bench.to_end(attempt)).outcome is Outcome.INTERRUPTED


async def test_an_agent_that_does_not_answer_the_interrupt_is_killed_in_the_same_time(bench: Bench):
    bench.agents.plays = [hear_nothing]
    attempt = bench.begin()
    await started(attempt)
    [agent] = bench.agents.made
    agent.interrupt_hangs = True
    bench.turns.interrupt(bench.fence(attempt.request), park=False)
    await bench.clock.wait_for_sleepers(2)
    await bench.clock.advance(STOP_SECONDS + 0.1)
    assert attempt.ended
    assert agent.kills == 1


@pytest.mark.parametrize("fails", [{"interrupt"}, {"interrupt", "kill"}])
async def test_an_agent_is_ended_whatever_fails(bench: Bench, fails: set[str]):
    bench.agents.plays = [hear_nothing]
    attempt = bench.begin()
    await started(attempt)
    [agent] = bench.agents.made
    agent.fails = fails
    bench.turns.interrupt(bench.fence(attempt.request), park=False)
    await bench.clock.wait_for_sleepers(2)
    await bench.clock.advance(STOP_SECONDS + 0.1)
    assert (await bench.to_end(attempt)).outcome is Outcome.INTERRUPTED
    assert agent.kills == 1
    assert agent.stops


async def test_one_sessions_trouble_does_not_keep_the_others_alive(bench: Bench):
    troubled, other = a_request(), a_request()
    await bench.to_end(bench.begin(troubled))
    await bench.to_end(bench.begin(other))

    class Broken:
        @property
        def alive(self) -> bool:
            raise RuntimeError("broken")

        async def stop(self) -> None:
            """Nothing to end."""

    bench.turns._live[troubled.session_id].agent = Broken()  # type: ignore[assignment]
    bench.turns._live[other.session_id].idle_since -= IDLE_SECONDS
    await bench.seconds(2)
    assert bench.turns.counts()[2] == [troubled.session_id]
    assert not bench.watch.done()


async def test_a_turn_ends_when_its_time_is_up_though_its_driver_is_blind(bench: Bench):
    bench.agents.plays = [work_for_ever]
    attempt = bench.begin(a_request(timeout_seconds=30.0))
    await started(attempt)
    await bench.seconds(30 + TIMEOUT_GRACE_SECONDS, attempt)
    assert not attempt.ended
    await bench.seconds(5, attempt)
    assert (await bench.to_end(attempt)).outcome is Outcome.TIMED_OUT


async def test_forgetting_a_session_ends_its_turn_and_its_files(bench: Bench):
    bench.agents.plays = [work_for_ever]
    attempt = bench.begin()
    await started(attempt)
    await bench.turns.forget(attempt.request.session_id, 1)
    assert (await bench.to_end(attempt)).outcome is Outcome.INTERRUPTED
    assert bench.agents.forgotten == [attempt.request.session_id]
    assert bench.turns.counts()[0] == 0


async def test_an_old_epoch_forgets_nothing(bench: Bench):
    request = a_request()
    await bench.to_end(bench.begin(request, epoch=3))
    with pytest.raises(ServiceError) as error:
        await bench.turns.forget(request.session_id, 2)
    assert refused(error) == "LEASE_EPOCH_STALE"
    assert bench.agents.forgotten == []


async def test_draining_waits_for_turns_and_takes_no_more(bench: Bench):
    bench.agents.plays = [work_for_ever]
    attempt = bench.begin()
    await started(attempt)
    draining = asyncio.create_task(bench.turns.drain(10))
    await asyncio.sleep(0)
    with pytest.raises(ServiceError) as error:
        bench.begin()
    assert refused(error) == "DRAINING"
    assert bench.turns.draining
    assert not draining.done()
    bench.agents.made[0].interrupted.set()
    while not draining.done():
        await bench.clock.advance(0.05)
    assert (await bench.to_end(attempt)).outcome is Outcome.INTERRUPTED
    assert bench.agents.made[0].stops


async def test_a_stop_tells_running_turns_that_they_are_lost_here(bench: Bench):
    bench.agents.plays = [hear_nothing]
    attempt = bench.begin()
    await started(attempt)
    await bench.turns.stop()
    ended = [numbered.item async for batch in attempt.read(0) for numbered in batch][-1]
    assert isinstance(ended, AttemptEnded)
    assert (ended.outcome, ended.reason) == (Outcome.LOST, "DRAINING")


async def test_ended_attempts_that_nobody_fetches_are_dropped(bench: Bench):
    bench.agents.plays = [greet]
    attempt = bench.begin()
    await bench.to_end(attempt)
    await bench.seconds(62)
    with pytest.raises(ServiceError) as error:
        bench.turns.heartbeat(bench.fence(attempt.request))
    assert refused(error) == "ATTEMPT_UNKNOWN"
