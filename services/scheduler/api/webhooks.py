"""`WebhookService`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from aiagent.scheduler.v1 import webhook_pb2
from aiagent.scheduler.v1 import webhook_service_pb2 as pb
from aiagent.scheduler.v1.webhook_service_pb2_grpc import WebhookServiceServicer
from services.kernel.context import current_caller
from services.scheduler.api.mapping import time
from services.scheduler.api.pages import page
from services.scheduler.domain.webhooks import Delivery, DeliveryAttempt
from services.scheduler.usecases.webhooks.deliveries import ShownSecret, Webhooks
from services.scheduler.usecases.webhooks.ports import DeliveryFilter

_STATES = webhook_pb2.WebhookDelivery.State


class WebhookServicer(WebhookServiceServicer):
    """The methods of `aiagent.scheduler.v1.WebhookService`."""

    def __init__(self, webhooks: Webhooks) -> None:
        """Args: the use cases."""
        self._webhooks = webhooks

    async def ListWebhookDeliveries(
        self, request: pb.ListWebhookDeliveriesRequest, context: Any
    ) -> pb.ListWebhookDeliveriesResponse:
        """Lists the caller's deliveries."""
        caller = current_caller()
        wanted = DeliveryFilter(
            user_id=caller.user_id,
            task_id=UUID(request.task_id) if request.task_id else None,
            run_id=UUID(request.task_run_id) if request.task_run_id else None,
            states=tuple(_STATES.Name(state) for state in request.states),
        )
        deliveries, token = await page(
            caller,
            ("ListWebhookDeliveries", wanted),
            request.page_size,
            request.page_token,
            UUID,
            lambda before, limit: self._webhooks.list_page(caller, wanted, before, limit),
            lambda row: row.id,
            _delivery,
        )
        return pb.ListWebhookDeliveriesResponse(webhook_deliveries=deliveries, next_page_token=token)

    async def GetWebhookDelivery(
        self, request: pb.GetWebhookDeliveryRequest, context: Any
    ) -> webhook_pb2.WebhookDelivery:
        """Returns a delivery."""
        found = await self._webhooks.get(current_caller(), UUID(request.webhook_delivery_id))
        return _delivery(found.delivery, found.attempts)

    async def RedeliverWebhook(
        self, request: pb.RedeliverWebhookRequest, context: Any
    ) -> webhook_pb2.WebhookDelivery:
        """Sends the message of a delivery again."""
        made = await self._webhooks.redeliver(
            current_caller(), UUID(request.webhook_delivery_id), request.request_id
        )
        return _delivery(made.delivery, made.attempts)

    async def GetWebhookSecret(
        self, request: pb.GetWebhookSecretRequest, context: Any
    ) -> webhook_pb2.WebhookSecret:
        """Returns a secret."""
        return _secret(await self._webhooks.get_secret(current_caller(), UUID(request.task_id)))

    async def RotateWebhookSecret(
        self, request: pb.RotateWebhookSecretRequest, context: Any
    ) -> webhook_pb2.WebhookSecret:
        """Makes a new secret."""
        made = await self._webhooks.rotate_secret(current_caller(), UUID(request.task_id), request.request_id)
        return _secret(made)


def _delivery(value: Delivery, attempts: Sequence[DeliveryAttempt] = ()) -> webhook_pb2.WebhookDelivery:
    return webhook_pb2.WebhookDelivery(
        id=str(value.id),
        task_id=str(value.task_id),
        task_run_id=str(value.run_id),
        user_id=str(value.user_id),
        organization_id=str(value.organization_id),
        event_type=value.event_type,
        message_id=value.message_id,
        state=_STATES.Value(value.state.value),
        attempt_count=value.attempt_count,
        attempts=map(_attempt, attempts),
        payload_json=value.payload.decode(),
        redelivery_of=str(value.redelivery_of or ""),
        create_time=time(value.create_time),
        next_attempt_time=time(value.next_attempt_time) if value.next_attempt_time else None,
        end_time=time(value.end_time) if value.end_time else None,
    )


def _attempt(value: DeliveryAttempt) -> webhook_pb2.WebhookAttempt:
    message = webhook_pb2.WebhookAttempt(
        attempt=value.number,
        url=value.url,
        start_time=time(value.start_time),
        http_status=value.http_status,
        error=value.error,
        error_message=value.error_message,
        response_body=value.response_body,
    )
    if value.duration is not None:
        message.duration.FromTimedelta(value.duration)
    return message


def _secret(value: ShownSecret) -> webhook_pb2.WebhookSecret:
    return webhook_pb2.WebhookSecret(
        task_id=str(value.task_id),
        secret=value.text,
        create_time=time(value.create_time),
        previous_secret_expire_time=time(value.previous_expire_time) if value.previous_expire_time else None,
    )
