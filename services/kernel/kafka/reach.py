"""Finds out why a broker cannot be reached: aiokafka keeps to itself whether it was the network, TLS or a password."""

from __future__ import annotations

import asyncio
from typing import Final

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaError

from services.kernel.kafka.settings import Broker

_SECONDS: Final = 1.0
"""For all servers together: asked when a connection has just failed, within the time of whoever wanted it."""


async def why_unreachable(broker: Broker) -> str:
    """Connects once more to each server, and returns what each comes to, as `host:port: reason`, for a log."""
    found = []
    arguments = {name: value for name, value in broker.client().items() if name != "bootstrap_servers"}
    try:
        async with asyncio.timeout(_SECONDS):
            for host, port, _ in collect_hosts(list(broker.servers)):
                found.append(f"{host}:{port}: no answer")
                found[-1] = f"{host}:{port}: {await _attempt(host, port, arguments)}"
    except TimeoutError:
        pass
    return "; ".join(found)


async def _attempt(host: str, port: int, arguments: dict[str, object]) -> str:
    try:
        connection = await create_conn(host, port, **arguments)
    except (KafkaError, OSError) as error:
        return str(error) or repr(error)
    connection.close()
    return "answers now"
