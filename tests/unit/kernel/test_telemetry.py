"""Logs: one JSON object a line, wherever they come from, without secrets. Metrics: what a process holds."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from services.kernel.telemetry import MetricsServer, configure_logging

pytestmark = pytest.mark.unit


@pytest.fixture
def lines() -> Iterator[Any]:
    """Configures logging into memory; gives what was logged since."""
    root = logging.getLogger()
    before, level, config = root.handlers[:], root.level, structlog.get_config()
    stream = io.StringIO()
    configure_logging("INFO", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.configure(**config)
    root.handlers[:] = before
    root.setLevel(level)


def test_both_loggers_write_json(lines: Any) -> None:
    structlog.contextvars.bind_contextvars(request_id="r-1")
    try:
        structlog.get_logger("mine").info("hello", count=1, path=Path("x"))
        logging.getLogger("theirs").warning("bye %s", "you", extra={"count": 2})
        structlog.get_logger("mine").debug("too much")
    finally:
        structlog.contextvars.clear_contextvars()
    mine, theirs = lines()
    assert (mine["event"], mine["level"], mine["logger"], mine["count"]) == ("hello", "info", "mine", 1)
    assert (theirs["event"], theirs["level"], theirs["logger"], theirs["count"]) == (
        "bye you",
        "warning",
        "theirs",
        2,
    )
    assert mine["request_id"] == theirs["request_id"] == "r-1"
    assert mine["timestamp"].endswith("Z")


def test_secrets_and_locals_stay_out(lines: Any) -> None:
    log = structlog.get_logger("mine")
    log.info("a", access_token="hunter2", Authorization="hunter2", db_password="hunter2", input_tokens=5)
    logging.getLogger("theirs").info("b", extra={"api_key": "hunter2"})

    def fail() -> None:
        local = "hunter" + "2"
        raise ValueError(len(local))

    try:
        fail()
    except ValueError:
        log.exception("c")
    text = json.dumps(lines())
    assert "hunter2" not in text
    assert lines()[0]["input_tokens"] == 5
    assert lines()[2]["exception"][0]["exc_type"] == "ValueError"


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="loud"):
        configure_logging("loud")


def test_a_log_file_is_its_owners(tmp_path: Path) -> None:
    root = logging.getLogger()
    before, level, config = root.handlers[:], root.level, structlog.get_config()
    try:
        configure_logging("INFO", file=tmp_path / "log")
        assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    finally:
        for handler in root.handlers:
            handler.close()
        structlog.configure(**config)
        root.handlers[:] = before
        root.setLevel(level)


async def test_the_metrics_tell_what_a_process_holds():
    server = MetricsServer("127.0.0.1", 0)
    port = await server.start()
    forever = asyncio.Event()
    waiting = [asyncio.create_task(forever.wait()) for _ in range(7)]
    try:
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"http://127.0.0.1:{port}/metrics") as answer,
        ):
            told = dict(line.rsplit(" ", 1) for line in (await answer.text()).splitlines() if line[0] != "#")
    finally:
        forever.set()
        await asyncio.gather(*waiting)
        await server.stop()
    assert float(told["aiagent_asyncio_tasks"]) > len(waiting)
    assert float(told["process_open_fds"]) > 0
    assert float(told["process_resident_memory_bytes"]) > 0


async def test_whether_it_is_ready_is_told_beside_the_metrics() -> None:
    ready = False
    server = MetricsServer("127.0.0.1", 0, lambda: ready)
    port = await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            for ready, status in ((False, 503), (True, 200)):  # noqa: B007  # read by the server
                async with client.get("/ready") as answer:
                    assert answer.status == status
            async with client.get("/metrics") as answer:
                assert "aiagent_asyncio_tasks" in await answer.text()
    finally:
        await server.stop()
