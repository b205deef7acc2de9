"""The standard health service, for each gRPC service and for the process."""

from __future__ import annotations

from collections.abc import Iterable

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The state of the process (service "") and of each gRPC service."""

    def __init__(self, service_names: Iterable[str]) -> None:
        """Args: service_names: full names, `aiagent.auth.v1.AuthService`. All begin as NOT_SERVING."""
        self.servicer = HealthServicer()
        self._names = ["", *service_names]

    async def set_serving(self, serving: bool, *service_names: str) -> None:
        """Sets the state of the named services; without names, of all and of the process.

        After the server began to drain nothing changes any more.
        """
        status = _SERVING if serving else _NOT_SERVING
        for name in service_names or self._names:
            await self.servicer.set(name, status)

    async def shut_down(self) -> None:
        """NOT_SERVING for good."""
        await self.set_serving(False)
        await self.servicer.enter_graceful_shutdown()
