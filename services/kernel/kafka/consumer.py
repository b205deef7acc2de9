"""Keeps a consumer running: a Faust application that crashed, ended or went silent is followed by a new one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import faust
import structlog
from aiokafka.errors import KafkaConnectionError
from prometheus_client import Counter

from services.kernel.clock import Clock
from services.kernel.db.outbox import PublishError
from services.kernel.kafka.admin import declare
from services.kernel.kafka.app import HANDLE_SECONDS, Handler, StreamEvent, application
from services.kernel.kafka.reach import why_unreachable
from services.kernel.kafka.settings import Broker
from services.kernel.kafka.topics import Topic
from services.kernel.telemetry import registry

_log = structlog.get_logger(__name__)
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 1.0
_TEAR_SECONDS: Final = 0.05
FIRST_PAUSE_SECONDS: Final = 0.25
LONGEST_PAUSE_SECONDS: Final = 5.0
RESTARTS: Final = Counter(
    "aiagent_stream_restarts_total",
    "Consumers that were started anew, by why: failed, ended, or silent while there was work.",
    ("group", "why"),
    registry=registry,
)


async def nothing_waits() -> bool:
    """For consumers whose silence nothing contradicts."""
    return False


class StreamConsumer:
    """A member of a consumer group, for as long as it is run."""

    def __init__(
        self,
        group: str,
        broker: Broker,
        handlers: Mapping[Topic, Handler],
        clock: Clock,
        *,
        broadcast: bool = False,
        listening: Callable[[], None] = lambda: None,
        work_waits: Callable[[], Awaitable[bool]] = nothing_waits,
        silent_seconds: float = 30.0,
    ) -> None:
        """Starts nothing yet.

        Args:
            group: The consumer group, as `application` takes it.
            broker: Where from.
            handlers: What is called for the events of each topic.
            clock: Waits.
            broadcast: See `application`.
            listening: Called whenever a consumer has got its partitions; with `broadcast`, what was told before was not
                heard here. It must not block or raise.
            work_waits: Whether there is work that an event should have told of long ago. Asked when none has come for
                `silent_seconds`, and again after each such time; a consumer that is silent then is started anew.
            silent_seconds: See there.
        """
        self._group = group
        self._broker = broker
        self._clock = clock
        self._handlers = {topic: self._heard(handler) for topic, handler in handlers.items()}
        self._broadcast = broadcast
        self._listening = listening
        self._work_waits = work_waits
        self._silent_seconds = silent_seconds
        self._last_heard = clock.monotonic()
        self._handling = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.ready = asyncio.Event()
        """Set while the consumer has its partitions."""

    def _heard(self, handler: Handler) -> Handler:
        async def handle(event: StreamEvent) -> None:
            self._last_heard = self._clock.monotonic()
            self._handling += 1
            self._idle.clear()
            try:
                await handler(event)
            finally:
                self._handling -= 1
                if not self._handling:
                    self._idle.set()

        return handle

    async def run(self) -> None:
        """Consumes until it is cancelled."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            begun = self._clock.monotonic()
            why = await self._once()
            self.ready.clear()
            RESTARTS.labels(self._group, why).inc()
            if self._clock.monotonic() - begun > START_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            _log.warning("consumer is started anew", group=self._group, why=why, next_seconds=pause)
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _once(self) -> str:
        """Runs one application to its end; returns why it has one."""
        try:
            if self._broker.declare_topics:
                await declare(self._broker, self._handlers)
            app = application(self._group, self._broker, self._handlers, broadcast=self._broadcast)
        except PublishError as error:
            _log.info("consumer waits for the broker", group=self._group, why=str(error))
            return "failed"
        try:
            async with asyncio.timeout(START_SECONDS):
                await app.start()
            return await self._watch(app)
        except KafkaConnectionError:
            why = f"no connection to the broker: {await why_unreachable(self._broker)}"
            _log.info("consumer waits for the broker", group=self._group, why=why)
            return "failed"
        except Exception:
            _log.exception("consumer failed", group=self._group)
            return "failed"
        finally:
            await self._stop(app)

    async def _watch(self, app: faust.App) -> str:
        self._last_heard = self._clock.monotonic()
        while not app.should_stop:
            if app.consumer.assignment() and not self.ready.is_set():
                self.ready.set()
                self._listening()
            await self._clock.sleep(LOOK_SECONDS)
            if self._clock.monotonic() - self._last_heard > self._silent_seconds:
                self._last_heard = self._clock.monotonic()
                if await self._work_waits():
                    return "silent"
        return "failed" if app.crashed else "ended"

    async def _stop(self, app: faust.App) -> None:
        """Lets handlers end first: a stop acknowledges the events they are at."""
        app.consumer.stop_flow()
        app.flow_control.suspend()
        app.flow_control.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(HANDLE_SECONDS):
                await self._idle.wait()
        stopping = asyncio.create_task(app.stop(), name=f"stop-{self._group}")
        await asyncio.wait((stopping,), timeout=STOP_SECONDS)
        if not stopping.done():
            _log.warning("consumer does not stop; it is torn down", group=self._group)
            await _tear_down(app)
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)


async def _tear_down(app: faust.App) -> None:
    """Ends what `App.stop` waits for in vain when its broker is gone: the consumer's thread, and tasks of services.

    By private names of Faust 0.15.3, which is pinned: nothing public ends a thread that asks for its coordinator.
    """
    thread: Any = app.consumer._thread  # type: ignore[attr-defined]  # of the driver's consumer
    loop = thread.thread_loop

    def cancel_all() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()

    while thread._thread.is_alive():
        # What is cancelled may begin something else to wait for: a farewell to the coordinator.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(cancel_all)
        await asyncio.sleep(_TEAR_SECONDS)
    # Cancelled before it began to stop, the thread tells nobody; who waits for its word does so for a minute.
    thread.set_shutdown()
    # A task that was at the thread takes one cancellation for the answer, and goes on to what it would do next.
    until = time.monotonic() + STOP_SECONDS
    while (left := {each for node in _family(app) for each in node._futures}) and time.monotonic() < until:
        for future in left:
            future.cancel()
        await asyncio.wait(left, timeout=_TEAR_SECONDS)


def _family(service: Any) -> Iterator[Any]:
    yield service
    for child in service._children:
        yield from _family(child)
