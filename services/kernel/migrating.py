"""What `migrate` does in every service: its schema is brought up to date, and its topics are created."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

if TYPE_CHECKING:
    from services.kernel.kafka.settings import Broker
    from services.kernel.kafka.topics import Topic


async def bring_up_to_date(
    schema: str,
    owner_url: SecretStr | None,
    migrations: Path,
    *,
    broker: Broker | None = None,
    topics: Sequence[Topic] = (),
) -> str:
    """Brings a service's schema up to date, and creates its topics where a broker is set.

    Args:
        schema: the schema; the service is called the same.
        owner_url: URL of `<schema>_owner`.
        migrations: the service's `migrations` directory.
        broker: where the topics are; None for nowhere.
        topics: those that the service publishes to.

    Returns:
        A line that says what is there then.

    Raises:
        ValueError: the owner's URL is not set.
        PublishError: the broker does not do it.
    """
    if owner_url is None or not owner_url.get_secret_value():
        raise ValueError(f"AIAGENT_{schema.upper()}_OWNER_DATABASE_URL is not set")
    # Not for services that serve: importing Alembic takes a tenth of their start.
    from services.kernel.db.migrations import upgrade

    line = f"schema {schema} is at {await upgrade(owner_url.get_secret_value(), schema, migrations)}"
    if broker is not None and topics:
        from services.kernel.kafka.admin import declare

        created = await declare(broker, topics)
        for topic in topics:
            line += f"; topic {topic.name} " + ("was created" if topic.name in created else "is there")
    return line
