"""Composes what carries runs: in a process that serves, or in one of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from services.kernel.clock import Clock, SystemClock
from services.kernel.db import Database
from services.kernel.grpc import open_channel, replicas
from services.kernel.identity import ServiceTokenSigner
from services.kernel.ids import new_id
from services.kernel.kafka.settings import Broker
from services.kernel.readiness import Readiness, once_reached, watch_database
from services.kernel.sealing import KeyRing
from services.kernel.settings import targets
from services.kernel.supervision import repeat, supervise
from services.scheduler.bootstrap.background import Background
from services.scheduler.domain.receivers import AddressRules
from services.scheduler.gateways.sessions import SessionGateway
from services.scheduler.gateways.webhooks import WebhookPost
from services.scheduler.settings import SchedulerSettings
from services.scheduler.store.facts import OUTBOX, RUNS_QUEUED, TASK_RUNS
from services.scheduler.store.system_queries import RunQueries, WaitingQueries, WebhookQueries
from services.scheduler.store.webhooks import WEBHOOKS
from services.scheduler.usecases.watchdog import MEASURE_SECONDS, SILENT_SECONDS, QueueWatch
from services.scheduler.usecases.webhooks import WebhookKeeper, WebhookSender
from services.scheduler.usecases.worker import RunWorker

if TYPE_CHECKING:
    from services.kernel.kafka.consumer import StreamConsumer
    from services.kernel.kafka.relay import OutboxRelay


class Carrier:
    """The runs of a process: its worker, what wakes it, and what tells others of them, through Kafka and webhooks."""

    def __init__(
        self,
        worker: RunWorker,
        watch: QueueWatch,
        relay: OutboxRelay | None,
        consumer: StreamConsumer | None,
        session: grpc.aio.Channel,
        webhooks: WebhookKeeper,
        sender: WebhookSender,
    ) -> None:
        """Use `compose_carrier`."""
        self.worker = worker
        self.webhooks = webhooks
        self._sender = sender
        self.publishes = relay is not None
        self._watch = watch
        self._relay = relay
        self._consumer = consumer
        self._session = session
        self._hearing, self._background = Background(), Background()

    async def start(self) -> None:
        """Carries runs from now on; the database is there. The broker need not be."""
        clock = SystemClock()
        await self.worker.start()
        await self._sender.start()
        self._background.begin("queue-age", repeat("queue-age", self._watch.step, clock, MEASURE_SECONDS))
        if self._relay is not None:
            self._background.begin("relay", supervise("relay", self._relay.run, clock))
        if self._consumer is not None:
            self._hearing.begin("consumer", supervise("runs-consumer", self._consumer.run, clock))

    async def drain(self) -> None:
        """Gives runs back for another worker, or the next start, to go on with."""
        await asyncio.gather(self.worker.drain(), self._sender.drain(), self._hearing.end())

    async def stop(self) -> None:
        """Closes everything."""
        await self.drain()
        await self._background.end()
        await self._session.close()


class WorkerService:
    """A process that only carries runs: no server, no calls."""

    name = "scheduler-worker"

    def __init__(self, database: Database, carrier: Carrier) -> None:
        """Use `build_worker`."""
        self._database = database
        self._carrier = carrier
        self._readiness = Readiness()
        self._background = Background()

    @property
    def ready(self) -> bool:
        """Whether it takes runs, and its database is there."""
        return self._readiness.ready

    async def start(self) -> None:
        """Carries runs once its database is there."""
        clock = SystemClock()
        await once_reached(self._database.check, clock)
        await self._carrier.start()
        await self._readiness.set_serving(True)
        self._background.begin("readiness", watch_database(self._database.check, self._readiness, clock))

    async def drain(self, grace_seconds: float) -> None:
        """Gives runs back; the agents go on in the session service, and nothing needs the grace."""
        self._readiness.shut_down()
        await self._carrier.drain()

    async def stop(self) -> None:
        """Closes everything."""
        await self._carrier.stop()
        await self._background.end()
        await self._database.close()


async def build_worker(settings: SchedulerSettings) -> WorkerService:
    """Composes a process that only carries runs.

    Args:
        settings: The service's.

    Raises:
        ValueError: It is to carry none.
    """
    if settings.scheduler_worker_places == 0:
        raise ValueError("AIAGENT_SCHEDULER_WORKER_PLACES is 0: a worker without places carries nothing")
    database = open_database(settings)
    return WorkerService(database, compose_carrier(settings, database))


def open_database(settings: SchedulerSettings) -> Database:
    """Opens the schema's connections."""
    return Database(
        settings.scheduler_database_url.get_secret_value(),
        settings.scheduler_system_database_url.get_secret_value(),
        application_name="aiagent/scheduler",
    )


def compose_carrier(settings: SchedulerSettings, database: Database) -> Carrier:
    """Composes what carries runs in a process.

    Args:
        settings: The service's.
        database: Whose commits wake the worker at once, where they queue runs.
    """
    session = open_channel(
        replicas(targets(settings.session_targets)),
        signer=ServiceTokenSigner("scheduler", settings.private_key()),
        audience="session",
        forward_caller=True,
        balanced=True,
    )
    clock, places = SystemClock(), settings.scheduler_worker_places
    per_user = settings.scheduler_max_runs_per_user
    worker = RunWorker(
        RunQueries(database, per_user=per_user),
        SessionGateway(session),
        holder=str(new_id()),
        clock=clock,
        places=places,
    )
    database.on_commit(RUNS_QUEUED, worker.wake)
    rules = AddressRules(settings.scheduler_webhook_allowed_networks)
    keys = KeyRing(settings.scheduler_encryption_key.get_secret_value(), service="scheduler")
    keeper = WebhookKeeper(rules, keys.sealer())
    sender = WebhookSender(
        WebhookQueries(database),
        WebhookPost(rules, places=settings.scheduler_webhook_places),
        keeper,
        holder=str(new_id()),
        clock=clock,
        places=settings.scheduler_webhook_places,
    )
    database.on_commit(WEBHOOKS, sender.wake)
    watch = QueueWatch(WaitingQueries(database, per_user=per_user), lambda: worker.under_way < places)
    broker = settings.broker()
    return Carrier(
        worker,
        watch,
        relay_to(broker, database, clock),
        consumer_of(broker, worker, watch, clock) if places else None,
        session,
        keeper,
        sender,
    )


def relay_to(broker: Broker | None, database: Database, clock: Clock) -> OutboxRelay | None:
    """Composes what publishes the service's facts; None without a broker."""
    if broker is None:
        return None
    # Not for services that publish nothing: importing the client takes time and memory.
    from services.kernel.kafka.publisher import KafkaPublisher
    from services.kernel.kafka.relay import OutboxRelay

    return OutboxRelay("scheduler", database, OUTBOX, KafkaPublisher(broker, [TASK_RUNS]), clock)


def consumer_of(
    broker: Broker | None, worker: RunWorker, watch: QueueWatch, clock: Clock
) -> StreamConsumer | None:
    """Composes what hears of runs that other processes have queued (0084); None without a broker."""
    if broker is None:
        return None
    # Faust takes half a second.
    from services.kernel.kafka.consumer import StreamConsumer
    from services.scheduler.streams.runs import GROUP, waking

    return StreamConsumer(
        GROUP,
        broker,
        {TASK_RUNS: waking(worker)},
        clock,
        broadcast=True,
        listening=worker.wake,
        work_waits=watch.work_waits,
        silent_seconds=SILENT_SECONDS,
    )
