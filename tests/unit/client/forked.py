"""Commands as processes that have imported everything already: forked from one that did, once for all tests.

A fork is a process like any other: its own standard streams, environment, session, signals and exit code. What it does
not prove is the start of Python itself: commands on a terminal, and `COMMAND` in a shell's pipe, do.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache

_FILES = 3
_MOST_SECONDS = 90


def serve(listener: socket.socket) -> None:
    """Forks a process for each request until its starter is gone; runs in a process of its own, without threads."""
    # Imported once, so that no command has to. gRPC is not used before the fork, only loaded.
    from aiagent_client.cli import auth, config, main, schedules, sessions, tasks  # noqa: F401

    starter = os.getppid()
    listener.settimeout(1.0)
    while os.getppid() == starter:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        connection.setblocking(True)
        if os.fork() == 0:
            listener.close()
            _become(connection, main)
        connection.close()
        _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _become(connection: socket.socket, main) -> None:
    """Serves one request: forks once more, so that the exit code can be told, whatever ends the command."""
    data, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, _FILES)
    request = json.loads(data)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    connection.close()
    os.setsid()
    # Whoever waits for it may have given up; then nobody would end it.
    signal.alarm(_MOST_SECONDS)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["ai-agent", *request["arguments"]]
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    code = 1
    try:
        main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


@cache
def _address() -> str:
    """Starts the process that forks; its socket's path."""
    directory = tempfile.mkdtemp(prefix="ai-agent-forked-")
    path = f"{directory}/socket"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    listener.set_inheritable(True)
    script = (
        "import socket, sys; from tests.unit.client import forked;"
        "forked.serve(socket.socket(fileno=int(sys.argv[1])))"
    )
    process = subprocess.Popen(
        [sys.executable, "-X", "utf8", "-c", script, str(listener.fileno())],
        pass_fds=[listener.fileno()],
        stdin=subprocess.DEVNULL,
    )
    listener.close()

    def end() -> None:
        process.kill()
        process.wait()
        os.unlink(path)  # noqa: PTH108
        os.rmdir(directory)  # noqa: PTH106

    atexit.register(end)
    return path


async def run(
    arguments: Sequence[str], stdin: bytes, environment: Mapping[str, str]
) -> tuple[int, bytes, bytes]:
    """Runs `ai-agent` with files as its standard streams; returns its exit code, output and error output."""
    request = json.dumps({"arguments": list(arguments), "environment": dict(environment)}).encode()
    return await asyncio.to_thread(_run, _address(), request, stdin)


def _run(address: str, request: bytes, stdin: bytes) -> tuple[int, bytes, bytes]:
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        given.write(stdin)
        given.seek(0)
        connection.connect(address)
        socket.send_fds(connection, [request], [given.fileno(), out.fileno(), err.fileno()])
        code = int(connection.recv(64))
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()
