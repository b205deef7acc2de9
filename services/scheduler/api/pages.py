"""Pages of the scheduler's lists."""

from __future__ import annotations

from services.kernel.grpc.pages import Pages
from services.scheduler.domain.errors import DOMAIN

page = Pages(DOMAIN).page
