"""The gRPC server of a service: handlers, health, reflection, drain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.kernel.grpc.authentication import PUBLIC, Authenticator, MethodPolicy, UserVerifier
from services.kernel.grpc.health import Health
from services.kernel.grpc.pipeline import Pipeline
from services.kernel.grpc.validation import RequestValidator
from services.kernel.identity.service_tokens import ServiceTokenVerifier
from services.kernel.lifecycle import Drain

# A text of 16 MiB, and room for what it travels in.
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024 + 64 * 1024
# After the last call has ended, what is left are probes: they need no long farewell.
_FAREWELL_SECONDS: Final = 0.25
_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Two processes on one port would share it silently, and the balance would be wrong.
    ("grpc.so_reuseport", 0),
    # Dead peers are noticed within half a minute, quiet streams are left alone.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)
_log = structlog.get_logger(__name__)

Register = Callable[[grpc.aio.Server], None]
"""Adds a servicer: `partial(add_AuthServiceServicer_to_server, servicer)`."""


class KernelServer:
    """A server that was built but not started; see `build_server`."""

    def __init__(
        self, server: grpc.aio.Server, listen: str, health_: Health, drain: Drain, pipeline: Pipeline
    ) -> None:
        """Use `build_server`."""
        self._server = server
        self._pipeline = pipeline
        self._listen = listen
        self.health = health_
        self.drain = drain
        self.port = 0

    async def open(self) -> int:
        """Opens the port for probes, which hear NOT_SERVING; calls are refused until `start`. Returns the port.

        Raises:
            OSError: the address cannot be listened on.
        """
        self._pipeline.admits = False
        await self.health.set_serving(False)
        await self._listen_there()
        return self.port

    async def start(self) -> int:
        """Opens the port if it is not open, serves, and turns health to SERVING; returns the port.

        Raises:
            OSError: the address cannot be listened on.
        """
        if self.port == 0:
            await self._listen_there()
        self._pipeline.admits = True
        await self.health.set_serving(True)
        return self.port

    async def _listen_there(self) -> None:
        try:
            self.port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._listen}: is the port in use?") from error
        if self.port == 0:
            raise OSError(f"cannot listen on {self._listen}: is the port in use?")
        await self._server.start()

    async def drain_calls(self, grace_seconds: float) -> bool:
        """Refuses new calls, tells streams to end, waits for what runs.

        Returns whether all ended within `grace_seconds`.
        """
        await self.health.shut_down()
        self.drain.begin()
        idle = await self.drain.wait_idle(grace_seconds)
        if not idle:
            _log.warning("calls outlived the drain", calls=self.drain.calls)
        return idle

    async def stop(self) -> None:
        """Closes the port; cancels what still runs. Can be called twice."""
        await self._server.stop(_FAREWELL_SECONDS if self.drain.calls == 0 else 0)


def build_server(
    *,
    listen: str,
    domain: str,
    register: Sequence[Register],
    policies: Mapping[str, MethodPolicy],
    users: UserVerifier | None = None,
    services: ServiceTokenVerifier | None = None,
    reflect: bool = True,
    drain: Drain | None = None,
) -> KernelServer:
    """Builds a server with its interceptors, health and reflection.

    Args:
        listen: `host:port`; port 0 takes a free one.
        domain: `<service>.aiagent`, of the errors raised for the service.
        register: adds the servicers.
        policies: who may call each method, by `/package.Service/Method`.
        users: verifies access tokens.
        services: verifies service tokens.
        reflect: whether reflection is there, for everybody.
        drain: shared with the handlers that must end their streams; a new one by default.
    """
    drain = drain or Drain()
    names = sorted({method.split("/")[1] for method in policies})
    table = dict(policies)
    table[f"/{health.SERVICE_NAME}/Check"] = PUBLIC
    table[f"/{health.SERVICE_NAME}/Watch"] = PUBLIC
    table["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"] = PUBLIC
    pipeline = Pipeline(
        domain=domain,
        authenticator=Authenticator(table, users=users, services=services),
        validator=RequestValidator(domain),
        drain=drain,
    )
    server = grpc.aio.server(interceptors=(pipeline,), options=_OPTIONS)
    for add in register:
        add(server)
    state = Health(names)
    health_pb2_grpc.add_HealthServicer_to_server(state.servicer, server)  # type: ignore[no-untyped-call]
    if reflect:
        shown = [*names, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(shown, server)  # type: ignore[no-untyped-call]
    return KernelServer(server, listen, state, drain, pipeline)
