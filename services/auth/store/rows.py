"""Between rows and domain values."""

from __future__ import annotations

from typing import Any, Final

from services.auth.domain.accounts import User
from services.auth.store.tables import users
from services.kernel.identity.caller import Role

USER_COLUMNS: Final = (
    users.c.id,
    users.c.organization_id,
    users.c.email,
    users.c.username,
    users.c.full_name,
    users.c.role,
    users.c.deactivate_time,
    users.c.create_time,
    users.c.update_time,
)
"""What a `User` is made of; the password's hash is not among it."""


def user_of(row: Any) -> User:
    """Reads `USER_COLUMNS`."""
    return User(
        id=row.id,
        email=row.email,
        username=row.username,
        full_name=row.full_name,
        role=Role(row.role),
        organization_id=row.organization_id,
        active=row.deactivate_time is None,
        create_time=row.create_time,
        update_time=row.update_time,
    )
