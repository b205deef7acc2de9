"""PostgreSQL: connections by role and tenant, row-level security, idempotency, outbox, migrations."""

from services.kernel.db.database import Database

__all__ = ["Database"]
