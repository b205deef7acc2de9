"""The harness's own means: the proxy cuts, the process table is read rightly."""

from __future__ import annotations

import asyncio
import os
import sys

import psutil
import pytest

from .proxy import Proxy
from .victims import Family, clis, session_of, supervised, tools

pytestmark = pytest.mark.integration

WAIT = "import time; time.sleep(60)"


async def test_the_proxy_forwards_until_it_cuts():
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1])
    await proxy.start()
    host, port = proxy.target.split(":")
    ends = [await asyncio.open_connection(host, int(port)) for _ in range(4)]
    for reader, writer in ends:
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
    assert proxy.connections == 4
    assert proxy.cut(0.5) == 2

    async def alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            writer.write(b"again")
            return await asyncio.wait_for(reader.read(5), 5) == b"again"
        except OSError:
            return False

    assert sum([await alive(*end) for end in ends]) == 2
    for _, writer in ends:
        writer.close()
    await proxy.stop()
    server.close()
    assert proxy.connections == 0


async def test_processes_are_told_apart(tmp_path):
    """A root with a service, a CLI and its tool, and one process that has lost its root."""
    mark = str(tmp_path)
    claude = tmp_path / "claude"
    claude.symlink_to(sys.executable)
    below = "import subprocess; subprocess.run(['sleep', '60'])"
    root = (
        "import subprocess, sys;"
        f"subprocess.Popen([sys.executable, '-c', {WAIT!r}, 'services.session'], executable=sys.executable);"
        f"subprocess.Popen([{str(claude)!r}, '-c', {below!r}], cwd={mark!r});" + WAIT
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", root, env={**os.environ, "MARK": mark}
    )
    outsider = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WAIT, env={**os.environ, "MARK": mark}
    )
    try:
        supervisor = psutil.Process(process.pid)
        async with asyncio.timeout(20):
            while not tools(supervisor):
                await asyncio.sleep(0.05)
        (cli,) = clis(supervisor)
        assert cli.cmdline()[0] == str(claude)
        assert session_of(cli, ["another", tmp_path.name]) == tmp_path.name
        assert len(tools(supervisor)) == 1
        family = Family(mark)
        family.look(supervisor)
        assert [left.pid for left in family.outside(supervisor)] == [outsider.pid]
        assert {left.pid for left in family.outside(None)} >= {process.pid, cli.pid, outsider.pid}
        assert supervised(supervisor, "envoy") == []
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), process, outsider]:
            one.kill()
        await process.wait()
        await outsider.wait()
