"""Senders of webhooks on a real database, with a receiver that is played."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from ipaddress import ip_network
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa

from services.kernel.clock import SystemClock
from services.kernel.identity import Caller
from services.kernel.testing import a_caller
from services.scheduler.domain.receivers import AddressRules
from services.scheduler.domain.webhooks import Webhook
from services.scheduler.gateways.webhooks import WebhookPost
from services.scheduler.store.system_queries import WebhookQueries
from services.scheduler.store.webhook_tables import webhook_attempts, webhook_deliveries
from services.scheduler.usecases.webhooks import WebhookSender

from .receiver import Receiver
from .working import Floor

LOOPBACK = AddressRules([ip_network("127.0.0.0/8")])


class Hall:
    """A floor with senders and a receiver."""

    def __init__(self, of: Floor, receiver: Receiver) -> None:
        self.floor = of
        self.receiver = receiver
        self.senders: list[WebhookSender] = []

    async def sender(
        self,
        *,
        lease_seconds: float = 60.0,
        places: int = 8,
        queue: WebhookQueries | None = None,
        **timeouts: float,
    ) -> WebhookSender:
        """Starts a sender that looks often."""
        sender = WebhookSender(
            queue or WebhookQueries(self.floor.database, lease_life=timedelta(seconds=lease_seconds)),
            WebhookPost(LOOPBACK, places=places, **timeouts),
            self.floor.keeper,
            holder=str(uuid4()),
            clock=SystemClock(),
            places=places,
            look_seconds=0.05,
        )
        await sender.start()
        self.senders.append(sender)
        return sender

    async def crash(self, sender: WebhookSender) -> None:
        """Lets a sender end where it stands, as a process does that is killed: nothing is given back."""
        self.senders.remove(sender)
        tasks = [task for _, task in sender._flights.values()]
        if sender._loop is not None:
            tasks.append(sender._loop)
            sender._loop = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ended(self, caller: Caller | None = None, *, url: str = "", **changes: Any) -> UUID:
        """Ends a run of a task with a webhook, by cancelling it; returns the run's id."""
        caller = caller or a_caller()
        changes.setdefault("webhook", Webhook(url or self.receiver.url))
        run = await self.floor.run(caller, **changes)
        await self.floor.runs.cancel(caller, run.run.id, "")
        return run.run.id

    async def deliveries(self, run_id: UUID) -> list[dict[str, Any]]:
        """The rows of a run's deliveries."""
        async with self.floor.database.system() as connection:
            query = sa.select(webhook_deliveries).where(webhook_deliveries.c.run_id == run_id)
            rows = await connection.execute(query.order_by(webhook_deliveries.c.id))
            return [dict(row._mapping) for row in rows]

    async def until(self, run_id: UUID, state: str, *, attempts: int = 0) -> dict[str, Any]:
        """Waits until the last delivery of a run stands so."""
        async with asyncio.timeout(15):
            # The database tells nobody when it changes.
            while True:
                found = await self.deliveries(run_id)
                last = found[-1] if found else None
                if (
                    last
                    and (last["state"], last["lease_holder"]) == (state, None)
                    and last["attempt_count"] >= attempts
                ):
                    return last
                await asyncio.sleep(0.01)

    async def attempts(self, delivery_id: UUID) -> list[Any]:
        """The rows of a delivery's attempts."""
        async with self.floor.database.system() as connection:
            columns = webhook_attempts.c
            query = (
                sa.select(webhook_attempts).where(columns.delivery_id == delivery_id).order_by(columns.number)
            )
            return list(await connection.execute(query))

    async def change(self, run_id: UUID, **values: Any) -> None:
        """Changes the deliveries of a run behind everybody's back."""
        async with self.floor.database.system() as connection:
            columns = webhook_deliveries.c
            await connection.execute(
                sa.update(webhook_deliveries)
                .where(columns.run_id == run_id, columns.state == "PENDING")
                .values(**values)
            )

    async def due(self, run_id: UUID) -> None:
        """Lets what waits of a run fall due: a pause, or a lease, is over."""
        await self.change(run_id, next_attempt_time=sa.func.clock_timestamp() - timedelta(seconds=1))

    async def told(self, caller: Caller) -> tuple[UUID, UUID]:
        """Ends a run of a new task with a webhook; returns the ids of both."""
        task_id = await self.floor.task(caller, webhook=Webhook(self.receiver.url))
        run = await self.floor.run(caller, task_id)
        await self.floor.runs.cancel(caller, run.run.id, "")
        return task_id, run.run.id
