"""The scripted server's deliveries of webhooks, and their secrets."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import grpc

from aiagent.scheduler.v1 import webhook_pb2, webhook_service_pb2_grpc
from aiagent.scheduler.v1 import webhook_service_pb2 as pb

from .scripted_session import Fault


class ScriptedWebhooks(webhook_service_pb2_grpc.WebhookServiceServicer):
    """The methods about webhooks; `_enter` and what is kept are the server's."""

    deliveries: dict[str, webhook_pb2.WebhookDelivery]

    async def _enter(self, method: str, request: Any, context: Any) -> Any:
        raise AssertionError

    def new_delivery(self, **fields: Any) -> webhook_pb2.WebhookDelivery:
        """Keeps a delivery."""
        made = webhook_pb2.WebhookDelivery(id=str(uuid4()), event_type="task_run.failed", **fields)
        made.create_time.GetCurrentTime()
        self.deliveries[made.id] = made
        return made

    async def ListWebhookDeliveries(self, request: Any, context: Any) -> Any:
        await self._enter("ListWebhookDeliveries", request, context)
        found = list(self.deliveries.values())[::-1]
        begin = int(request.page_token or 0)
        end = begin + (request.page_size or 50)
        token = str(end) if end < len(found) else ""
        return pb.ListWebhookDeliveriesResponse(webhook_deliveries=found[begin:end], next_page_token=token)

    async def _delivery(self, delivery_id: str, context: Any) -> webhook_pb2.WebhookDelivery:
        if delivery_id not in self.deliveries:
            await Fault(grpc.StatusCode.NOT_FOUND, "WEBHOOK_DELIVERY_NOT_FOUND", "none").abort(context)
        return self.deliveries[delivery_id]

    async def GetWebhookDelivery(self, request: Any, context: Any) -> Any:
        await self._enter("GetWebhookDelivery", request, context)
        return await self._delivery(request.webhook_delivery_id, context)

    async def RedeliverWebhook(self, request: Any, context: Any) -> Any:
        await self._enter("RedeliverWebhook", request, context)
        old = await self._delivery(request.webhook_delivery_id, context)
        return self.new_delivery(message_id=old.message_id, redelivery_of=old.id)

    async def GetWebhookSecret(self, request: Any, context: Any) -> Any:
        await self._enter("GetWebhookSecret", request, context)
        return webhook_pb2.WebhookSecret(task_id=request.task_id, secret="whsec_one")

    async def RotateWebhookSecret(self, request: Any, context: Any) -> Any:
        await self._enter("RotateWebhookSecret", request, context)
        made = webhook_pb2.WebhookSecret(task_id=request.task_id, secret="whsec_two")
        made.previous_secret_expire_time.GetCurrentTime()
        return made
