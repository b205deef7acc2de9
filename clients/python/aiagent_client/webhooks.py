"""`client.webhooks`: what receivers were told when runs ended, and the secrets that sign it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from aiagent.scheduler.v1 import webhook_service_pb2 as pb
from aiagent.scheduler.v1 import webhook_service_pb2_grpc
from aiagent.scheduler.v1.webhook_pb2 import WebhookDelivery, WebhookSecret
from aiagent_client.connection import Connection

if TYPE_CHECKING:
    from aiagent.scheduler.v1.webhook_service_pb2_grpc import WebhookServiceAsyncStub


class Webhooks:
    """Calls of the scheduler service about webhooks. All of them raise ApiError; the list pages by itself."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub: WebhookServiceAsyncStub = webhook_service_pb2_grpc.WebhookServiceStub(connection.channel)

    async def list(
        self,
        *,
        task_id: str = "",
        task_run_id: str = "",
        states: Sequence[WebhookDelivery.State.ValueType] = (),
        page_size: int = 0,
    ) -> AsyncIterator[WebhookDelivery]:
        """Yields the caller's deliveries, the newest first, without attempts and bodies: `get` has them."""
        request = pb.ListWebhookDeliveriesRequest(
            task_id=task_id, task_run_id=task_run_id, states=states, page_size=page_size
        )
        while True:
            page = await self._connection.call(self._stub.ListWebhookDeliveries, request)
            for delivery in page.webhook_deliveries:
                yield delivery
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def get(self, webhook_delivery_id: str) -> WebhookDelivery:
        """Returns a delivery with its attempts. Raises NotFoundError with WEBHOOK_DELIVERY_NOT_FOUND."""
        request = pb.GetWebhookDeliveryRequest(webhook_delivery_id=webhook_delivery_id)
        return await self._connection.call(self._stub.GetWebhookDelivery, request)

    async def redeliver(self, webhook_delivery_id: str, *, request_id: str = "") -> WebhookDelivery:
        """Sends the message of a delivery again; returns the new delivery, whose `message_id` is the same.

        Raises FailedPreconditionError with WEBHOOK_NOT_SET.
        """
        request = pb.RedeliverWebhookRequest(webhook_delivery_id=webhook_delivery_id, request_id=request_id)
        return await self._connection.call(self._stub.RedeliverWebhook, request)

    async def get_secret(self, task_id: str) -> WebhookSecret:
        """Returns what signs a task's messages.

        Raises FailedPreconditionError with WEBHOOK_NOT_SET or SECRET_UNREADABLE.
        """
        request = pb.GetWebhookSecretRequest(task_id=task_id)
        return await self._connection.call(self._stub.GetWebhookSecret, request)

    async def rotate_secret(self, task_id: str, *, request_id: str = "") -> WebhookSecret:
        """Makes a new secret; for 24 hours the one before signs beside it."""
        request = pb.RotateWebhookSecretRequest(task_id=task_id, request_id=request_id)
        return await self._connection.call(self._stub.RotateWebhookSecret, request)
