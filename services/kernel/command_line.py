"""`python -m services.<name>`: the same for every service, whatever roles and commands it has beside `serve`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import uvloop
from pydantic import ValidationError

from services.kernel.errors import ServiceError
from services.kernel.lifecycle import Service, run
from services.kernel.settings import KernelSettings
from services.kernel.telemetry import MetricsServer, configure_logging


@dataclass(frozen=True, slots=True)
class Command[S: KernelSettings]:
    """Something that is done once and ends.

    Attributes:
        help: what it does, for `--help`.
        run: does it; returns the line to print.
    """

    help: str
    run: Callable[[S], Awaitable[str]]


class Working(Service, Protocol):
    """A service without a server, which says by itself whether it does its work."""

    @property
    def ready(self) -> bool:
        """Whether it does; asked from another thread, for `GET /ready` beside the metrics."""
        ...


@dataclass(frozen=True, slots=True)
class Role[S: KernelSettings]:
    """What a process of the service can be for beside serving, until SIGTERM.

    Attributes:
        help: what it does, for `--help`.
        build: composes it.
    """

    help: str
    build: Callable[[S], Awaitable[Working]]


def main[S: KernelSettings](
    name: str,
    settings: type[S],
    build: Callable[[S], Awaitable[Service]],
    *,
    roles: Mapping[str, Role[S]] | None = None,
    commands: Mapping[str, Command[S]] | None = None,
    expected: tuple[type[Exception], ...] = (),
) -> int:
    """Reads the command line and the settings, and does what it says.

    Args:
        name: of the service.
        settings: their class.
        build: composes the service.
        roles: what a process of it can be beside one that serves.
        commands: what it can do beside that.
        expected: errors of the service's own whose message is one line for an operator.

    Returns:
        The exit code: 0, 1 when it failed, 2 when a setting is wrong.
    """
    roles, commands = roles or {}, commands or {}
    parser = argparse.ArgumentParser(prog=f"python -m services.{name}")
    choices = parser.add_subparsers(dest="command", required=True)
    choices.add_parser("serve", help="serve until SIGTERM")
    for word, role in roles.items():
        choices.add_parser(word, help=role.help)
    for word, command in commands.items():
        choices.add_parser(word, help=command.help)
    chosen = parser.parse_args().command
    told: tuple[type[Exception], ...] = (ServiceError, ValueError, OSError, *expected)
    try:
        values = settings()
        configure_logging(values.log_level)
        if chosen == "serve":
            uvloop.run(serve(values, build))
        elif chosen in roles:
            uvloop.run(work(values, roles[chosen].build))
        else:
            sys.stdout.write(f"{uvloop.run(_told(commands[chosen], values))}\n")
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            variable = "_".join(str(part) for part in problem["loc"]).upper()
            if not variable.startswith("ANTHROPIC_"):
                variable = f"AIAGENT_{variable}"
            sys.stderr.write(f"error: {variable}: {problem['msg']}\n")
        return 2
    except told as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


async def serve[S: KernelSettings](settings: S, build: Callable[[S], Awaitable[Service]]) -> None:
    """Runs one service in this process, and its metrics beside it, until SIGTERM or SIGINT.

    The metrics are there before the service is: one that waits for its database can be looked at.
    """
    await _run(settings, await build(settings), None)


async def work[S: KernelSettings](settings: S, build: Callable[[S], Awaitable[Working]]) -> None:
    """As `serve`, for a service without a server; whether it is ready is told beside the metrics."""
    service = await build(settings)
    await _run(settings, service, lambda: service.ready)


async def _run(settings: KernelSettings, service: Service, ready: Callable[[], bool] | None) -> None:
    services = [service]
    if settings.metrics_listen:
        services.insert(0, _Metrics(MetricsServer.at(settings.metrics_listen, ready)))
    await run(services, grace_seconds=settings.drain_seconds)


class _Metrics:
    """The metrics as a service: they are told from the first to the last, and a signal finds somebody to take it."""

    name = "metrics"

    def __init__(self, server: MetricsServer) -> None:
        self._server = server

    async def start(self) -> None:
        await self._server.start()

    async def drain(self, grace_seconds: float) -> None:
        """They have nothing to end."""

    async def stop(self) -> None:
        await self._server.stop()


async def _told[S: KernelSettings](command: Command[S], settings: S) -> str:
    return await command.run(settings)
