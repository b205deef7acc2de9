"""One command starts everything, keeps it up, ends it, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest

from deploy.local.ports import free_port
from tests.running_suite import ROOT, RunningSuite

from .conftest import answered

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SERVERS = {"postgres": "postgres", "valkey": "valkey-server", "kafka": "tansu", "envoy": "envoy"}


@pytest.fixture(scope="module")
async def local() -> AsyncIterator[RunningSuite]:
    folder = Path(tempfile.mkdtemp(prefix="aiagent-local-"))
    # A path with blanks, and too long for the name of a Unix socket.
    running = RunningSuite(folder / "a state directory" / ("long " * 15 + "path"))
    await running.start()
    yield running
    await running.stop()
    shutil.rmtree(folder)


@pytest.fixture
async def client(local: RunningSuite) -> AsyncIterator[httpx.AsyncClient]:
    if local.process is None or local.process.returncode is not None:
        await local.start()
    async with httpx.AsyncClient(base_url=local.base_url, trust_env=False, timeout=20) as opened:
        yield opened


async def command(local: RunningSuite, *arguments: str, **variables: str) -> tuple[int, str]:
    """Runs the command line in the suite's environment."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.local", *arguments),
        cwd=ROOT,
        env={**local.environment, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode().strip()


async def test_metrics_are_told_where_status_says(local: RunningSuite, client: httpx.AsyncClient):
    await client.get("/api/v1/auth/me")
    code, output = await command(local, "status")
    assert code == 0, output
    (target,) = [line.split()[1] for line in output.splitlines() if line.split()[0] == "metrics"]
    assert "aiagent_grpc_requests_total{" in (await client.get(target)).text


async def an_account(client: httpx.AsyncClient) -> dict[str, str]:
    name = f"u{uuid4().hex[:12]}"
    account = {"email": f"{name}@example.com", "username": name, "password": "correct horse battery"}
    answer = await client.post("/api/v1/auth/register", json=account)
    assert answer.status_code == 200, answer.text
    return account


async def log_in(client: httpx.AsyncClient, account: dict[str, str]) -> httpx.Response:
    return await answered(client, "/api/v1/auth/login", method="POST", json=credentials(account))


def credentials(account: dict[str, str]) -> dict[str, str]:
    return {key: account[key] for key in ("email", "password")}


def server(local: RunningSuite, name: str) -> psutil.Process:
    [found] = [
        process
        for process in local.processes()
        if process.name() == SERVERS[name] and process.ppid() == local.process.pid  # type: ignore[union-attr]
    ]
    return found


async def gone(processes: list[psutil.Process]) -> None:
    """Waits until they have all ended."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, 10)
    assert alive == []


async def test_it_tells_where_things_are(local: RunningSuite, client: httpx.AsyncClient) -> None:
    assert f"http://localhost:{local.port}/docs" in local.output
    assert "offline model in use: no ANTHROPIC_API_KEY" in local.output
    assert "isolation of agents" in local.output
    assert "Traceback" not in local.output
    account = {"email": local.admin_email, "password": local.admin_password}
    token = (await log_in(client, account)).json()["access_token"]
    me = await client.get("/api/v1/auth/me", headers={"authorization": f"Bearer {token}"})
    assert me.json()["role"] == "ADMIN"


async def test_only_its_owner_can_read_the_state(local: RunningSuite, client: httpx.AsyncClient) -> None:
    assert stat.S_IMODE(local.state_dir.stat().st_mode) == 0o700
    for path in local.state_dir.iterdir():
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077 or path.name == "lock", path
    assert stat.S_IMODE((local.state_dir / "secrets.json").stat().st_mode) == 0o600


async def test_a_second_start_is_refused(local: RunningSuite, client: httpx.AsyncClient) -> None:
    assert local.process is not None
    status, output = await command(local, "run", AIAGENT_HTTP_PORT=str(free_port()))
    assert (status, len(output.splitlines())) == (1, 1)
    assert output.startswith("error: a suite already runs in ")
    assert f"pid {local.process.pid}" in output
    assert (await client.get("/health")).status_code == 200


async def test_a_port_in_use_is_named(local: RunningSuite, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        state = str(tmp_path / "state")
        status, output = await command(local, "run", AIAGENT_HTTP_PORT=port, AIAGENT_STATE_DIR=state)
    assert (status, len(output.splitlines())) == (1, 1)
    assert f"port {port} " in output


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AIAGENT_STATE_DIR", "/dev/null/state"),
        ("AIAGENT_HTTP_PORT", "eighty"),
        ("AIAGENT_LOG_LEVEL", "loud"),
    ],
)
async def test_what_cannot_be_used_is_one_line(local: RunningSuite, variable: str, value: str) -> None:
    status, output = await command(local, "run", **{variable: value})
    assert (status, len(output.splitlines())) == (1, 1), output
    assert output.startswith("error: ")
    assert value in output or variable in output


async def test_status_names_what_serves(local: RunningSuite, client: httpx.AsyncClient) -> None:
    status, output = await command(local, "status")
    assert status == 0, output
    assert output.count(" serving") == 5
    assert output.count(" takes connections") == 1


async def test_servers_are_told_no_secrets(local: RunningSuite, client: httpx.AsyncClient) -> None:
    for name in SERVERS:
        assert not [key for key in server(local, name).environ() if "AIAGENT" in key or "ANTHROPIC" in key]


@pytest.mark.chaos
@pytest.mark.parametrize("name", list(SERVERS))
async def test_a_killed_server_comes_back(name: str, local: RunningSuite, client: httpx.AsyncClient) -> None:
    account = await an_account(client)
    old = server(local, name)
    old.kill()
    await gone([old])
    async with asyncio.timeout(30):
        while True:
            try:
                answer = await client.post("/api/v1/auth/login", json=credentials(account))
                if answer.status_code == 200 and server(local, name).pid != old.pid:
                    break
            except (httpx.TransportError, ValueError, psutil.NoSuchProcess):
                # Not yet; the process has no event that we could wait for.
                assert local.process is not None
                assert local.process.returncode is None
            await asyncio.sleep(0.1)
    assert "starting it again" in local.output


@pytest.mark.chaos
async def test_a_killed_supervisor_leaves_nothing_and_loses_nothing(
    local: RunningSuite, client: httpx.AsyncClient
) -> None:
    account = await an_account(client)
    family = local.processes()
    assert {SERVERS[name] for name in SERVERS} <= {process.name() for process in family}
    await local.kill9()
    await gone(family)
    await local.start()
    async with httpx.AsyncClient(base_url=local.base_url, trust_env=False) as again:
        assert (await log_in(again, account)).status_code == 200


async def test_stop_ends_everything(local: RunningSuite, client: httpx.AsyncClient) -> None:
    account = await an_account(client)
    family = local.processes()
    assert await command(local, "stop") == (0, "stopped")
    await gone(family)
    assert local.process is not None
    assert await local.process.wait() == 0
    assert (await command(local, "status"))[0] == 1
    await local.start()
    async with httpx.AsyncClient(base_url=local.base_url, trust_env=False) as again:
        assert (await log_in(again, account)).status_code == 200


@pytest.mark.chaos
async def test_replicas_in_processes_of_their_own(tmp_path: Path) -> None:
    running = RunningSuite(tmp_path / "state", arguments=["--replicas", "session=2"])
    await running.start()
    try:
        status, output = await command(running, "status")
        assert (status, output.count(" serving"), output.count(" working")) == (0, 6, 1), output
        family = running.processes()
        [session] = [
            process
            for process in family
            if process.environ().get("AIAGENT_SESSION_LISTEN", "") in output.split("session-2")[1]
            and "services.session" in process.cmdline()
        ]
        # Runs of tasks are the worker's.
        assert [
            (process.cmdline()[-1], process.environ().get("AIAGENT_SCHEDULER_WORKER_PLACES"))
            for process in sorted(family, key=lambda process: process.cmdline()[-1:])
            if "services.scheduler" in process.cmdline()
        ] == [("serve", "0"), ("worker", None)]
        # The model's key is the executor's alone, and no service can change its schema.
        assert not [key for key in session.environ() if key == "ANTHROPIC_API_KEY" or "OWNER" in key]
        os.kill(session.pid, signal.SIGKILL)
        await gone([session])
        async with httpx.AsyncClient(base_url=running.base_url, trust_env=False) as client:
            account = await an_account(client)
            token = (await log_in(client, account)).json()["access_token"]
            for _ in range(10):
                # The other replica answers whatever was meant for the killed one.
                listed = await client.get("/api/v1/sessions", headers={"authorization": f"Bearer {token}"})
                assert listed.status_code == 200, listed.text
        async with asyncio.timeout(30):
            while (await command(running, "status"))[0] != 0:
                await asyncio.sleep(0.1)
        family += running.processes()
    finally:
        assert await running.stop() == 0
    await gone(family)
