"""Start, drain, stop: of one service or of several in one loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import structlog

_log = structlog.get_logger(__name__)
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_STOP_SECONDS: Final = 10.0
_HURRIED_STOP_SECONDS: Final = 2.0


class Drain:
    """Counts the calls in flight, and tells them when the server wants to end."""

    def __init__(self) -> None:
        self.calls = 0
        self._begun = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def draining(self) -> bool:
        """Whether the server has begun to drain."""
        return self._begun.is_set()

    def begin(self) -> None:
        """New calls are refused from now on, and `wait` returns."""
        self._begun.set()

    async def wait(self) -> None:
        """Returns when the drain begins; a stream waits for it beside its own work, and ends itself."""
        await self._begun.wait()

    def enter(self) -> None:
        """A call begins."""
        self.calls += 1
        self._idle.clear()

    def leave(self) -> None:
        """A call has ended."""
        self.calls -= 1
        if self.calls == 0:
            self._idle.set()

    async def wait_idle(self, timeout_seconds: float) -> bool:
        """Returns whether no call was left within the time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class Service(Protocol):
    """What a composition root builds."""

    name: str

    async def start(self) -> None:
        """Opens everything and serves; raises if it cannot."""
        ...

    async def drain(self, grace_seconds: float) -> None:
        """NOT_SERVING, no new calls, running ones end within the grace."""
        ...

    async def stop(self) -> None:
        """Closes everything; called once, also after a failed start or without a drain."""
        ...


async def run(
    services: Sequence[Service],
    *,
    grace_seconds: float = 20.0,
    ready: Callable[[], Awaitable[None]] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Starts the services in order, serves until SIGTERM or SIGINT, drains all at once, stops in reverse order.

    A second signal ends the drain at once. A third one has its usual effect.

    Args:
        services: in the order of their start.
        grace_seconds: how long calls may take to end.
        ready: awaited once everything serves.
        stop: asks for the end as a signal does; without signals (another thread's loop) it is the only way.

    Raises:
        Exception: whatever a service's start raised; those before it are stopped.
    """
    first = stop or asyncio.Event()
    second = asyncio.Event()
    restore = _on_signals(first, second)
    started: list[Service] = []
    try:
        for service in services:
            started.append(service)
            await _unless(first, service.start())
            if first.is_set():
                return
        if ready is not None:
            await ready()
        await first.wait()
        _log.info("draining", services=[service.name for service in services])
        await _unless(second, _drain_all(started, grace_seconds))
    finally:
        await _stop_all(started, _HURRIED_STOP_SECONDS if second.is_set() else _STOP_SECONDS)
        restore()


def _on_signals(first: asyncio.Event, second: asyncio.Event) -> Callable[[], None]:
    loop = asyncio.get_running_loop()

    def remove() -> None:
        for number in _SIGNALS:
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(number)

    def received() -> None:
        if not first.is_set():
            first.set()
        else:
            second.set()
            remove()

    for number in _SIGNALS:
        # Not the main thread: whoever runs us handles signals and sets `stop`.
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, received)
    return remove


async def _unless(event: asyncio.Event, work: Awaitable[None]) -> None:
    """Runs the work, and cancels it when the event comes first."""
    task = asyncio.ensure_future(work)
    waiter = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        waiter.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, waiter, return_exceptions=True)


async def _drain_all(services: Sequence[Service], grace_seconds: float) -> None:
    async def one(service: Service) -> None:
        try:
            await service.drain(grace_seconds)
        except Exception:
            # One service's trouble must not cost the others their farewell.
            _log.exception("drain failed", service=service.name)

    await asyncio.gather(*(one(service) for service in services))


async def _stop_all(services: Sequence[Service], timeout_seconds: float) -> None:
    for service in reversed(services):
        try:
            async with asyncio.timeout(timeout_seconds):
                await service.stop()
        except Exception:
            _log.exception("stop failed", service=service.name)
