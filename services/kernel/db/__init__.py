"""PostgreSQL: tenant and system transactions, idempotency, the outbox, migrations."""

from services.kernel.db.engine import Database

__all__ = ["Database"]
