"""The executor's own process tells its metrics where it is asked to."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from pathlib import Path

import aiohttp
import pytest

from deploy.local.ports import free_port

pytestmark = pytest.mark.integration


async def test_metrics_are_served(tmp_path: Path):
    port = free_port()
    environment = {
        **os.environ,
        "AIAGENT_DRAIN_SECONDS": "1",
        "AIAGENT_METRICS_LISTEN": f"127.0.0.1:{port}",
        "AIAGENT_EXECUTOR_LISTEN": f"127.0.0.1:{free_port()}",
        "AIAGENT_STATE_DIR": str(tmp_path / "state"),
        "AIAGENT_WORKSPACE_ROOT": str(tmp_path / "workspaces"),
        "AIAGENT_SERVICE_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("="),
        "ANTHROPIC_API_KEY": "",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.executor", "serve"),
        env=environment,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(20), aiohttp.ClientSession() as client:
            while True:
                try:
                    async with client.get(f"http://127.0.0.1:{port}/metrics") as answer:
                        told = await answer.text()
                        break
                except aiohttp.ClientError:
                    assert process.returncode is None
                    await asyncio.sleep(0.1)
        assert "aiagent_model_calls_total" in told
        assert "aiagent_executor_faults_total" in told
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
