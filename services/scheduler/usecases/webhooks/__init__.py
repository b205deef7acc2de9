"""Webhooks: whom tasks tell of their runs' ends. Keeps their secrets, and sends what is due, of all tenants.

What owners do is in `deliveries`, which is not imported here: it needs the ports of all use cases, which need these.
"""

from services.scheduler.usecases.webhooks.keeper import WebhookKeeper
from services.scheduler.usecases.webhooks.sender import WebhookSender

__all__ = ["WebhookKeeper", "WebhookSender"]
