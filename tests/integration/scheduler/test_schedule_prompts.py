"""Prompts of schedules: rendered ahead, anew after a change, and none waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from services.kernel.db import Database
from services.kernel.testing import a_caller
from services.scheduler.domain.entities import TaskVariable
from services.scheduler.domain.overlap import OverlapPolicy
from services.scheduler.domain.variables import VariableType
from services.scheduler.store.notes import CHANNEL
from services.scheduler.store.tables import schedules, tasks
from services.scheduler.usecases.schedules import UpdateSchedule
from tests.databases import Copy

from .ticking import MINUTE, Clockwork, clockwork, owner

pytestmark = pytest.mark.integration
P = OverlapPolicy
WHO = TaskVariable("who", VariableType.STRING, required=True)


@pytest.fixture
async def works(scheduler_database: Database) -> AsyncIterator[Clockwork]:
    async with clockwork(scheduler_database) as made:
        yield made


async def test_a_changed_task_is_rendered_anew_before_its_schedules_fire(works: Clockwork) -> None:
    schedule = await works.due(task={"prompt_template": "greet"})
    await works.retask(schedule, prompt_template="{{ 'wa' }}ve")
    await works.tick()
    assert await works.runs(schedule) == []
    assert await works.prompts().render_some()
    assert not await works.prompts().render_some()
    await works.tick()
    assert [run.prompt for run in await works.runs(schedule)] == ["wave"]


async def test_a_prompt_that_cannot_be_rendered_is_a_failed_run(works: Clockwork) -> None:
    schedule = await works.due(overlap_policy=P.CANCEL_OTHER)
    await works.tick()
    (open_run,) = await works.runs(schedule)
    await works.retask(schedule, prompt_template="{{ who }}", variables=(WHO,))
    await works.prompts().render_some()
    await works.change_run(open_run.id, fire_time=open_run.fire_time - 9 * MINUTE)
    await works.rewind(schedule, MINUTE)
    await works.tick()
    before, failed = await works.runs(schedule)
    assert before.state == "QUEUED", "no other run gives way to one that cannot be"
    assert (failed.state, failed.failure_reason) == ("FAILED", "PROMPT_NOT_RENDERED")
    assert "variables.who" in failed.failure_message


async def test_a_prompt_is_not_kept_for_a_task_that_has_changed_meanwhile(works: Clockwork) -> None:
    schedule = await works.due()
    await works.change(schedule.id, prompt_stale=True)
    (stale,) = await works.queries.stale(10, [])
    await works.retask(schedule, priority=1)
    assert not await works.queries.keep(stale, "old", None)
    assert (await works.read(schedule)).prompt_stale


async def test_new_variables_are_rendered_with_the_change(works: Clockwork) -> None:
    schedule = await works.schedule(
        task={"prompt_template": "greet {{ who }}", "variables": (WHO,)},
        variables={"who": "Ada"},
    )
    change = UpdateSchedule(schedule.id, {"variables": {"who": "Grace"}}, "", "")
    await works.schedules.update(owner(schedule), change)
    row = await works.read(schedule)
    assert (row.prompt, row.prompt_stale) == ("greet Grace", False)


async def test_one_tenants_template_does_not_keep_others_from_being_rendered(works: Clockwork) -> None:
    # Its failure's text is nothing that PostgreSQL stores.
    poisoned, innocent = await works.due(2 * MINUTE), await works.due()
    await works.retask(poisoned, prompt_template=r'{{ "x".encode(**{"a\x00": 1}) }}')
    await works.retask(innocent, prompt_template="{{ 'wa' }}ve")
    while await works.prompts().render_some():
        pass
    row = await works.read(poisoned)
    assert (row.prompt_stale, row.prompt_fault_reason) == (False, "PROMPT_NOT_RENDERED")
    assert "a\ufffd" in row.prompt_fault_message
    assert (await works.read(innocent)).prompt == "wave"


async def test_what_cannot_be_recorded_is_set_aside(
    works: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await works.due(2 * MINUTE), await works.due()
    for schedule in (first, second):
        await works.change(schedule.id, prompt_stale=True)
    keep, prompts = works.queries.keep, works.prompts()

    async def failing(found: Any, *rest: Any) -> bool:
        if found.schedule.id == first.id:
            raise RuntimeError("no row takes it")
        return await keep(found, *rest)

    monkeypatch.setattr(works.queries, "keep", failing)
    assert await prompts.render_some()
    assert not await prompts.render_some(), "nothing is left but what was set aside"
    assert [(await works.read(one)).prompt_stale for one in (first, second)] == [True, False]


@pytest.mark.parametrize("table", ["tasks", "schedules"])
async def test_nobody_waits_for_what_somebody_has_locked(works: Clockwork, table: str) -> None:
    held, free = await works.due(2 * MINUTE), await works.due()
    for schedule in (held, free):
        await works.change(schedule.id, prompt_stale=True)
    prompts = works.prompts()
    row = tasks.c.id == held.task_id if table == "tasks" else schedules.c.id == held.id
    async with works.database.dedicated_system() as connection:
        locked = sa.select(sa.literal(1)).select_from(tasks if table == "tasks" else schedules)
        await connection.execute(locked.where(row).with_for_update(key_share=True))
        assert await prompts.render_some()
        assert not await prompts.render_some()
        assert not (await works.read(free)).prompt_stale
    assert (await works.read(held)).prompt_stale
    assert await works.prompts().render_some()
    assert not (await works.read(held)).prompt_stale


async def test_organizations_share_the_rendering(works: Clockwork) -> None:
    crowd = a_caller()
    many = [await works.due(9 * MINUTE, owner=crowd) for _ in range(5)]
    few = await works.due()
    for schedule in (*many, few):
        await works.change(schedule.id, prompt_stale=True)
    found = await works.queries.stale(3, [])
    assert few.id in {stale.schedule.id for stale in found}, "although it is due later than all the others"
    assert len(found) == 3
    assert few.id not in {stale.schedule.id for stale in await works.queries.stale(9, [few.id])}


async def test_a_task_that_cannot_be_read_keeps_no_other_from_being_rendered(works: Clockwork) -> None:
    broken, whole = await works.due(2 * MINUTE), await works.due()
    for schedule in (broken, whole):
        await works.change(schedule.id, prompt_stale=True)
    await works.spoil(broken)
    prompts = works.prompts()
    assert await prompts.render_some()
    assert not await prompts.render_some()
    assert not (await works.read(whole)).prompt_stale


async def test_other_replicas_hear_of_a_prompt(works: Clockwork, databases: Copy) -> None:
    # While it was stale they have left its schedule out of account.
    schedule = await works.due()
    await works.change(schedule.id, prompt_stale=True)
    other, heard = databases.open("scheduler"), asyncio.Queue[None]()
    listening = asyncio.create_task(other.listen(CHANNEL, lambda: heard.put_nowait(None)))
    await heard.get()
    assert await works.prompts().render_some()
    async with asyncio.timeout(10):
        await heard.get()
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await other.close()
