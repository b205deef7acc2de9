"""The order of start, drain and stop, whatever fails."""

from __future__ import annotations

import asyncio

import pytest

from services.kernel.lifecycle import Drain, run

pytestmark = pytest.mark.unit


class Recorded:
    """A service that writes down what happens to it."""

    def __init__(self, name: str, log: list[str], fails: str = "") -> None:
        self.name, self._log, self._fails = name, log, fails

    async def _step(self, step: str) -> None:
        self._log.append(f"{step} {self.name}")
        await asyncio.sleep(0)
        if step == self._fails:
            raise RuntimeError(f"{step} fails")

    async def start(self) -> None:
        await self._step("start")

    async def drain(self, grace_seconds: float) -> None:
        assert grace_seconds == 3
        await self._step("drain")

    async def stop(self) -> None:
        await self._step("stop")


async def test_services_start_in_order_and_stop_in_reverse() -> None:
    log: list[str] = []
    stop = asyncio.Event()

    async def ready() -> None:
        log.append("ready")
        stop.set()

    await run([Recorded("a", log), Recorded("b", log)], grace_seconds=3, ready=ready, stop=stop)
    assert log == ["start a", "start b", "ready", "drain a", "drain b", "stop b", "stop a"]


async def test_a_failed_start_stops_what_was_started() -> None:
    log: list[str] = []
    services = [Recorded("a", log), Recorded("b", log, fails="start"), Recorded("c", log)]
    with pytest.raises(RuntimeError, match="start fails"):
        await run(services, grace_seconds=3)
    assert log == ["start a", "start b", "stop b", "stop a"]


@pytest.mark.parametrize("step", ["drain", "stop"])
async def test_one_failure_does_not_cost_the_others_their_end(step: str) -> None:
    log: list[str] = []
    stop = asyncio.Event()
    stop_soon = asyncio.get_running_loop().call_soon
    services = [Recorded("a", log), Recorded("b", log, fails=step)]

    async def ready() -> None:
        stop_soon(stop.set)

    await run(services, grace_seconds=3, ready=ready, stop=stop)
    assert log[2:] == ["drain a", "drain b", "stop b", "stop a"]


async def test_a_stop_during_the_start_ends_it() -> None:
    log: list[str] = []
    stop = asyncio.Event()

    class Endless(Recorded):
        async def start(self) -> None:
            await super().start()
            stop.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(10):
        await run([Endless("a", log), Recorded("b", log)], grace_seconds=3, stop=stop)
    assert log == ["start a", "stop a"]


async def test_a_drain_knows_when_the_last_call_has_ended() -> None:
    drain = Drain()
    assert await drain.wait_idle(0.01)
    drain.enter()
    drain.enter()
    drain.leave()
    assert not await drain.wait_idle(0.01)
    waiter = asyncio.create_task(drain.wait())
    await asyncio.sleep(0)
    assert not waiter.done()
    assert not drain.draining
    drain.begin()
    drain.leave()
    await waiter
    assert drain.draining
    assert await drain.wait_idle(0.01)
