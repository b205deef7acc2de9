"""Creates topics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, KafkaError

from services.kernel.db.outbox import PublishError
from services.kernel.kafka.reach import why_unreachable
from services.kernel.kafka.settings import Broker
from services.kernel.kafka.topics import Topic

_EXISTS: Final = 36  # TOPIC_ALREADY_EXISTS, Kafka protocol guide, error codes
_ANSWER_MS: Final = 8_000


async def declare(broker: Broker, topics: Iterable[Topic]) -> list[str]:
    """Creates those of the topics that are not there; one that is stays as it is. Returns the names of the created.

    Raises:
        PublishError: The broker cannot be reached, or refuses one.
    """
    wanted = [
        NewTopic(
            topic.name,
            topic.partitions,
            broker.replication_factor,
            topic_configs={
                "retention.ms": str(int(topic.retention.total_seconds() * 1000)),
                "cleanup.policy": "delete",
            },
        )
        for topic in topics
    ]
    admin = AIOKafkaAdminClient(**broker.client(), request_timeout_ms=_ANSWER_MS)
    try:
        await admin.start()
        answer = await admin.create_topics(wanted, timeout_ms=_ANSWER_MS)
    except KafkaConnectionError as error:
        raise PublishError(f"no connection to the broker: {await why_unreachable(broker)}") from error
    except (KafkaError, OSError) as error:
        raise PublishError(f"topics cannot be declared: {error!r}") from error
    finally:
        await admin.close()
    created = []
    for name, code, *why in answer.topic_errors:
        if code == 0:
            created.append(name)
        elif code != _EXISTS:
            raise PublishError(f"the broker does not create topic {name}: error {code} {why}")
    return created
