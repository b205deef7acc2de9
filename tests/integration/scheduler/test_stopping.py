"""The end of a run that somebody asks for, or whose time is up, wherever its worker stands with the session service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import pytest

from services.kernel.db import Database
from services.kernel.errors import ErrorKind
from services.scheduler.domain.runs import TurnNow, TurnState
from services.scheduler.domain.states import RunState
from services.scheduler.usecases.ports import ShownRun
from services.scheduler.usecases.worker import drive
from services.scheduler.usecases.worker.ports import Owner

from .fake_sessions import SPENT, FakeSessions, Turn, refused
from .working import Floor, floor, owner

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("run_moves")]
AWAY = refused(ErrorKind.UNAVAILABLE, "RPC_UNAVAILABLE")


@pytest.fixture
async def place(scheduler_database: Database) -> AsyncIterator[Floor]:
    async with floor(scheduler_database) as made:
        yield made


async def cancel(place: Floor, run: ShownRun) -> None:
    await place.runs.cancel(owner(run), run.run.id, "")


def the_turn(place: Floor) -> tuple[UUID, Turn]:
    ((turn_id, turn),) = next(iter(place.sessions.sessions.values())).turns.items()
    return turn_id, turn


def told(run: ShownRun) -> tuple[RunState, float, UUID | None]:
    """How the run and its one attempt ended, what it cost, and its turn."""
    (attempt,) = run.attempts
    assert (attempt.state, attempt.cost_usd) == (run.run.state, run.run.cost_usd)
    return run.run.state, run.run.cost_usd, attempt.turn_id


@pytest.mark.parametrize("kind", [ErrorKind.UNAVAILABLE, ErrorKind.RESOURCE_EXHAUSTED])
async def test_a_cancel_is_heard_while_there_is_no_session(place: Floor, kind: ErrorKind) -> None:
    tried = asyncio.Event()
    place.sessions.fault = lambda call: tried.set() or refused(kind, "A_REASON")  # type: ignore[func-returns-value]
    await place.worker()
    made = await place.run(prompt_template="stay")
    await asyncio.wait_for(tried.wait(), 10)
    await cancel(place, made)
    assert told(await place.ended(made)) == (RunState.CANCELLED, 0, None)
    assert place.sessions.prompts == []


async def test_a_turn_whose_answer_is_missing_is_stopped_by_a_cancel(place: Floor) -> None:
    place.sessions.lost_answer = lambda call: AWAY if call == "send_message" else None
    await place.worker(draw=lambda: 0.0)
    made = await place.run(prompt_template="stay")
    await asyncio.wait_for(place.sessions.begun.wait(), 10)
    await cancel(place, made)
    place.sessions.lost_answer = lambda call: None
    shown = await place.ended(made)
    turn_id, turn = the_turn(place)
    assert told(shown) == (RunState.CANCELLED, 0.5, turn_id)
    assert (turn.now.state, place.sessions.prompts) == (TurnState.INTERRUPTED, ["stay"])


@pytest.mark.parametrize("moment", ["send_message", "interrupt"])
async def test_a_cancel_waits_for_no_session_service_that_stays_away(
    place: Floor, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(drive, "STOP_SECONDS", 0.2)
    monkeypatch.setattr(drive, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(drive, "WAIT_SECONDS", 0)
    asked = asyncio.Event()

    def away(call: str) -> object:
        if call == moment or (asked.is_set() and moment == "interrupt"):
            return AWAY
        if call == "wait_turn":
            # What an open turn has spent by now is told, too.
            the_turn(place)[1].now = TurnNow(TurnState.OPEN, **SPENT)  # type: ignore[arg-type]
        return None

    place.sessions.fault = away  # type: ignore[assignment]
    await place.worker()
    made = await place.run(prompt_template="stay")
    if moment == "interrupt":
        await place.begun(made)
        while the_turn(place)[1].now.cost_usd == 0:
            await asyncio.sleep(0.01)
    else:
        await place.until(made, lambda found: found.run.session_id is not None)
    asked.set()
    await cancel(place, made)
    shown = await place.ended(made)
    if moment == "interrupt":
        assert told(shown) == (RunState.CANCELLED, 0.5, the_turn(place)[0])
    else:
        assert told(shown) == (RunState.CANCELLED, 0, None)


class Mute(FakeSessions):
    """Takes a message, and gives no answer the first time."""

    async def send_message(self, owner: Owner, session_id: UUID, message: str, request_id: str) -> UUID:
        first = not self.prompts
        sent = await super().send_message(owner, session_id, message, request_id)
        if first:
            await asyncio.Event().wait()
        return sent


async def test_a_turn_whose_answer_is_missing_is_stopped_when_the_time_is_up(place: Floor) -> None:
    place.sessions = Mute()
    await place.worker()
    shown = await place.ended(await place.run(prompt_template="stay", run_timeout=timedelta(seconds=0.3)))
    turn_id, turn = the_turn(place)
    assert told(shown) == (RunState.TIMED_OUT, 0.5, turn_id)
    assert (turn.now.state, place.sessions.prompts) == (TurnState.INTERRUPTED, ["stay"])


async def test_a_successor_begins_nothing_for_a_run_that_is_to_end(place: Floor) -> None:
    place.sessions.fault = lambda call: AWAY
    first = await place.worker()
    made = await place.run(prompt_template="stay")
    await place.until(made, lambda found: found.run.state is RunState.RUNNING)
    await place.crash(first)
    place.sessions.fault = lambda call: None
    await cancel(place, made)
    await place.expire(made)
    await place.worker()
    assert told(await place.ended(made)) == (RunState.CANCELLED, 0, None)
    assert place.sessions.sessions == {}


async def test_what_a_turn_has_spent_that_does_not_end_is_known(
    place: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive, "STOP_SECONDS", 0.5)
    monkeypatch.setattr(drive, "STOP_WAIT_SECONDS", 0)

    class Stubborn(FakeSessions):
        """Its agents take the interrupt, and go on."""

        async def interrupt(self, owner: Owner, session_id: UUID, turn_id: UUID, request_id: str) -> None:
            self.sessions[session_id].turns[turn_id].now = TurnNow(TurnState.OPEN, **SPENT)  # type: ignore[arg-type]

    place.sessions = Stubborn()
    await place.worker()
    made = await place.run(prompt_template="stay")
    await place.begun(made)
    await cancel(place, made)
    assert told(await place.ended(made)) == (RunState.CANCELLED, 0.5, the_turn(place)[0])
