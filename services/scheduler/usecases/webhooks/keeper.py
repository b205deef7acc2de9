"""Judges webhooks, and makes and opens their secrets."""

from __future__ import annotations

import secrets
from uuid import UUID

from services.kernel.errors import FieldViolation
from services.scheduler.domain.receivers import AddressRules, ReceiverFault
from services.scheduler.domain.violations import refuse
from services.scheduler.domain.webhooks import SECRET_BYTES, Webhook
from services.scheduler.usecases.webhooks.ports import Seal, WebhookTransaction


class WebhookKeeper:
    """What a task's own use cases need of webhooks: their rules and their first secret."""

    def __init__(self, rules: AddressRules, seal: Seal) -> None:
        """Args: rules: where webhooks may point; seal: for secrets."""
        self._rules = rules
        self._seal = seal

    def check(self, webhook: Webhook | None) -> None:
        """Judges a webhook.

        Raises:
            ServiceError: INVALID_ARGUMENT with INVALID_REQUEST: `webhook.url`, with the rule that it breaks.
        """
        if webhook is None:
            return
        try:
            self._rules.check(webhook.url)
        except ReceiverFault as fault:
            raise refuse([FieldViolation("webhook.url", str(fault), fault.rule)]) from None

    async def keep_secret(self, transaction: WebhookTransaction, task_id: UUID, user_id: UUID) -> None:
        """Makes the secret of a task that gets a webhook; one that the task has already stays."""
        await transaction.insert_webhook_secret(task_id, user_id, self.new_secret(task_id))

    def new_secret(self, task_id: UUID) -> bytes:
        """Makes a secret, sealed for its task."""
        return self._seal.seal(secrets.token_bytes(SECRET_BYTES), secret_name(task_id))

    def open(self, sealed: bytes, task_id: UUID) -> bytes:
        """Opens a secret of a task. Raises: ValueError."""
        return self._seal.open(sealed, secret_name(task_id))


def secret_name(task_id: UUID) -> str:
    """The name under which a task's secrets are sealed: copied to another task's row they do not open."""
    return f"webhook/{task_id}"
