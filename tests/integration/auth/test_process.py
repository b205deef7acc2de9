"""`python -m services.auth` as an operator runs it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import grpc
import pytest

from aiagent.auth.v1 import auth_service_pb2 as pb
from aiagent.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from deploy.local.ports import free_port
from tests.integration.auth.harness import Databases, an_encryption_key

pytestmark = pytest.mark.integration


async def run(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.auth", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )


async def outcome(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


@pytest.fixture
async def environment(auth_databases: Databases, tmp_path: Path) -> dict[str, str]:
    database = await auth_databases.fresh()
    return {
        "AIAGENT_AUTH_DATABASE_URL": auth_databases.url("auth_application", database),
        "AIAGENT_AUTH_SYSTEM_DATABASE_URL": auth_databases.url("auth_system", database),
        "AIAGENT_AUTH_OWNER_DATABASE_URL": auth_databases.url("auth_owner", database),
        "AIAGENT_AUTH_ENCRYPTION_KEY": an_encryption_key(),
        "AIAGENT_AUTH_LISTEN": f"127.0.0.1:{free_port()}",
        "AIAGENT_STATE_DIR": str(tmp_path / "state"),
    }


async def test_migrate_serve_rotate_and_end(environment: dict[str, str], tmp_path: Path) -> None:
    code, output, _ = await outcome(await run("migrate", **environment))
    assert (code, output) == (0, "schema auth is at 0001\n")
    serving = await run("serve", **environment)
    try:
        assert serving.stdout is not None
        line = (await serving.stdout.readline()).decode()
        password = (tmp_path / "state" / "admin-password").read_text().strip()
        assert str(tmp_path / "state" / "admin-password") in line
        assert password not in line
        async with grpc.aio.insecure_channel(environment["AIAGENT_AUTH_LISTEN"]) as channel:
            stub = AuthServiceStub(channel)
            answer = await stub.Login(
                pb.LoginRequest(email="admin@aiagent.local", password=password), wait_for_ready=True
            )
            assert answer.access_token
        code, output, _ = await outcome(await run("rotate-keys", **environment))
        assert code == 0
        assert re.fullmatch(r"signing key [0-9a-f-]{36} added\n", output)
        serving.send_signal(signal.SIGTERM)
        code, _, log = await outcome(serving)
        assert code == 0
        for secret in (password, answer.access_token, answer.refresh_token):
            assert secret not in log
    finally:
        if serving.returncode is None:
            serving.kill()
            await serving.wait()


async def test_missing_settings_are_named(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.auth", "serve"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if not key.startswith("AIAGENT_")},
    )
    code, _, errors = await outcome(process)
    assert code == 2
    assert "error: AIAGENT_AUTH_DATABASE_URL: Field required" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"AIAGENT_AUTH_ENCRYPTION_KEY": "c2hvcnQ"}, "AIAGENT_AUTH_ENCRYPTION_KEY"),
        ({"AIAGENT_ADMIN_EMAIL": "nobody"}, "AIAGENT_ADMIN_EMAIL"),
        ({"AIAGENT_METRICS_LISTEN": "9464"}, "AIAGENT_METRICS_LISTEN"),
    ],
)
async def test_what_is_wrong_is_one_line(
    environment: dict[str, str], change: dict[str, str], told: str
) -> None:
    code, _, errors = await outcome(await run("serve", **{**environment, **change}))
    assert code != 0
    assert told in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors
    assert "secret" not in errors
