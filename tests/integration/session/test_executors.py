"""How a session replica finds executors: configured, registered, or stored with a turn."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from functools import partial
from uuid import UUID, uuid4

import grpc
import pytest
from redis.asyncio import Redis

from aiagent.executor.v1 import executor_service_pb2_grpc
from deploy.local.servers import Valkey
from services.executor.gateways.registration import Registration
from services.kernel.clock import SystemClock
from services.kernel.errors import ServiceError
from services.kernel.grpc import open_channel
from services.kernel.identity import generate_private_key
from services.kernel.redis import executor_key, executor_names_key, open_redis
from services.kernel.testing import FakeClock, running_server
from services.session.domain.turn_items import AttemptKey
from services.session.gateways.attempt_tokens import AttemptTokens
from services.session.gateways.executor_registry import ExecutorRegistry
from services.session.gateways.executors import UNUSED_SECONDS, ExecutorGateway

from .driving import POLICIES
from .scripted_executor import ScriptedExecutor
from .serving import greet

pytestmark = pytest.mark.integration
NOBODY = "127.0.0.1:1"


@pytest.fixture
async def redis(valkey: Valkey) -> AsyncIterator[Redis]:
    opened = open_redis(valkey.url)
    await opened.delete(executor_names_key())
    yield opened
    await opened.aclose()


class Executors:
    """Scripted executors on ports of their own, and a replica that looks for them."""

    def __init__(self, stack: AsyncExitStack, redis: Redis | None) -> None:
        self._stack = stack
        self.redis = redis
        self.clock = FakeClock()
        self.opened: dict[str, grpc.aio.Channel] = {}

    async def start(self, name: str) -> tuple[str, ScriptedExecutor]:
        played = ScriptedExecutor(greet)
        played.executor_id = name
        register = partial(executor_service_pb2_grpc.add_ExecutorServiceServicer_to_server, played)
        server, _ = await self._stack.enter_async_context(
            running_server(register=[register], policies=POLICIES, domain="executor.aiagent")
        )
        return f"127.0.0.1:{server.port}", played

    def gateway(self, *configured: str, redis: Redis | None = None) -> ExecutorGateway:
        def connect(target: str) -> grpc.aio.Channel:
            channel = self.opened[target] = open_channel(target, signer=None, audience="executor")
            return channel

        gateway = ExecutorGateway(
            {target: connect(target) for target in configured},
            AttemptTokens(generate_private_key()),
            registered=ExecutorRegistry(redis or self.redis).targets,
            connect=connect,
            clock=self.clock,
        )
        self._stack.push_async_callback(gateway.close)
        return gateway

    async def register(self, name: str, target: str) -> Registration:
        assert self.redis is not None
        registration = Registration(self.redis, name, target, uuid4(), SystemClock())
        keeping = asyncio.create_task(registration.keep())
        self._stack.callback(keeping.cancel)
        async with asyncio.timeout(5):
            while not await self.redis.exists(executor_key(name)):
                await asyncio.sleep(0.02)
        keeping.cancel()
        return registration


@pytest.fixture
async def executors(redis: Redis) -> AsyncIterator[Executors]:
    async with AsyncExitStack() as stack:
        yield Executors(stack, redis)


async def names(gateway: ExecutorGateway) -> list[str]:
    return sorted(found.executor_id for found in await gateway.list_executors())


async def test_one_that_registers_is_found_beside_those_configured(executors: Executors):
    one, two = await executors.start("one"), await executors.start("two")
    gateway = executors.gateway(one[0])
    assert await names(gateway) == ["one"]
    await executors.register("two", two[0])
    assert await names(gateway) == ["one", "two"]


async def test_one_that_is_known_twice_counts_once(executors: Executors):
    target, _ = await executors.start("one")
    await executors.register("one", target.replace("127.0.0.1", "localhost"))
    assert await names(executors.gateway(target)) == ["one"]


async def test_an_entry_expires_and_is_withdrawn(executors: Executors, redis: Redis):
    registration = await executors.register("gone", NOBODY)
    assert 0 < await redis.ttl(executor_key("gone")) <= 5
    assert json.loads(await redis.get(executor_key("gone")))["target"] == NOBODY
    await registration.withdraw()
    assert await ExecutorRegistry(redis).targets() == []


async def test_nobody_waits_for_a_frozen_valkey_to_find_them(executors: Executors, valkey: Valkey):
    one, two = await executors.start("one"), await executors.start("known")
    await executors.register("known", two[0])
    gateway = executors.gateway(one[0])
    assert await names(gateway) == ["known", "one"]
    assert valkey.pid is not None
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(1.0):
            assert await names(gateway) == ["known", "one"], "those that were there are not forgotten"
            for _ in range(10):
                await names(gateway)
    finally:
        os.kill(valkey.pid, signal.SIGCONT)


async def test_one_that_does_not_answer_is_skipped(executors: Executors):
    one = await executors.start("one")
    await executors.register("two", NOBODY)
    assert await names(executors.gateway(one[0])) == ["one"]


@pytest.mark.parametrize("nonsense", ["", "{}", "[1]", "no json", '{"target": ""}'])
async def test_nonsense_in_redis_is_nobody(executors: Executors, redis: Redis, nonsense: str):
    await redis.sadd(executor_names_key(), "bad")
    await redis.set(executor_key("bad"), nonsense, ex=5)
    assert await ExecutorRegistry(redis).targets() == []


async def test_without_redis_the_configured_ones_are_asked(executors: Executors):
    one = await executors.start("one")
    away = open_redis("redis://127.0.0.1:1/0")
    assert await names(executors.gateway(one[0], redis=away)) == ["one"]
    await away.aclose()


async def test_one_that_vanished_from_the_registry_is_still_told(executors: Executors):
    target, played = await executors.start("one")
    session_id = uuid4()
    await executors.gateway().forget(session_id, 1, {target, NOBODY})
    assert played.forgotten == [str(session_id)]


async def test_a_configured_one_that_is_away_holds_the_removal_up(executors: Executors):
    with pytest.raises(ServiceError) as refused:
        await executors.gateway(NOBODY).forget(UUID(int=1), 1, set())
    assert refused.value.kind.value == "UNAVAILABLE"


async def test_the_channel_to_one_that_has_left_is_closed_once_nobody_uses_it(executors: Executors):
    one, visitor = await executors.start("one"), await executors.start("visitor")
    gateway = executors.gateway(one[0])
    registration = await executors.register("visitor", visitor[0])
    assert await names(gateway) == ["one", "visitor"]
    left = executors.opened[visitor[0]]
    await registration.withdraw()
    await executors.clock.advance(UNUSED_SECONDS - 1)
    assert await names(gateway) == ["one"]
    # Its last attempt is still driven, and each second somebody says so.
    key = AttemptKey(uuid4(), uuid4(), 1, "visitor", visitor[0], uuid4())
    with suppress(ServiceError):
        await gateway.heartbeat(key, 1)
    await executors.clock.advance(UNUSED_SECONDS - 1)
    assert await names(gateway) == ["one"]
    assert left.get_state() is not grpc.ChannelConnectivity.SHUTDOWN
    await executors.clock.advance(2)
    assert await names(gateway) == ["one"]
    assert left.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    assert executors.opened[one[0]].get_state() is not grpc.ChannelConnectivity.SHUTDOWN
    # Whoever comes back is found again.
    await executors.register("visitor again", visitor[0])
    assert await names(gateway) == ["one", "visitor"]
