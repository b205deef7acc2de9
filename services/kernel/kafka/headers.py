"""The headers of a record."""

from __future__ import annotations

from typing import Final

EVENT_ID: Final = "event-id"
"""The fact's id, as text: what a consumer knows repetitions by."""
MESSAGE_TYPE: Final = "type"
"""The full name of the protobuf message that the value is."""
ORGANIZATION_ID: Final = "organization-id"
"""The tenant, as text."""
