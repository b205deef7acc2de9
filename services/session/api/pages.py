"""Pages of the session service's lists."""

from __future__ import annotations

from services.kernel.grpc.pages import Pages
from services.session.domain.errors import DOMAIN

DEFAULT_EVENTS = 100
page = Pages(DOMAIN).page
