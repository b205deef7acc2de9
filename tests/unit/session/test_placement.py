"""Which executor takes a turn."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from services.session.domain.turn_items import ExecutorInfo
from services.session.usecases.driver.placement import choose_executor

pytestmark = pytest.mark.unit
SESSION = uuid4()


def executor(
    name: str, busy: int = 0, *, live: int = 0, room: int = 4, idle: tuple[UUID, ...] = ()
) -> ExecutorInfo:
    return ExecutorInfo(name, f"{name}:1", uuid4(), room, live, busy, False, frozenset(idle))


@pytest.mark.parametrize(
    ("executors", "last", "lost_on", "chosen"),
    [
        ([executor("a", 1), executor("b", 3, idle=(SESSION,))], "a", None, "b"),
        ([executor("a", 1), executor("b", 0)], "a", None, "b"),
        ([executor("a", 1), executor("b", 1)], "b", None, "b"),
        ([executor("a", 1), executor("b", 1)], None, None, "a"),
        ([executor("a", 0, live=2), executor("b", 0, live=1)], None, None, "b"),
        ([executor("a", 1, room=1), executor("b", 3)], "a", None, "b"),
        ([executor("a", 2, room=8), executor("b", 2, room=4)], "b", None, "a"),
        ([executor("a"), executor("b")], "a", "a", "b"),
        ([executor("a"), executor("b", 1)], "a", "a", "a"),
        ([executor("a")], "a", "a", "a"),
        ([executor("a", 4), executor("b", 4)], "a", None, None),
        ([], "a", None, None),
    ],
)
def test_the_executor_with_the_client_then_the_least_loaded(executors, last, lost_on, chosen):
    found = choose_executor(executors, SESSION, last, lost_on)
    assert (found.executor_id if found else None) == chosen
