"""Envoy as the suite configures it, before a gRPC server that a test can take away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from aiagent.auth.v1 import auth_service_pb2
from deploy.envoy.config import SERVICES, EnvoySettings, render
from deploy.local.ports import free_port
from deploy.local.servers import Envoy
from deploy.local.state import StateDirectory, write_private
from services.kernel.testing import AccessTokens
from tests.contract.json_dialect.conftest import Upstream, public_methods

KEY_SET = "/aiagent.auth.v1.AuthService/GetJwks"


class Services(Upstream):
    """Plays all services: auth's key set is real, every other method answers with a sample.

    Attributes:
        metadata: of the last call.
    """

    def __init__(self, tokens: AccessTokens) -> None:
        super().__init__(public_methods())
        self._tokens = tokens
        self.metadata: dict[str, str] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if handler_call_details.method == KEY_SET:
            return grpc.unary_unary_rpc_method_handler(
                self._key_set,
                request_deserializer=auth_service_pb2.GetJwksRequest.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
        self.metadata = dict(handler_call_details.invocation_metadata)
        return super().service(handler_call_details)

    async def _key_set(self, _request: Any, _context: grpc.aio.ServicerContext) -> Any:
        answer = auth_service_pb2.GetJwksResponse()
        return json_format.ParseDict(await self._tokens.fetch(), answer)


class Edge:
    """The listener, and the services behind it."""

    def __init__(self, state: StateDirectory) -> None:
        self.tokens = AccessTokens()
        self.services = Services(self.tokens)
        self._upstream = f"127.0.0.1:{free_port()}"
        self._server: grpc.aio.Server | None = None
        self._health = HealthServicer()
        path = state.path / "run" / "edge.json"
        settings = EnvoySettings(
            host="127.0.0.1",
            port=free_port(),
            endpoints={name: [self._upstream] for name in SERVICES},
            admin_socket=state.path / "run" / "edge.sock",
            origins=(r"https://console\.example\.com",),
        )
        write_private(path, render(settings))
        self.configuration: Path = path
        self.envoy = Envoy(state, path, settings.host, settings.port)
        self.url = f"http://{self.envoy.target}"

    async def serve(self) -> None:
        """Starts the services, anew if they were stopped."""
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20)]
        )
        self._server.add_generic_rpc_handlers((self.services,))
        self._health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_insecure_port(self._upstream)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def not_serving(self) -> None:
        """Says by the health service that it takes no calls."""
        await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)

    async def restore(self) -> None:
        """Undoes what a test did to the services."""
        if self._server is None:
            await self.serve()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    async def vanish(self) -> None:
        """Stops the services at once."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
